"""Norms, and what is none, as code bases write them: nothing is wrong or missed in silence."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import lntune_jax as lnt
from lntune_jax.errors import ArgumentError, TraceWarning
from tests.support.traced import shape

B, T, D, HEADS = 3, 5, 8, 2
SHAPES = {
    "w": (D,), "b": (D,), "v": (D,), "r": (D,), "t": (), "k": (D, D), "m": (D, D), "s": (3, D),
    "e": (11, D), "head": (D // HEADS,), "by_head": (HEADS,), "heads": (HEADS, D // HEADS),
    "pos": (T, D), "conv": (3, D, D), "mean": (D,), "var": (D,), "two": (2 * D, D), "one": (1,),
    "col": (D, 1), "each": (1, 1, D), "around": (3, 1, D), "layers": (3, D, D),
}  # fmt: skip
PARAMS = {name: shape(*axes) for name, axes in SHAPES.items()}


def trace(apply):
    """What is found, and what is said, of a function between two dense layers."""

    def call(p, x, ids):
        y = apply(p, jnp.tanh(x @ p["k"]), ids)
        return jax.tree.map(lambda leaf: jnp.tanh(leaf @ jnp.ones((leaf.shape[-1], 2))), y)

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = lnt.discover_norms(call, PARAMS, shape(B, T, D), shape(B, T, dtype="int32"))
    said = [str(one.message) for one in caught if one.category is TraceWarning]
    assert len(said) == len(caught)
    assert bool(said) == bool(found.uncertain or found.ambiguous or found.opaque)
    return found


def mean(x):
    return jnp.mean(x, -1, keepdims=True)


def rms(x, eps=1e-6):
    return x * lax.rsqrt(mean(x * x) + eps)


def center(x):
    return x - mean(x)


def layer(x):
    return center(x) / jnp.sqrt(jnp.var(x, -1, keepdims=True) + 1e-5)


def split(x, groups=HEADS):
    return x.reshape(*x.shape[:-1], groups, -1)


def join(x):
    return x.reshape(*x.shape[:-2], -1)


def gate(x):
    return jax.nn.silu(x[..., ::-1])


@jax.custom_vjp
def with_gradient(x, w):
    return rms(x) * w


with_gradient.defvjp(lambda x, w: (rms(x) * w, w), lambda w, g: (g * w, g.sum((0, 1))))


def in_while(p, x):
    def step(state):
        i, x = state
        return i + 1, x + jnp.tanh(rms(x + 1.5) * p["w"])

    return lax.while_loop(lambda state: state[0] < 3, step, (0, x))[1]


def in_scan(p, x):
    return lax.scan(lambda x, w: ((x + 1) + rms(x + 1) * w, None), x, p["s"])[0]


def welford(x):
    """The mean and the variance of each row, entry by entry."""

    def step(state, entry):
        count, average, spread = state
        count = count + 1
        change = entry - average
        average = average + change / count
        return (count, average, spread + change * (entry - average)), None

    start = jnp.zeros(()), jnp.zeros(x.shape[:-1]), jnp.zeros(x.shape[:-1])
    (count, average, spread), _ = lax.scan(step, start, jnp.moveaxis(x, -1, 0))
    return average[..., None], (spread / count)[..., None]


def cast(x):
    return x.astype("bfloat16").astype("float32")


def per_row(p, x):
    """A LayerNorm of one vector, for `jax.vmap`."""

    def norm(v):
        deviation = jnp.sqrt(((v - v.mean()) ** 2).mean() + 1e-6)
        return p["w"] * ((v - v.mean()) / deviation) + p["b"]

    return jax.vmap(jax.vmap(norm))(x)


def in_einsum(p, x):
    centred = x - jnp.einsum("btd->bt", x)[..., None] / D
    variance = jnp.einsum("btd,btd->bt", centred, centred) / D
    return jnp.einsum("btd,bt,d->btd", centred, lax.rsqrt(variance + 1e-6), p["w"]) + p["b"]


def shared_by_devices(p, x):
    from jax.sharding import Mesh, PartitionSpec

    mesh, rows, whole = Mesh(jax.devices()[:1], ("x",)), PartitionSpec("x"), PartitionSpec()
    norm = lambda x, w, b: layer(x) * w + b  # noqa: E731
    specs = (rows, whole, whole)
    return jax.shard_map(norm, mesh=mesh, in_specs=specs, out_specs=rows)(x, p["w"], p["b"])


def in_remat_and_scan(p, x):
    @jax.checkpoint
    def layer(x, kernel):
        return x + (rms(x) * p["w"]) @ kernel, None

    return lax.scan(layer, x, p["layers"])[0]


def of_heads(p, x):
    query, key = (split(x @ p[name]).swapaxes(1, 2) for name in ("m", "k"))
    scores = jax.nn.softmax(rms(query) * p["head"] @ key.swapaxes(2, 3), -1)
    return join((scores @ key).swapaxes(1, 2))


def of_columns(p, x):
    y = jnp.swapaxes(x, 1, 2)
    y = (y - y.mean(1, keepdims=True)) / (y.std(1, keepdims=True) + 1e-6)
    return jnp.swapaxes(y * p["w"][:, None] + p["b"][None, :, None], 1, 2)


def in_halves(p, x):
    narrow = x.astype("bfloat16").astype("float32")
    return (rms(narrow).astype("bfloat16") * p["w"].astype("bfloat16")).astype("float32")


def by_reduce(p, x):
    total = lambda y: lax.reduce(y, 0.0, lax.add, (2,))[..., None] / D  # noqa: E731
    centred = x - total(x)
    return centred * lax.rsqrt(total(centred * centred) + 1e-6) * p["w"] + p["b"]


def tied(p, x):
    return x + rms(rms(x) * p["w"] @ p["m"]) * p["w"]


# Found, with no word said. The second entry is what is found.
NORMS = {
    "one vector, mapped": (lambda p, x, i: per_row(p, x), "wb"),
    "all by einsum": (lambda p, x, i: in_einsum(p, x), "wb"),
    "shard_map": (lambda p, x, i: shared_by_devices(p, x), "wb"),
    "remat in a scan": (lambda p, x, i: in_remat_and_scan(p, x), "w"),
    "a norm of queries": (lambda p, x, i: of_heads(p, x), ["head"]),
    "channels in the middle": (lambda p, x, i: of_columns(p, x), "wb"),
    "bfloat16, statistics in float32": (lambda p, x, i: in_halves(p, x), "w"),
    "a scale outside the cast": (
        lambda p, x, i: rms(x).astype("bfloat16").astype("float32") * (1 + p["w"]), "w"
    ),
    "lax.reduce": (lambda p, x, i: by_reduce(p, x), "wb"),
    "one norm used twice": (lambda p, x, i: tied(p, x), "w"),
    "a mean by a matrix that centres": (
        lambda p, x, i: layer(x @ (jnp.eye(D) - 1 / D)) * p["w"] + p["b"], "wb"
    ),
    "a scale and a shift": (
        lambda p, x, i: x * (lax.rsqrt(jnp.var(x, -1, keepdims=True)) * p["w"])
        + (p["b"] - mean(x) * (lax.rsqrt(jnp.var(x, -1, keepdims=True)) * p["w"])), "wb"
    ),
    "a root that may be zero": (
        lambda p, x, i: jnp.where(mean(x * x) > 0, x * lax.rsqrt(jnp.where(
            mean(x * x) > 0, mean(x * x), 1.0)), 0.0) * p["w"], "w"
    ),
    "statistics without a gradient": (
        lambda p, x, i: (x - lax.stop_gradient(mean(x)))
        / lax.stop_gradient(jnp.sqrt(mean((x - mean(x)) ** 2) + 1e-6)) * p["w"] + p["b"], "wb"
    ),
    "a sandwich": (
        lambda p, x, i: (x + rms(x @ p["m"]) * p["w"]) + rms(x @ p["k"] + p["b"]) * p["v"], "wv"
    ),
    "after a residual, a kernel's bias": (
        lambda p, x, i: x + (rms(x) * p["w"]) @ p["m"] + p["b"], "w"
    ),
    "a head of one output": (lambda p, x, i: rms(x) * p["w"] @ p["col"] + p["one"], "w"),
    "a sum written twice": (
        lambda p, x, i: (x + p["r"]) * lax.rsqrt(mean((x + p["r"]) ** 2) + 1e-6) * p["w"], "w"
    ),
    "a sum written the other way round": (
        lambda p, x, i: (x + p["pos"]) * lax.rsqrt(mean((p["pos"] + x) ** 2) + 1e-6) * p["w"], "w"
    ),
    "a factor written twice": (
        lambda p, x, i: (x * 2.5) * lax.rsqrt(mean((2.5 * x) ** 2) + 1e-6) * p["w"], "w"
    ),
    "a cast written twice": (
        lambda p, x, i: cast(jnp.sin(x)) * lax.rsqrt(mean(cast(jnp.sin(x)) ** 2)) * p["w"], "w"
    ),
    "a function written twice": (
        lambda p, x, i: jax.nn.gelu(x) * lax.rsqrt(mean(jax.nn.gelu(x) ** 2)) * p["w"], "w"
    ),
    "a residual written twice, as a LayerNorm": (
        lambda p, x, i: center(x + gate(x))
        / jnp.sqrt(jnp.var(x + gate(x), -1, keepdims=True) + 1e-5) * p["w"] + p["b"], "wb"
    ),
    "an array of constants written twice": (
        lambda p, x, i: rms(x * np.arange(8.0, dtype="float32")) * p["w"], "w"
    ),
    "squares of absolute values": (
        lambda p, x, i: x / jnp.sqrt(mean(jnp.abs(x) ** 2) + 1e-6) * p["w"], "w"
    ),
    "a mean by a product with ones": (
        lambda p, x, i: x * lax.rsqrt((x * x) @ jnp.ones((D, 1)) / D + 1e-6) * p["w"], "w"
    ),
    "a mean by a product with a matrix": (
        lambda p, x, i: x * lax.rsqrt((x * x) @ jnp.full((D, D), 1 / D) + 1e-6) * p["w"], "w"
    ),
    "a mean by a product with numpy's ones": (
        lambda p, x, i: x * lax.rsqrt((x * x @ np.ones((D, 1), "float32")) / D) * p["w"], "w"
    ),
    "means by einsum": (
        lambda p, x, i: (x - jnp.einsum("btd,d->bt", x, jnp.ones(D))[..., None] / D)
        * lax.rsqrt(jnp.var(x, -1, keepdims=True) + 1e-6) * p["w"] + p["b"], "wb"
    ),
    "a square by einsum": (
        lambda p, x, i: x * lax.rsqrt(jnp.einsum("...d,...d->...", x, x)[..., None] / D) * p["w"],
        "w",
    ),
    "a square by matmul": (
        lambda p, x, i: x * lax.rsqrt((x[..., None, :] @ x[..., None])[..., 0] / D) * p["w"], "w"
    ),
    "by vdot": (
        lambda p, x, i: jax.vmap(jax.vmap(lambda v: v / jnp.sqrt(jnp.vdot(v, v) / D)))(x) * p["w"],
        "w",
    ),
    "jnp.linalg.norm": (
        lambda p, x, i: x / jnp.linalg.norm(x, axis=-1, keepdims=True) * D**0.5 * p["w"], "w"
    ),
    "jnp.linalg.norm of order 2, bounded": (
        lambda p, x, i: x / jnp.clip(jnp.linalg.norm(x, 2, -1, keepdims=True), 1e-12) * p["w"], "w"
    ),
    "jax.nn.standardize": (lambda p, x, i: jax.nn.standardize(x) * p["w"] + p["b"], "wb"),
    "a scale within bounds": (lambda p, x, i: rms(x) * jnp.clip(p["w"], -3, 3), "w"),
    "a scale of one more": (lambda p, x, i: rms(x) * (1 + p["w"]), "w"),
    "a scale times one": (lambda p, x, i: rms(x) * (p["w"] * 1.0), "w"),
    "a scale spread out": (lambda p, x, i: rms(x) * jnp.broadcast_to(p["w"], x.shape), "w"),
    "a cast scale": (lambda p, x, i: rms(x) * cast(p["w"]), "w"),
    "a rounded scale": (
        lambda p, x, i: lax.reduce_precision(rms(x), 8, 7) * lax.reduce_precision(p["w"], 8, 7), "w"
    ),
    "a masked scale": (lambda p, x, i: rms(x) * jnp.where(jnp.arange(D) < 7, p["w"], 0), "w"),
    "a scale without a gradient": (lambda p, x, i: layer(x) * lax.stop_gradient(p["w"]), "w"),
    "a barrier": (
        lambda p, x, i: rms(lax.optimization_barrier(x)) * lax.optimization_barrier(p["w"]), "w"
    ),
    "an entry of a stack": (lambda p, x, i: rms(x) * p["s"][1], "s"),
    "a scan": (lambda p, x, i: in_scan(p, x), "s"),
    "a while loop": (lambda p, x, i: in_while(p, x), "w"),
    "remat": (lambda p, x, i: jax.checkpoint(lambda x: rms(x * 1.5) * p["w"])(x), "w"),
    "custom_vjp": (lambda p, x, i: with_gradient(jnp.sin(x) + jnp.sin(x), p["w"]), "w"),
    "jit": (lambda p, x, i: jax.jit(rms)(x) * jax.jit(lambda w: 1 + w)(p["w"]), "w"),
    "two jits of one array": (
        lambda p, x, i: jax.jit(jnp.tanh)(x) / jnp.sqrt(mean(jax.jit(jnp.tanh)(x) ** 2)) * p["w"],
        "w",
    ),
    "Llama": (lambda p, x, i: p["w"] * rms(x.astype("float32")).astype(x.dtype), "w"),
    "Gemma": (lambda p, x, i: (rms(x) * (1.0 + p["w"].astype("float32"))).astype(x.dtype), "w"),
    "Flax's order": (
        lambda p, x, i: center(x) * (lax.rsqrt(jnp.var(x, -1, keepdims=True) + 1e-6) * p["w"])
        + p["b"], "wb"
    ),
    "a bounded fast variance": (
        lambda p, x, i: center(x)
        * lax.rsqrt(jnp.maximum(mean(x * x) - mean(x) ** 2, 0) + 1e-6) * p["w"] + p["b"], "wb"
    ),
    "torch.std, unbiased, as in ESM": (
        lambda p, x, i: p["w"] * center(x) / (jnp.std(x, -1, keepdims=True, ddof=1) + 1e-6)
        + p["b"], "wb"
    ),
    "a norm of each head": (lambda p, x, i: join(rms(split(x)) * p["head"]), ["head"]),
    "a norm of each head with scales of its own": (
        lambda p, x, i: join(layer(split(x)) * p["heads"]), ["heads"]
    ),
    "Mamba's gated norm": (lambda p, x, i: rms(x * gate(x)) * p["w"], "w"),
    "Falcon-H1's, in groups": (
        lambda p, x, i: join(split(p["w"]) * rms(split(x * gate(x)))), "w"
    ),
    "Nemotron-H's, in groups": (
        lambda p, x, i: p["w"] * join(rms(split(x.astype("float32") * gate(x)))), "w"
    ),
    "Mamba's gate after the norm": (lambda p, x, i: p["w"] * rms(x) * gate(x), "w"),
    "Table Transformer's first queries": (
        lambda p, x, i: x + (layer(jnp.zeros((B, T, D))) * p["w"] + p["b"]), "wb"
    ),
    "rows in a map, the scale outside": (lambda p, x, i: lax.map(rms, x) * p["w"], "w"),
    "a norm of latents": (lambda p, x, i: x + (layer(p["pos"] + 0.5) * p["w"] + p["b"]), "wb"),
    "a norm after an embedding": (lambda p, x, i: rms(p["e"][i] * D**0.5) * p["w"], "w"),
    "two norms of one array": (lambda p, x, i: (rms(x) * p["w"], rms(x) * p["v"]), "wv"),
    "a norm of a norm": (lambda p, x, i: rms(rms(x) * p["w"]) * p["v"], "wv"),
    "a LayerScale after a norm": (lambda p, x, i: x + p["v"] * ((rms(x) * p["w"]) @ p["m"]), "w"),
    "a norm of padded rows": (
        lambda p, x, i: jnp.where((i > 0)[..., None], rms(x), 0) * p["w"], "w"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", NORMS)
def test_norms_are_found(name):
    apply, expected = NORMS[name]
    found = trace(apply)
    assert {leaf.path for leaf in found.norms} == set(expected)
    assert set(found) == set(expected)
    assert not found.describe_rest()


def swish_gate(p, x):
    return jax.nn.silu(x @ p["m"]) * (x @ p["k"])


def convolve(x, kernel):
    numbers = ("NWC", "WIO", "NWC")
    return lax.conv_general_dilated(
        x, kernel, (1,), "SAME", dimension_numbers=numbers, feature_group_count=D
    )


def lookup(table, ids):
    return jnp.take(table, ids, axis=0)


# Not selected, and named. The second entry is what is named.
DOUBTS = {
    "a gate between": (lambda p, x, i: rms(x) * gate(x) * p["w"], "w"),
    "a gate and a bias": (lambda p, x, i: layer(x) * gate(x) * p["w"] + p["b"], "wb"),
    "a slice between": (lambda p, x, i: rms(x)[:, 1:] * p["w"], "w"),
    "a concatenation between": (lambda p, x, i: jnp.concatenate([rms(x), x], 1) * p["w"], "w"),
    "a residual between": (lambda p, x, i: (x + rms(x)) * p["w"], "w"),
    "a rotation between": (
        lambda p, x, i: (rms(x) * jnp.cos(x) + rms(x)[..., ::-1] * jnp.sin(x)) * p["w"], "w"
    ),
    "dropout between": (
        lambda p, x, i: jnp.where(jax.random.bernoulli(jax.random.key(0), 0.9, x.shape), rms(x), x)
        * p["w"], "w"
    ),
    "an exponential": (lambda p, x, i: rms(x) * jnp.exp(p["w"]), "w"),
    "a softplus and a bias": (lambda p, x, i: layer(x) * jax.nn.softplus(p["w"]) + p["b"], "w"),
    "a base and a delta": (lambda p, x, i: rms(x) * (p["w"] + p["v"]), "wv"),
    "two factors at once": (lambda p, x, i: rms(x) * (p["w"] * p["v"]), "wv"),
    "a scale with a mask of its own": (
        lambda p, x, i: rms(x) * (p["w"] * np.arange(8, dtype="float32")), "w"
    ),
    "a permuted scale": (lambda p, x, i: rms(x) * p["w"][np.array([1, 0, 3, 2, 5, 4, 7, 6])], "w"),
    "Muse Spark's scale before the statistics": (lambda p, x, i: rms(x * p["w"]), "w"),
    "Muse Spark's with its gate": (
        lambda p, x, i: x + jnp.tanh(p["v"]) * rms(x * (1 + p["w"])), "wv"
    ),
    "a scale before statistics of heads": (lambda p, x, i: join(rms(split(x * p["w"]))), "w"),
    "a LayerNorm of what was scaled": (lambda p, x, i: layer(x * (1 + p["w"])), "w"),
    "rows of a table": (lambda p, x, i: rms(x) * lookup(p["e"], i), "e"),
    "one more than rows of a table": (lambda p, x, i: rms(x) * (1 + lookup(p["e"], i)), "e"),
    "an entry by an argument": (lambda p, x, i: rms(x) * p["s"][i[0, 0]], "s"),
    "a loop that writes rows": (
        lambda p, x, i: lax.fori_loop(0, B, lambda n, y: y.at[n].set(rms(x[n])), jnp.zeros_like(x))
        * p["w"], "w"
    ),
    "branches, the scale outside": (
        lambda p, x, i: lax.cond(i[0, 0] > 0, rms, layer, x) * p["w"], "w"
    ),
    "an exponential of a logarithm": (
        lambda p, x, i: x * jnp.exp(-0.5 * jnp.log(mean(x * x) + 1e-6)) * p["w"], "w"
    ),
    "a running sum": (
        lambda p, x, i: x * lax.rsqrt(jnp.cumsum(x * x, -1)[..., -1:] / D) * p["w"], "w"
    ),
    "Welford's loop": (
        lambda p, x, i: (x - welford(x)[0]) * lax.rsqrt(welford(x)[1] + 1e-6) * p["w"], "w"
    ),
    "the root of another array": (
        lambda p, x, i: x / jnp.sqrt(mean(jnp.tanh(x) ** 2) + 1e-6) * p["w"], "w"
    ),
    "statistics without a gradient, of a rounded array": (
        lambda p, x, i: x * lax.rsqrt(mean(jnp.round(x) ** 2) + 1e-6) * p["w"], "w"
    ),
    "the scale on the inverse of another array": (
        lambda p, x, i: x * (p["w"] * lax.rsqrt(mean(jnp.tanh(x) ** 2) + 1e-6)), "w"
    ),
    "nGPT's steps": (
        lambda p, x, i: x + jnp.abs(p["w"]) * (rms(x @ p["m"]) - x), "w"
    ),
    "a scale in the kernel that follows": (
        lambda p, x, i: rms(x) @ (p["w"][:, None] * p["m"]), "w"
    ),
    "a scale within einsum": (
        lambda p, x, i: jnp.einsum("btd,d,de->bte", layer(x), p["w"], p["m"]), "w"
    ),
    "a pooled norm": (lambda p, x, i: layer(x).mean(1) * p["w"], "w"),
    "a diagonal matrix": (lambda p, x, i: layer(x) @ jnp.diag(p["w"]), "w"),
    "a diagonal matrix and a bias": (
        lambda p, x, i: layer(x) @ jnp.diag(p["w"]) + p["b"], "wb"
    ),
    "jnp.diagflat": (lambda p, x, i: layer(x) @ jnp.diagflat(p["w"]), "w"),
    "a masked matrix": (lambda p, x, i: rms(x) @ (jnp.eye(D) * p["w"]), "w"),
    "a diagonal that was written": (
        lambda p, x, i: rms(x) @ jnp.zeros((D, D)).at[jnp.arange(D), jnp.arange(D)].set(p["w"]), "w"
    ),
    "a diagonal matrix on the left": (
        lambda p, x, i: (jnp.diag(p["w"]) @ layer(x).swapaxes(1, 2)).swapaxes(1, 2), "w"
    ),
    "a diagonal matrix in einsum": (
        lambda p, x, i: jnp.einsum("btd,de->bte", rms(x), jnp.diag(p["w"])), "w"
    ),
    "a convolution of each channel": (
        lambda p, x, i: convolve(layer(x), p["each"]), ["each"]
    ),
    "ScaleNorm": (lambda p, x, i: p["t"] * x / jnp.linalg.norm(x, axis=-1, keepdims=True), "t"),
    "ScaleNorm of an RMSNorm": (lambda p, x, i: rms(x) * p["one"], ["one"]),
    "a bias after a residual": (lambda p, x, i: (x + rms(x)) + p["b"], "b"),
    "a product in place": (lambda p, x, i: layer(x).at[..., :].multiply(p["w"]), "w"),
    "a sum in place": (lambda p, x, i: layer(x).at[..., :].add(p["b"]), "b"),
    "a quotient": (lambda p, x, i: layer(x) / p["w"], "w"),
}  # fmt: skip


@pytest.mark.parametrize("name", DOUBTS)
def test_what_hides_a_norm_is_named(name):
    apply, expected = DOUBTS[name]
    found = trace(apply)
    assert set(found.uncertain) == set(expected)
    assert not set(found) & set(expected)
    assert len(found.describe_rest()) == len(expected)


def test_an_ambiguous_scale_settles_nothing():
    """The gate mixes two arrays, so it is no scale; the scale before is still named."""
    found = trace(lambda p, x, i: (1 - p["v"]) * x + p["v"] * rms(x * (1 + p["w"])))
    assert set(found.ambiguous) == {"v"}
    assert set(found.uncertain) == {"w"}


LATE_BIASES = {
    "RMSNorm": lambda p, x: x + rms(x) * p["w"] + p["b"],
    "LayerNorm": lambda p, x: p["b"] + (x + layer(x) * p["w"]),
    "two residuals": lambda p, x: x + (jnp.tanh(x) + rms(x) * p["w"]) + p["b"],
    "less a bias": lambda p, x: layer(x) * p["w"] - p["b"],
}


@pytest.mark.parametrize("name", LATE_BIASES)
def test_a_bias_that_comes_late_is_named_beside_its_scale(name):
    found = trace(lambda p, x, i: LATE_BIASES[name](p, x))
    assert list(found) == ["w"]
    assert list(found.uncertain) == ["b"]


def attend(p, x, scale):
    scores = jnp.einsum("btd,bsd->bts", x @ p["k"], x @ p["m"]) * scale
    return jax.nn.softmax(scores, -1) @ x


def over(x, axes):
    return (x - x.mean(axes, keepdims=True)) / jnp.sqrt(x.var(axes, keepdims=True) + 1e-5)


def unit(x):
    return x / (jnp.linalg.norm(x, axis=-1, keepdims=True) + 1e-6)


def respond(x):
    length = jnp.linalg.norm(x, axis=1, keepdims=True)
    return length / (length.mean(-1, keepdims=True) + 1e-6)


def in_groups(p, x):
    y = x.reshape(B, T, HEADS, -1)
    return over(y, (1, 3)).reshape(x.shape) * p["w"] + p["b"]


# No LayerNorm or RMSNorm, and nothing to say.
NOTHING = {
    "BatchNorm with running statistics": lambda p, x, i: (
        (x - p["mean"]) * lax.rsqrt(p["var"] + 1e-5) * p["w"] + p["b"]
    ),
    "BatchNorm folded into one factor": lambda p, x, i: (
        x * (p["w"] * lax.rsqrt(p["var"] + 1e-5)) + p["b"]
    ),
    "BatchNorm of this batch": lambda p, x, i: over(x, (0, 1)) * p["w"] + p["b"],
    "GroupNorm": lambda p, x, i: in_groups(p, x),
    "GroupNorm of one group": lambda p, x, i: over(x, (1, 2)) * p["w"] + p["b"],
    "GroupNorm of channels, as RWKV's": lambda p, x, i: join(layer(split(x))) * p["w"] + p["b"],
    "GroupNorm in a map, as torchax's": lambda p, x, i: (
        lax.map(layer, x.reshape(1, B * HEADS, -1)).reshape(x.shape) * p["pos"][:, :1] + x
    ),
    "InstanceNorm": lambda p, x, i: over(x, (1,)) * p["w"] + p["b"],
    "L2 normalisation": lambda p, x, i: unit(x),
    "cosine similarity with a temperature": lambda p, x, i: (
        jnp.exp(p["t"]) * jnp.einsum("btd,bsd->bts", unit(x), unit(x @ p["m"]))
    ),
    "cosine attention by head": lambda p, x, i: join(unit(split(x)) * p["by_head"][:, None]),
    "a norm without parameters": lambda p, x, i: layer(x) @ p["m"],
    "a softmax with a temperature": lambda p, x, i: jax.nn.softmax(x / p["t"], -1),
    "a softmax with temperatures": lambda p, x, i: jax.nn.softmax(x * p["w"], -1),
    "LayerScale": lambda p, x, i: x + p["w"] * swish_gate(p, x),
    "LayerScale after a norm without parameters": lambda p, x, i: x + p["w"] * (layer(x) @ p["m"]),
    "ReZero": lambda p, x, i: x + p["t"] * jnp.tanh(x),
    "FiLM": lambda p, x, i: x * (1 + x[:, :1] @ p["k"] + p["w"]) + x[:, :1] @ p["m"] + p["b"],
    "AdaLN": lambda p, x, i: layer(x) * (1 + x[:, :1] @ p["k"] + p["w"]) + x[:, :1] @ p["m"],
    "AdaLN-Zero": lambda p, x, i: (
        x + (x[:, :1] @ p["m"] + p["v"]) * ((layer(x) * (1 + x[:, :1] @ p["k"])) @ p["m"])
    ),
    "AdaIN": lambda p, x, i: (
        over(x, (1,)) * x[::-1].std(1, keepdims=True) + x.mean(1, keepdims=True)
    ),
    "an embedding's scale": lambda p, x, i: lookup(p["e"], i) * D**0.5 + p["pos"],
    "an embedding's learned scale": lambda p, x, i: (
        (lookup(p["e"], i) * p["w"] + p["pos"]) @ p["m"]
    ),
    "the scale of scores": lambda p, x, i: attend(p, x, D**-0.5),
    "a learned scale of scores": lambda p, x, i: attend(p, x, p["t"]),
    "weight norm": lambda p, x, i: (
        x @ (p["m"] / jnp.linalg.norm(p["m"], axis=0, keepdims=True) * p["w"]) + p["b"]
    ),
    "weight standardisation": lambda p, x, i: x @ (over(p["m"], (0,)) * p["w"]) + p["b"],
    "spectral norm": lambda p, x, i: (
        x @ (p["m"] / jnp.linalg.norm(p["m"] @ (p["v"] / jnp.linalg.norm(p["v"])))) + p["b"]
    ),
    "SwiGLU": lambda p, x, i: swish_gate(p, x) @ p["m"],
    "squeeze and excite": lambda p, x, i: (
        x * jax.nn.sigmoid(jax.nn.relu(x.mean(1, keepdims=True) @ p["k"] + p["b"]) @ p["m"])
    ),
    "Snake": lambda p, x, i: x + jnp.sin(x * p["w"]) ** 2 / (p["w"] + 1e-6),
    "PReLU": lambda p, x, i: jnp.where(x > 0, x, x * p["w"]),
    "a highway gate": lambda p, x, i: x * jax.nn.sigmoid(x @ p["m"] + p["b"]) + p["w"] * x,
    "RWKV's mixing in time": lambda p, x, i: (
        (x * p["w"] + jnp.roll(x, 1, 1) * (1 - p["w"])) @ p["m"]
    ),
    "Mamba's skip": lambda p, x, i: swish_gate(p, x) + p["w"] * x,
    "a depthwise convolution": lambda p, x, i: sum(
        p["s"][n] * jnp.roll(x, n, 1) for n in range(3)
    ) + p["b"],
    "scales of a quantised kernel": lambda p, x, i: (x @ jnp.round(p["m"])) * p["w"],
    "quantised activations": lambda p, x, i: (
        (jnp.round(x / jnp.abs(x).max(-1, keepdims=True)) @ p["m"])
        * jnp.abs(x).max(-1, keepdims=True) * p["w"]
    ),
    "(IA)3": lambda p, x, i: (x @ p["m"]) * p["w"],
    "DoRA": lambda p, x, i: (
        x @ (p["m"] + p["k"]) * (p["w"] / jnp.linalg.norm(p["m"] + p["k"], axis=0))
    ),
    "GRN of ConvNeXt": lambda p, x, i: x + p["b"] + p["w"] * (x * respond(x)),
    "local response normalisation": lambda p, x, i: (
        x / (2 + x**2 + jnp.roll(x, 1, -1) ** 2) ** 0.75 * p["w"]
    ),
    "router scales": lambda p, x, i: jax.nn.softmax(x @ p["m"], -1) * p["w"],
    "rows of a table after a norm": lambda p, x, i: rms(x) @ p["m"] * lookup(p["e"], i),
    "a demodulated kernel": lambda p, x, i: (
        (x @ p["m"]) * lax.rsqrt((p["m"] ** 2).sum(0) + 1e-6) + p["b"]
    ),
    "a head of one output": lambda p, x, i: rms(x) @ p["col"] + p["one"],
    "a head from a vector": lambda p, x, i: rms(x) @ p["w"][:, None],
    "a depthwise convolution after a norm": lambda p, x, i: convolve(rms(x), p["around"]),
    "dynamic tanh": lambda p, x, i: jnp.tanh(p["t"] * x) * p["w"] + p["b"],
    "a dense layer after a norm, its bias last": lambda p, x, i: x + layer(x) @ p["m"] + p["b"],
    "a residual with its variance kept": lambda p, x, i: (x + p["w"] * jnp.tanh(x)) / 2**0.5,
}  # fmt: skip


IN_VAIN = {
    "nothing": lambda p, x: None,
    "a number": lambda p, x: len(p),
    "a size": lambda p, x: (x @ p["k"]).shape[0],
    "the input": lambda p, x: x,
    "another model": lambda p, x: layer(x) * np.ones(D),
    "in jit": jax.jit(lambda p, x: (layer(x) * p["w"], x)[1]),
    "in jit, of jit": jax.jit(lambda p, x: jax.jit(lambda w, x: (x * w, x))(p["w"], x)[1]),
    "a constant": lambda p, x: jnp.zeros_like(layer(x) * p["w"]),
}


@pytest.mark.parametrize("name", IN_VAIN)
def test_a_function_whose_result_does_not_depend_on_params_is_refused(name):
    with pytest.raises(ArgumentError, match="returns nothing that depends on params: return"):
        lnt.discover_norms(IN_VAIN[name], PARAMS, shape(B, T, D))


def test_results_in_a_class_that_is_no_tree():
    class Output:
        def __init__(self, logits):
            self.logits = logits

    found = lnt.discover_norms(lambda p, x: Output(rms(x) * p["w"]), PARAMS, shape(B, T, D))
    assert list(found) == ["w"]


def test_numbers_of_numpy_are_handed_on_as_numbers():
    def apply(p, x, count, is_normal):
        return (rms(x) * p["w"])[:count] if is_normal else x * p["v"]

    found = lnt.discover_norms(apply, PARAMS, shape(T, D), np.int32(2), np.bool_(True))
    assert list(found) == ["w"]


BRANCHES = {
    "a branch": lambda p, x: rms(x) * p["w"] if x.sum() > 0 else x,
    "numpy": lambda p, x: np.asarray(x) * p["w"],
    "a size": lambda p, x: rms(x)[: int(x.sum())] * p["w"],
}


@pytest.mark.parametrize("name", BRANCHES)
def test_a_function_that_needs_values_is_refused(name):
    with pytest.raises(ArgumentError, match="apply_fn cannot be traced: it needs the values"):
        lnt.discover_norms(BRANCHES[name], PARAMS, shape(T, D))


@pytest.mark.parametrize("name", NOTHING)
def test_what_is_none_is_not_taken(name):
    found = trace(NOTHING[name])
    assert not set(found)
    assert {leaf.kind for leaf in found.norms} <= {"batch", "group"}
    assert not found.describe_rest()

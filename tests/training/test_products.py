"""bfloat16 on a CPU: products are multiplied as they are, and no kernel is widened for them."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.experimental import pallas

import lntune_jax as lnt
from lntune_jax.training import compiling as _compiling
from lntune_jax.training import products as _products

WIDTH = 32
# As in a run without the flags of the tests: on one thread XLA widens small products.
THREADS = {"xla_cpu_multi_thread_eigen": True}


def replace(function):
    return _products.replace_products(function)


def draw(*shape, seed=0):
    numbers = np.random.default_rng(seed).standard_normal(shape) / WIDTH**0.5
    return jnp.asarray(numbers, "bfloat16")


def looped(x, kernel):
    return jax.lax.scan(lambda x, _: (jnp.tanh(x @ kernel), None), x, length=3)[0]


def repeated(x, kernel):
    return jax.lax.fori_loop(0, 3, lambda _, x: jnp.tanh(x @ kernel), x)


def chosen(x, kernel):
    return jax.lax.cond(x[0, 0] > 0, lambda x: x @ kernel, lambda x: -(x @ kernel), x)


def checkpointed(x, kernel):
    return jax.grad(lambda x: jnp.square(jax.checkpoint(looped)(x, kernel)).sum())(x)


@jax.custom_vjp
def doubled(x, kernel):
    return 2 * (x @ kernel)


doubled.defvjp(lambda x, kernel: (doubled(x, kernel), kernel), lambda kernel, g: (g, kernel))


@jax.custom_jvp
def tripled(x, kernel):
    return 3 * (x @ kernel)


tripled.defjvp(lambda primals, tangents: (tripled(*primals), tangents[0]))


def divided(x, kernel):
    mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.P("data")
    return jax.shard_map(jnp.matmul, mesh=mesh, in_specs=(spec, jax.P()), out_specs=spec)(x, kernel)


FUNCTIONS = {
    "product": jnp.matmul,
    "transposed": lambda x, kernel: (x @ kernel.T) @ kernel.swapaxes(0, 1),
    "batch": lambda x, kernel: jnp.einsum("bij,bjk->bik", x.reshape(2, -1, WIDTH), kernel[None]),
    "jit": lambda x, kernel: jax.jit(jnp.matmul)(jax.jit(jnp.matmul)(x, kernel), kernel),
    "scan": looped,
    "while": repeated,
    "cond": chosen,
    "checkpoint": checkpointed,
    "gradient": jax.grad(lambda x, kernel: jnp.square(x @ kernel).sum(), (0, 1)),
    "custom_vjp": doubled,
    "custom_jvp": tripled,
    "shard_map": divided,
}


def list_results(compiled, shape, operation):
    """Where an operation gives float32 of a shape: a fusion's is in memory, its parts are not."""
    shape = ",".join(map(str, shape))
    return re.findall(rf"f32\[{shape}\]\S* {operation}\(", compiled.as_text())


@pytest.mark.parametrize("name", FUNCTIONS)
def test_no_kernel_is_widened_and_the_result_is_the_same(name):
    x, kernel = draw(128, WIDTH), draw(WIDTH, WIDTH, seed=1)
    compiled = [
        jax.jit(function).lower(x, kernel).compile(compiler_options=THREADS)
        for function in (FUNCTIONS[name], lnt.accumulate_in_float32(FUNCTIONS[name]))
    ]
    plain, direct = (bool(list_results(each, kernel.shape, "convert")) for each in compiled)
    if _compiling.widens_bfloat16("cpu"):
        assert (plain, direct) == (True, False)
    else:  # products of transposes are widened still, and nothing is done about it
        assert plain == direct == (name == "transposed")
    expected, found = (jax.tree.leaves(each(x, kernel)) for each in compiled)
    for want, have in zip(expected, found, strict=True):
        assert want.dtype == have.dtype == jnp.bfloat16
        want, have = (np.asarray(each, "float32") for each in (want, have))
        np.testing.assert_allclose(have, want, rtol=2**-7, atol=2**-7 * np.abs(want).max())


def test_other_products_and_kernels_in_pallas_stay_as_they_are():
    def others(x, kernel):
        exact = jnp.matmul(x.astype("float32"), kernel.astype("float32"))
        half = x.astype("float16") @ kernel.astype("float16")
        wide = jnp.matmul(x, kernel, preferred_element_type="float32")
        own = jnp.matmul(x, kernel, precision="highest")
        in_kernel = pallas.pallas_call(
            multiply, jax.ShapeDtypeStruct((8, WIDTH), "bfloat16"), interpret=True
        )(x, kernel)
        return exact, half, wide, own, in_kernel

    def multiply(x, kernel, result):
        result[...] = x[...] @ kernel[...]

    given = draw(8, WIDTH), draw(WIDTH, WIDTH)
    programs = [jax.make_jaxpr(each)(*given) for each in (others, replace(others))]
    assert str(programs[0]) == str(programs[1])


def test_trees_keys_names_and_effects_pass_through(capfd):
    def draw_more(tree, *, key, scale=None):
        assert scale is None
        jax.debug.print("drawn {}", tree["x"].shape[0])
        return {"y": tree["x"] @ tree["x"].T, "none": None}, jax.random.split(key)

    jitted = jax.jit(replace(draw_more))
    given, key = {"x": draw(8, WIDTH)}, jax.random.key(1)
    result, keys = jitted(given, key=key)
    expected, _ = draw_more(given, key=key)
    jax.effects_barrier()
    assert capfd.readouterr().out.count("drawn 8") == 2
    assert result["none"] is None
    np.testing.assert_array_equal(result["y"], expected["y"])
    np.testing.assert_array_equal(*(jax.random.key_data(k) for k in (keys, jax.random.split(key))))
    assert "@jit_draw_more" in jitted.lower(given, key=key).as_text()


@pytest.mark.parametrize(
    ("equation", "left", "right"),
    [
        ("ij,kj->ik", (1, 0), (1, 0)),
        ("bij,bjk->bik", (0, 2, 1), (0, 2, 1)),
        ("bij,bjk->bik", (1, 0, 2), (2, 1, 0)),
        ("abij,ajk->abik", (0, 3, 1, 2), (0, 2, 1)),
        ("aij,bj->aib", (1, 2, 0), (1, 0)),
    ],
)
def test_products_of_transposes_are_the_same_numbers(equation, left, right):
    """Also where an axis that stays, or one of the batch, changes its place."""
    sizes = dict(zip("abijk", (2, 3, 4, 5, 6), strict=True))
    x, y = (
        draw(*(sizes[axis] for axis in part), seed=seed).transpose(np.argsort(order))
        for seed, (part, order) in enumerate(
            zip(equation.split("->")[0].split(","), (left, right), strict=True)
        )
    )

    def multiply(x, y):
        return jnp.einsum(equation, x.transpose(left), y.transpose(right))

    expected, found = (np.asarray(each(x, y), "float32") for each in (multiply, replace(multiply)))
    np.testing.assert_allclose(found, expected, rtol=2**-7, atol=2**-7)


def test_a_body_that_is_called_twice_is_lowered_once():
    inner = jax.jit(lambda x, kernel: jnp.tanh(x @ kernel))
    twice = jax.jit(replace(lambda x, kernel: inner(inner(x, kernel), kernel)))
    text = twice.lower(draw(8, WIDTH), draw(WIDTH, WIDTH)).as_text()
    assert text.count("dot_general") == 1


@pytest.mark.parametrize(
    ("backend", "version", "expected"),
    [
        ("cpu", (0, 10, 2), True),
        ("cpu", (0, 11, 1), True),
        ("cpu", (0, 11, 2), False),
        ("gpu", (0, 10, 2), False),
    ],
)
def test_it_is_for_a_cpu_and_for_old_versions(monkeypatch, backend, version, expected):
    monkeypatch.setattr(_compiling.jax, "default_backend", lambda: backend)
    monkeypatch.setattr(_compiling.jax, "__version_info__", version)
    traced = str(jax.make_jaxpr(lnt.accumulate_in_float32(jnp.matmul))(draw(8, 8), draw(8, 8)))
    assert ("preferred_element_type=float32" in traced) == expected


LLAMA = {
    "model_type": "llama",
    "vocab_size": 70,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
}


@pytest.mark.parametrize("options", [{}, {"scan_layers": True}, {"remat": "norms"}])
def test_a_step_widens_no_kernel_and_trains_as_without(monkeypatch, options):
    """Not for its forward pass, not, transposed, for its backward pass, and not in a stack."""
    model = lnt.models.from_config(LLAMA, "CAUSAL_LM", dtype="bfloat16", **options)
    numbers = np.random.default_rng(0)

    def fill(leaf):
        drawn = 1 + 0.1 * numbers.standard_normal(leaf.shape)
        return jnp.asarray(drawn if leaf.shape[-1:] == leaf.shape else drawn - 1, leaf.dtype)

    params = jax.tree.map(fill, model.params)
    config, tx = lnt.LNTuningConfig(), optax.sgd(0.1)
    trainable, frozen = lnt.partition_params(params, config, name_map=model.name_map)
    tokens = jnp.arange(64, dtype=jnp.int32).reshape(4, 16)

    def take_step():
        step = lnt.make_train_step(
            lambda params, tokens: lnt.models.causal_lm_loss(model, params, tokens),
            tx,
            donate=False,
        )
        state = lnt.TrainState.create(trainable, tx)
        with jax.numpy_dtype_promotion("standard"):  # JAX promotes inside, when it lowers
            compiled = step.lower(state, frozen, tokens).compile(compiler_options=THREADS)
            state, metrics = step(state, frozen, tokens)
        shapes = {leaf.shape for leaf in jax.tree.leaves(frozen)}
        shapes = {part for shape in shapes for part in (shape, shape[1:]) if len(part) > 1}
        shapes |= {(*shape[:-2], *shape[:-3:-1]) for shape in shapes}
        widened = [each for shape in shapes for each in list_results(compiled, shape, "fusion")]
        return widened, metrics, state.trainable

    widened, metrics, trained = take_step()
    assert not widened
    monkeypatch.setattr("lntune_jax.training.step.widens_bfloat16", lambda platform: False)
    widened, expected, plain = take_step()
    assert bool(widened) == _compiling.widens_bfloat16("cpu")
    np.testing.assert_allclose(metrics["loss"], expected["loss"], rtol=2**-8)
    np.testing.assert_allclose(metrics["grad_norm"], expected["grad_norm"], rtol=2**-5)
    jax.tree.map(lambda *each: np.testing.assert_allclose(*each, atol=2e-3), trained, plain)

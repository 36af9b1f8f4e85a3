"""The norms of Flax Linen, Flax NNX and Equinox: the trace finds what the module types say."""

import equinox as eqx
import jax
import pytest
from flax import linen as nn
from flax import nnx

import lntune_jax as lnt
from lntune_jax.paths import flatten, join
from tests.support.traced import shape

X, IMAGES = shape(2, 5, 8), shape(2, 4, 4, 8)
KEY = jax.random.key(0)


def init(module, *args):
    return jax.eval_shape(module.init, KEY, *args)


def run_linen(module, x, **kwargs):
    def apply(variables, x):
        return module.apply(variables, x, mutable=["batch_stats"], **kwargs)

    return lnt.discover_norms(apply, init(module, x), x)


def describe(found):
    assert not found.ambiguous
    assert not found.opaque
    return {leaf.path: leaf.kind for leaf in found.norms}


def both(kind):
    return {"scale": kind, "bias": kind}


@pytest.mark.parametrize("fast", [True, False])
def test_linen_norms(fast):
    def kinds(module, x=X):
        return describe(run_linen(module, x))

    options = {"use_fast_variance": fast}
    assert kinds(nn.LayerNorm(**options)) == both("layer")
    with jax.numpy_dtype_promotion("standard"):
        assert kinds(nn.LayerNorm(dtype="bfloat16", **options)) == both("layer")
    assert kinds(nn.LayerNorm(reduction_axes=(1, 2), feature_axes=(1, 2), **options)) == both(
        "layer"
    )
    assert kinds(nn.LayerNorm(use_scale=False, **options)) == {"bias": "layer"}
    assert kinds(nn.RMSNorm(**options)) == {"scale": "rms"}
    assert kinds(nn.GroupNorm(2, **options), IMAGES) == both("group")
    assert kinds(nn.GroupNorm(1, **options), IMAGES) == both("group")
    assert kinds(nn.InstanceNorm(**options), IMAGES) == both("group")
    for is_running in (True, False):
        batch_norm = nn.BatchNorm(use_running_average=is_running, **options)
        assert kinds(batch_norm, IMAGES) == both("batch")
    masked = run_linen(nn.LayerNorm(**options), X, mask=jax.numpy.ones((2, 5, 1), bool))
    assert describe(masked) == both("layer")
    assert kinds(nn.WeightNorm(nn.Dense(6))) == {}


class Block(nn.Module):
    @nn.compact
    def __call__(self, x, _=None):
        h = nn.Dense(16)(nn.LayerNorm()(x))
        h = nn.BatchNorm(use_running_average=True)(nn.Dense(8)(nn.gelu(h)))
        h = h * self.param("gamma", nn.initializers.ones, (8,))  # a LayerScale
        return x + h + nn.MultiHeadDotProductAttention(2, normalize_qk=True)(nn.RMSNorm()(x)), None


class Stacked(nn.Module):
    block: type

    @nn.compact
    def __call__(self, x):
        axes = {"params": 0, "batch_stats": 0}
        layers = nn.scan(self.block, variable_axes=axes, split_rngs={"params": True}, length=3)
        return nn.LayerNorm(name="last")(layers(name="layers")(x, None)[0])


@pytest.mark.parametrize("block", [Block, nn.remat(Block)], ids=["scan", "scan and remat"])
def test_linen_layers(block):
    model = Stacked(block)
    variables, config = init(model, X), lnt.LNTuningConfig()
    found = lnt.discover_norms(model.apply, variables, X)
    by_type, _ = lnt.partition_params(variables, config, norms=lnt.norm_modules(model, X))
    by_trace, _ = lnt.partition_params(variables, config, norms=found)
    assert list(by_trace) == list(by_type) == list(found)
    assert len(by_trace) == 7
    layers = {leaf.layer_axes for leaf in found.norms if leaf.path.startswith("layers")}
    assert layers == {(0,)}


class Network(nnx.Module):
    def __init__(self, rngs):
        self.one = nnx.LayerNorm(8, rngs=rngs)
        self.two = nnx.RMSNorm(8, use_fast_variance=False, rngs=rngs)
        self.norm = nnx.BatchNorm(8, rngs=rngs)
        self.ln = nnx.GroupNorm(8, num_groups=2, rngs=rngs)
        self.dense = nnx.Linear(8, 8, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(2, 8, normalize_qk=True, decode=False, rngs=rngs)
        self.dropout = nnx.Dropout(0.1, rngs=rngs)
        self.table = nnx.Embed(5, 8, rngs=rngs)

    def __call__(self, x):
        x = self.two(self.dense(self.one(x))) + self.table.embedding[...]
        return self.dropout(self.attention(self.ln(self.norm(x))))


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_nnx(mode):
    model = nnx.eval_shape(lambda: Network(nnx.Rngs(0)))
    getattr(model, mode)()
    definition, state = nnx.split(model)
    config, modules = lnt.LNTuningConfig(), lnt.norm_modules(model)
    expected = list(lnt.partition_params(state, config, norms=modules).trainable)
    assert len(expected) == 5
    found = lnt.discover_norms(lambda state, x: nnx.merge(definition, state)(x), state, X)
    assert list(found) == expected
    assert list(lnt.partition_params(state, config, norms=found).trainable) == expected
    kinds = describe(found)
    assert kinds["norm.scale"] == kinds["norm.bias"] == "batch"
    assert kinds["ln.scale"] == kinds["ln.bias"] == "group"
    assert list(lnt.discover_norms(lambda model, x: model(x), model, X)) == expected


def test_nnx_scanned_layers():
    @nnx.split_rngs(splits=3)
    @nnx.vmap
    def make(rngs):
        return Network(rngs)

    layers = nnx.eval_shape(lambda: make(nnx.Rngs(0)))
    definition, state = nnx.split(layers)

    def apply(state, x):
        @nnx.scan(in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
        def run(x, layer):
            return layer(x)

        return run(x, nnx.merge(definition, state))

    found = lnt.discover_norms(apply, state, X)
    assert list(found) == list(
        lnt.partition_params(state, lnt.LNTuningConfig(), norms=lnt.norm_modules(layers)).trainable
    )
    assert {leaf.layer_axes for leaf in found.norms} == {(0,)}


class Tower(eqx.Module):
    layer: eqx.nn.LayerNorm
    rms: eqx.nn.RMSNorm
    group: eqx.nn.GroupNorm
    weight: eqx.nn.WeightNorm
    activation: object
    nothing: object = None
    name: str = "tower"

    def __call__(self, x):
        x = self.rms(self.activation(self.weight(self.layer(x))))
        return self.group(x)


def test_equinox():
    linear = eqx.nn.Linear(8, 8, key=KEY)
    weight = eqx.nn.WeightNorm(linear)
    model = Tower(
        eqx.nn.LayerNorm(8), eqx.nn.RMSNorm(8), eqx.nn.GroupNorm(2, 8), weight, jax.nn.gelu
    )
    expected = {join(leaf.path) for leaf in flatten(model)[0] if leaf.path[0] in ("layer", "rms")}
    arrays = {path for path in expected if path.endswith(("weight", "bias"))}
    for apply, x in (
        (lambda model, x: model(x), shape(8)),
        (lambda model, x: jax.vmap(model)(x), shape(3, 8)),
        (eqx.filter_jit(lambda model, x: jax.vmap(model)(x)), shape(3, 8)),
    ):
        found = lnt.discover_norms(apply, model, x)
        assert set(found) == arrays
        assert {n.kind for n in found.norms if n.path.startswith("group")} == {"group"}
        assert len(found.norms) == 6
    trainable, _ = lnt.partition_params(model, lnt.LNTuningConfig(), norms=found)
    assert set(trainable) == arrays
    image = lnt.discover_norms(lambda model, x: model(x), eqx.nn.LayerNorm((4, 6)), shape(4, 6))
    assert [leaf.axes for leaf in image.norms] == [(-2, -1)] * 2

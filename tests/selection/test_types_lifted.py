"""norm_modules under lifted transforms: a norm's path is where its parameters lie."""

import equinox as eqx
import flax
import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn
from flax import nnx

import lntune_jax as lnt

STACK = {"variable_axes": {"params": 0}, "split_rngs": {"params": True}}
SHARED = {"variable_broadcast": "params", "split_rngs": {"params": False}}
X = jnp.ones((4, 8))


class Block(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(8, name="fc")(nn.LayerNorm(name="q")(x))


class Step(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        return Block(name="inner")(x), None


class SetUp(nn.Module):
    def setup(self):
        self.q = nn.remat(nn.LayerNorm)()
        self.blocks = [nn.jit(Block)(), nn.remat(Block)()]

    def __call__(self, x):
        x = self.q(x)
        for block in self.blocks:
            x = block(x)
        return x


class OwnScale(nn.RMSNorm):
    @nn.compact
    def __call__(self, x):
        return x * self.param("own", nn.initializers.ones, (x.shape[-1],))


def call_body(module, x):
    return module(x)


def grow(module, x):
    x = module(x)  # a loop makes no parameters
    return nn.while_loop(lambda m, c: c[0] < 2, lambda m, c: (c[0] + 1, m(c[1])), module, (0, x))[1]


def make_partitioned(x):
    init = nn.with_partitioning(nn.initializers.ones, ("embed",))
    metadata = {"metadata_params": {nn.PARTITION_NAME: "layers"}}
    return nn.vmap(nn.LayerNorm, in_axes=0, **STACK, **metadata)(scale_init=init, name="q")(x)


LIFTED = {
    "plain": lambda x: nn.LayerNorm(name="q")(x),
    "remat": lambda x: nn.remat(nn.LayerNorm)(name="q")(x),
    "checkpoint": lambda x: nn.checkpoint(nn.LayerNorm)(name="q")(x),
    "jit": lambda x: nn.jit(nn.LayerNorm)(name="q")(x),
    "vmap": lambda x: nn.vmap(nn.RMSNorm, in_axes=0, **STACK)(name="q")(x),
    "vmap, shared": lambda x: nn.vmap(nn.RMSNorm, in_axes=0, variable_axes={"params": None},
                                      split_rngs={"params": False})(name="q")(x),
    "vmap in jit in remat": lambda x: nn.remat(nn.jit(nn.vmap(nn.RMSNorm, in_axes=0, **STACK)))(
        name="q"
    )(x),
    "vmap of vmap": lambda x: nn.vmap(nn.vmap(nn.RMSNorm, in_axes=0, **STACK), in_axes=0, **STACK)(
        name="q"
    )(x[None]),
    "vmap, boxed": make_partitioned,
    "map_variables": lambda x: nn.map_variables(nn.LayerNorm, "params", init=True)(name="q")(x),
    "add_metadata_axis": lambda x: nn.add_metadata_axis(nn.LayerNorm)(name="q")(x),
    "lambda": lambda x: nn.remat(call_body)(nn.LayerNorm(name="q"), x),
    "jit of a block": lambda x: nn.jit(Block)(name="b")(x),
    "remat of a block": lambda x: nn.remat(Block)(name="b")(x),
    "scan": lambda x: nn.scan(Step, length=3, **STACK)(name="b")(x, None)[0],
    "scan of a shared body": lambda x: nn.scan(Step, length=3, **SHARED)(name="b")(x, None)[0],
    "scan of remat": lambda x: nn.scan(nn.remat(Step), length=3, **STACK)(name="b")(x, None)[0],
    "remat_scan": lambda x: nn.remat_scan(Block, lengths=(2, 2))(name="b")(x),
    "cond": lambda x: nn.cond(x.sum() > 0, call_body, call_body, Block(name="b"), x),
    "switch": lambda x: nn.switch(0, [call_body, call_body], Block(name="b"), x),
    "while_loop": lambda x: grow(Block(name="b"), x),
    "while_loop of a norm": lambda x: grow(nn.LayerNorm(name="q"), x),
    "vjp": lambda x: nn.vjp(call_body, Block(name="b"), x)[0],
    "jvp": lambda x: nn.jvp(call_body, Block(name="b"), (x,), (x,), {})[0],
    "Sequential": lambda x: nn.Sequential([nn.remat(nn.LayerNorm)(), nn.Dense(8)])(x),
    "set up": lambda x: SetUp(name="s")(x),
    "twice": lambda x: call_twice(nn.remat(nn.LayerNorm)(name="q"), x),
    "own parameter": lambda x: OwnScale(name="q")(x),
    "BatchNorm": lambda x: nn.BatchNorm(use_running_average=True, name="bn")(
        nn.remat(nn.LayerNorm)(name="q")(x)
    ),
    "no parameters": lambda x: nn.LayerNorm(use_scale=False, use_bias=False, name="none")(
        nn.LayerNorm(name="q")(x)
    ),
}  # fmt: skip


def call_twice(module, x):
    return module(module(x))


def make_model(body):
    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            cls = self.param("cls", nn.initializers.zeros, (8,))
            kernel = self.param("kernel", nn.initializers.zeros, (8, 8))
            return body(x + cls @ kernel)

    return Model()


@pytest.mark.parametrize("name", LIFTED)
@pytest.mark.parametrize("is_traced_before", [False, True])
def test_norms_are_where_their_parameters_are(name, is_traced_before):
    model = make_model(LIFTED[name])

    def init():
        return jax.eval_shape(lambda: model.init(jax.random.key(0), X))

    variables = init() if is_traced_before else None
    norms = lnt.norm_modules(model, X)
    # The trace leaves nothing behind in Flax's caches.
    again = init()
    assert variables is None or jax.tree.structure(variables) == jax.tree.structure(again)
    flat = flax.traverse_util.flatten_dict(nn.meta.unbox(again)["params"], sep=".")
    expected = {p for p in flat if p.endswith(("scale", "own")) and not p.startswith("bn")}
    expected |= {p for p in flat if p.endswith("bias") and p.removesuffix("bias") + "scale" in flat}
    expected = {p for p in expected if not p.startswith("bn")}
    assert expected
    trainable, _ = lnt.partition_params(again, lnt.LNTuningConfig(), norms=norms)
    assert set(trainable) == expected


def test_a_model_that_is_a_norm_has_the_empty_path():
    for model in (nn.LayerNorm(), nn.remat(nn.LayerNorm)()):
        assert lnt.norm_modules(model, X) == {""}
        variables = model.init(jax.random.key(0), X)
        trainable, _ = lnt.partition_params(variables, lnt.LNTuningConfig(), norms=[""])
        assert set(trainable) == {"scale", "bias"}


def test_nnx_modules_that_a_transform_made():
    class Model(nnx.Module):
        def __init__(self, rngs):
            @nnx.split_rngs(splits=3)
            @nnx.vmap
            def make(rngs):
                return nnx.LayerNorm(8, rngs=rngs)

            self.stack = make(rngs)
            self.kernel = nnx.Param(jnp.ones((8, 8)))
            self.first = nnx.remat(lambda m: m)(nnx.RMSNorm(8, rngs=rngs))
            self.named = nnx.Dict({"a": nnx.LayerNorm(8, rngs=rngs)})

    model = Model(nnx.Rngs(0))
    norms = {"stack", "first", "named.a"}
    assert lnt.norm_modules(model) == norms
    leaves = {"stack.scale", "stack.bias", "first.scale", "named.a.scale", "named.a.bias"}
    for tree in (model, nnx.state(model), nnx.to_pure_dict(nnx.state(model))):
        found, _ = lnt.partition_params(tree, lnt.LNTuningConfig(), norms=norms)
        assert set(found) == leaves


def test_nnx_norms_that_are_shared_are_named_as_in_the_state():
    class Model(nnx.Module):
        def __init__(self, rngs):
            self.z = nnx.LayerNorm(8, rngs=rngs)
            self.a = nnx.Linear(8, 8, rngs=rngs)
            self.b = self.z

    model = Model(nnx.Rngs(0))
    state = nnx.state(model)
    trainable, _ = lnt.partition_params(state, lnt.LNTuningConfig(), norms=lnt.norm_modules(model))
    assert len(trainable) == 2


def test_equinox_modules_that_a_transform_made():
    class Model(eqx.Module):
        stack: eqx.nn.LayerNorm
        kernel: jax.Array

    stack = eqx.filter_vmap(lambda _: eqx.nn.LayerNorm(8))(jnp.arange(3))
    model = Model(stack, jnp.ones((8, 8)))
    assert lnt.norm_modules(model) == {"stack"}
    trainable, _ = lnt.partition_params(model, lnt.LNTuningConfig())
    assert {k: v.shape for k, v in trainable.items()} == {
        "stack.weight": (3, 8),
        "stack.bias": (3, 8),
    }
    root = eqx.nn.LayerNorm(8)
    assert lnt.norm_modules(root) == {""}
    assert set(lnt.partition_params(root, lnt.LNTuningConfig())[0]) == {"weight", "bias"}


def test_norms_without_parameters_are_not_listed():
    linen = nn.Sequential([nn.LayerNorm(use_scale=False, use_bias=False), nn.RMSNorm()])
    assert lnt.norm_modules(linen, X) == {"layers_1"}

    class Model(nnx.Module):
        def __init__(self, rngs):
            self.a = nnx.LayerNorm(8, use_scale=False, use_bias=False, rngs=rngs)
            self.b = nnx.RMSNorm(8, rngs=rngs)

    assert lnt.norm_modules(Model(nnx.Rngs(0))) == {"b"}

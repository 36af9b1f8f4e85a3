"""Which leaves are norm leaves: one tree per naming, and by type."""

from contextlib import nullcontext

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest
from flax import linen, nnx

import lntune_jax as lnt
from lntune_jax.errors import SelectionError, TreeError, UncertainNormWarning
from lntune_jax.selection.norms import judge_name
from tests.support.trees import NAMINGS, norm, shape


@pytest.mark.parametrize("name", NAMINGS)
def test_selects_the_norms_of_each_naming_and_nothing_else(name):
    tree, expected = NAMINGS[name]
    is_told = name == "sequential, by shape"  # the others give no warning
    with pytest.warns(UncertainNormWarning, match="layers_1") if is_told else nullcontext():
        trainable, _ = lnt.partition_params(tree, lnt.LNTuningConfig())
    assert set(trainable) == expected


@pytest.mark.parametrize(
    ("kind", "names"),
    {
        "norm": "LayerNorm LayerNorm_3 layer_norm input_layernorm ln_1 ln1 ln_f lnf norm norm1 "
        "RMSNorm_0 pre_layrnorm q_norm k_norm final_norm ln_attn norm_final LlamaRMSNorm "
        "T5LayerNorm FusedLayerNorm_0 qnorm layernorm_before rms_normalization norm_f "
        "layernorm_embedding norm_conv ln_embed local_attn_norm weight_layer_norm local_norm",
        "group norm": "GroupNorm GroupNorm_0 group_norm groupnorm InstanceNorm_1 norm_group gn gn1",
        "other": "BatchNorm_0 batch_norm bn bn1 batchnorm SyncBatchNorm weight_norm spectral_norm "
        "local_response_norm normalizer normal dense mlp normalization attention scale kernel 0 "
        "layers_1",
    }.items(),
)
def test_names(kind, names):
    assert {name: judge_name(name) for name in names.split()} == dict.fromkeys(names.split(), kind)


def test_where_nothing_trains_a_group_norm_does_not_hide_what_may_be_a_norm():
    with pytest.raises(SelectionError, match=r"may be norms, but .*'final'.*names it: 'gn'"):
        lnt.select({"final": norm(), "gn": norm()}, lnt.LNTuningConfig())
    with pytest.raises(SelectionError, match=r"no LayerNorm or RMSNorm leaf.*names it: 'gn'"):
        lnt.select({"gn": norm()}, lnt.LNTuningConfig())


def test_group_norm_trains_only_where_it_is_named():
    tree = {"GroupNorm_0": norm(), "LayerNorm_0": norm()}

    def select(**fields):
        return set(lnt.partition_params(tree, lnt.LNTuningConfig(**fields))[0])

    layer = {"LayerNorm_0.scale", "LayerNorm_0.bias"}
    group = {"GroupNorm_0.scale", "GroupNorm_0.bias"}
    assert select() == layer
    assert select(target_modules=".*") == layer
    assert select(target_modules=["GroupNorm_0"]) == group
    assert select(target_modules=r".*(Group|Layer)Norm.*") == layer | group
    tree = {"unet": {"gn1": norm(), "ln": norm()}, "sign": {"GroupNorm_0": norm()}}
    assert select(target_modules=["unet"]) == {"unet.ln.scale", "unet.ln.bias"}
    assert select(target_modules=["gn1"]) == {"unet.gn1.scale", "unet.gn1.bias"}
    with pytest.raises(SelectionError, match="nothing trains"):
        select(target_modules="sign.*")


class NNXModel(nnx.Module):
    def __init__(self, rngs):
        self.first = nnx.LayerNorm(4, rngs=rngs)  # a name that says nothing
        self.norm_like = nnx.Linear(4, 4, use_bias=False, rngs=rngs)
        self.norm = nnx.BatchNorm(4, rngs=rngs)  # a name that misleads
        self.ln_group = nnx.GroupNorm(4, num_groups=2, rngs=rngs)
        self.blocks = nnx.List([nnx.RMSNorm(4, rngs=rngs), nnx.Linear(4, 4, rngs=rngs)])
        self.dropout = nnx.Dropout(0.1, rngs=rngs)


NNX_LEAVES = {"first.scale", "first.bias", "blocks.0.scale"}


def test_nnx_module_by_type():
    model = NNXModel(nnx.Rngs(0))
    trainable, frozen = lnt.partition_params(model, lnt.LNTuningConfig())
    assert set(trainable) == NNX_LEAVES
    assert isinstance(frozen, NNXModel)
    assert lnt.norm_modules(model) == {"first", "blocks.0"}


def test_nnx_state_with_the_modules_of_the_model():
    model = NNXModel(nnx.Rngs(0))
    state = nnx.state(model)
    norms = lnt.norm_modules(model)
    trainable, frozen = lnt.partition_params(state, lnt.LNTuningConfig(), norms=norms)
    assert set(trainable) == NNX_LEAVES
    assert isinstance(frozen, nnx.State)
    report = lnt.report_params(state, lnt.LNTuningConfig(), norms=norms)
    roles = {leaf.path: leaf.role for leaf in report.leaves}
    assert roles["norm.mean"] == roles["dropout.rngs.count"] == "state"
    # 12 in norms, 16 + 20 in linear layers, 8 each in batch and group norm: no statistics
    assert (report.trainable, report.total) == (12, 64)


def test_nnx_state_by_names():
    class Model(nnx.Module):
        def __init__(self, rngs):
            self.ln_1 = nnx.LayerNorm(4, rngs=rngs)
            self.bn = nnx.BatchNorm(4, rngs=rngs)
            self.norm2 = nnx.BatchNorm(4, rngs=rngs)

    for tree in (nnx.state(Model(nnx.Rngs(0))), nnx.state(Model(nnx.Rngs(0)), nnx.Param)):
        config = lnt.LNTuningConfig(target_modules=["ln_1"])
        assert set(lnt.partition_params(tree, config)[0]) == {"ln_1.scale", "ln_1.bias"}
    pure = nnx.to_pure_dict(nnx.state(Model(nnx.Rngs(0))))
    assert set(lnt.partition_params(pure, lnt.LNTuningConfig())[0]) == {"ln_1.scale", "ln_1.bias"}


class EquinoxModel(eqx.Module):
    first: eqx.nn.LayerNorm
    second: eqx.nn.RMSNorm
    norm: eqx.nn.GroupNorm
    linear: eqx.nn.Linear
    activation: object
    missing: object


def test_equinox_by_type():
    model = EquinoxModel(
        eqx.nn.LayerNorm((4, 6)),
        eqx.nn.RMSNorm(4),
        eqx.nn.GroupNorm(2, 4),
        eqx.nn.Linear(4, 4, key=jax.random.key(0)),
        jax.nn.gelu,
        None,
    )
    trainable, frozen = lnt.partition_params(model, lnt.LNTuningConfig())
    assert set(trainable) == {"first.weight", "first.bias", "second.weight", "second.bias"}
    assert frozen.activation is model.activation
    assert frozen.missing is None
    assert lnt.norm_modules(model) == {"first", "second"}
    abstract = eqx.filter_eval_shape(lambda: model)
    assert set(lnt.partition_params(abstract, lnt.LNTuningConfig())[0]) == set(trainable)


def test_linen_by_type():
    class Model(linen.Module):
        @linen.compact
        def __call__(self, x):
            x = linen.LayerNorm(name="alpha")(x)
            x = linen.Dense(4, name="norm")(x)
            return linen.BatchNorm(use_running_average=True, name="ln_2")(x)

    model, x = Model(), jnp.ones((1, 4))
    norms = lnt.norm_modules(model, x)
    assert norms == {"alpha"}
    variables = jax.eval_shape(lambda: model.init(jax.random.key(0), x))
    trainable, _ = lnt.partition_params(variables, lnt.LNTuningConfig(), norms=norms)
    assert set(trainable) == {"alpha.scale", "alpha.bias"}


def test_linen_partitioned_boxes_are_no_segment():
    boxed = linen.with_partitioning(linen.initializers.ones, ("model",))
    model = linen.LayerNorm(scale_init=boxed)
    params = model.init(jax.random.key(0), jnp.ones((1, 4)))
    trainable, frozen = lnt.partition_params(
        {"params": {"ln": params["params"]}}, lnt.LNTuningConfig()
    )
    assert set(trainable) == {"ln.scale", "ln.bias"}
    merged = lnt.merge_params(trainable, frozen)
    assert isinstance(merged["params"]["ln"]["scale"], linen.Partitioned)


def test_norm_modules_refuses_a_parameter_tree():
    with pytest.raises(TreeError, match="not its parameters"):
        lnt.norm_modules({"ln_1": norm()})


def test_norms_may_be_one_path_and_must_be_paths():
    tree = {"params": {"alpha": norm()}}
    for norms in ("alpha", "params.alpha", [("alpha",)]):
        trainable, _ = lnt.partition_params(tree, lnt.LNTuningConfig(), norms=norms)
        assert set(trainable) == {"alpha.scale", "alpha.bias"}
    with pytest.raises(TreeError, match="norms must be module paths"):
        lnt.partition_params(tree, lnt.LNTuningConfig(), norms=5)


def test_a_leaf_in_the_root_is_no_norm():
    with pytest.raises(SelectionError, match=r"nothing trains.*norms="):
        lnt.partition_params({"scale": shape(4)}, lnt.LNTuningConfig())


def test_a_module_that_is_a_norm_itself_has_the_empty_path():
    params = {"weight": jnp.ones(4), "bias": jnp.ones(4)}
    trainable, _ = lnt.partition_params(params, lnt.LNTuningConfig(), norms=[""])
    assert list(trainable) == ["bias", "weight"]

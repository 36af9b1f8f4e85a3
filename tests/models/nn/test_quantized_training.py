"""Norm-only training over quantised bases: it learns, moves nothing else, and comes back whole."""

from __future__ import annotations

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import qwix
from flax import linen as nn
from flax import nnx

import lntune_jax as lnt
from lntune_jax.compat import find_held
from lntune_jax.errors import AdapterError, ModelError, ZeroGradientWarning
from lntune_jax.models import from_pretrained, merge_checkpoint
from tests.support.checkpoints import assert_same
from tests.support.quantizing import MODELS, TOKENS, loss_of
from tests.support.small import relax

STEPS = 30
CONFIG = lnt.LNTuningConfig()


def train(model, steps=STEPS):
    """The norms after some steps, and the losses on the way."""
    tx = relax(optax.adam(1e-2))
    trainable, frozen = lnt.partition_params(model.params, CONFIG)
    before = jax.tree.map(np.asarray, frozen)
    step = lnt.make_train_step(lambda params: loss_of(model)(params), tx)
    state, losses = lnt.TrainState.create(trainable, tx), []
    for _ in range(steps):
        state, metrics = step(state, frozen)
        losses.append(float(metrics["loss"]))
    assert_same(frozen, before)
    assert step.compilations() == 1
    return state.trainable, losses


@pytest.mark.parametrize("kind", ["int8", "nf4"])
@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2", "olmo2", "phi3", "bert"])
def test_thirty_steps_and_back(tmp_path, name, kind):
    directory, task = MODELS[name]
    model = from_pretrained(directory, task, quantize=kind)
    # Copies, since the step gives its state's memory away.
    start = {p: np.asarray(x) for p, x in lnt.partition_params(model.params, CONFIG)[0].items()}
    model.params.update(jax.tree.map(jnp.copy, model.params))
    trainable, losses = train(model)
    assert losses[-1] < 0.9 * losses[0], losses
    moved = [path for path in trainable if (np.asarray(trainable[path]) != start[path]).any()]
    assert moved == list(start)
    base = from_pretrained(directory, task, quantize=kind)
    path = lnt.save_adapter(tmp_path / "adapter", trainable, CONFIG, base=base.params)
    fresh = from_pretrained(directory, task, quantize=kind)
    restored = lnt.restore_adapter(path, fresh.params)
    tuned = lnt.merge_params(trainable, lnt.partition_params(base.params, CONFIG).frozen)
    assert_same(restored, tuned)
    run = jax.jit(lambda params: jax.tree.leaves(fresh.apply(params, TOKENS)))
    assert_same(run(restored), run(tuned))
    lnt.export_peft(tmp_path / "peft", trainable, CONFIG)
    assert_same(lnt.import_peft(tmp_path / "peft", fresh.params), tuned)


@pytest.fixture(scope="module")
def tuned_over_int8(tmp_path_factory):
    directory, task = MODELS["llama"]
    model = from_pretrained(directory, task, quantize="int8")
    trainable = {p: x * 1.5 for p, x in lnt.partition_params(model.params, CONFIG)[0].items()}
    path = tmp_path_factory.mktemp("tuned") / "adapter"
    return lnt.save_adapter(path, trainable, CONFIG, base=model.params)


@pytest.mark.parametrize(
    ("quantize", "found"),
    [(None, "none found"), ("nf4", "nf4 found")],
)
def test_a_quantised_base_is_another_base(tuned_over_int8, quantize, found):
    other = from_pretrained(*MODELS["llama"], quantize=quantize)
    with pytest.raises(AdapterError, match="quantised kernels: int8 expected, " + found):
        lnt.restore_adapter(tuned_over_int8, other.params)
    # The way to do it all the same, which the message names.
    trainable, config = lnt.load_adapter(tuned_over_int8)
    frozen = lnt.partition_params(other.params, config).frozen
    whole = lnt.merge_params(trainable, frozen)
    np.testing.assert_array_equal(whole["model"]["norm"]["scale"], trainable["model.norm.scale"])


def test_a_float_base_s_adapter_is_refused_by_a_quantised_one(tmp_path):
    whole, few = (from_pretrained(*MODELS["gpt2"], quantize=kind) for kind in (None, "int4"))
    trainable, _ = lnt.partition_params(whole.params, CONFIG)
    path = lnt.save_adapter(tmp_path / "adapter", trainable, CONFIG, base=whole.params)
    with pytest.raises(AdapterError, match="quantised kernels: none expected, int4 found"):
        lnt.restore_adapter(path, few.params)


def test_the_other_precision_of_a_quantised_base_is_the_same_base(tuned_over_int8):
    half = from_pretrained(*MODELS["llama"], quantize="int8", dtype="bfloat16")
    restored = lnt.restore_adapter(tuned_over_int8, half.params)
    assert restored["model"]["norm"]["scale"].dtype == jnp.bfloat16


def test_it_merges_into_the_float_checkpoint(tmp_path, tuned_over_int8):
    from safetensors.numpy import load_file

    directory, _ = MODELS["llama"]
    merged = merge_checkpoint(directory, tuned_over_int8, tmp_path / "merged")
    assert merged.quantized == "int8"
    assert merged.compared > 0
    base, found = (load_file(at / "model.safetensors") for at in (directory, merged.path))
    trainable, _ = lnt.load_adapter(tuned_over_int8)
    assert len(merged.tuned) == len(trainable)
    for key, tensor in base.items():
        path = key.removesuffix("weight") + "scale"
        expected = trainable.get(path, tensor).astype(tensor.dtype)
        np.testing.assert_array_equal(found[key], expected)


class OwnNnx(nnx.Module):
    """A person's own model, for qwix to quantise."""

    def __init__(self, rngs):
        self.ln = nnx.LayerNorm(8, rngs=rngs)
        self.fc = nnx.Linear(8, 4, rngs=rngs)

    def __call__(self, x):
        return self.fc(self.ln(x))


class OwnLinen(nn.Module):
    """The same in Linen."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(4)(nn.LayerNorm()(x))


X = jax.random.normal(jax.random.key(0), (6, 8))


def own_model(provider, kind):
    """Its parameters, a loss of them, and the module with what `norm_modules` needs."""
    with jax.numpy_dtype_promotion("standard"):
        if kind == "nnx":
            module = qwix.quantize_model(OwnNnx(nnx.Rngs(0)), provider, X)
            graph, params = nnx.split(module)
            rest = ()

            def apply(params):
                return nnx.merge(graph, params)(X)

        else:
            module = qwix.quantize_model(OwnLinen(), provider)
            params = module.init(jax.random.key(0), X)["params"]
            rest = (X,)

            def apply(params):
                return module.apply({"params": params}, X)

    def loss(params):
        with jax.numpy_dtype_promotion("standard"):
            return jnp.square(apply(params) - 1).mean()

    return params, loss, (module, *rest)


# qwix calls methods that Flax would rather have as functions.
_ITS_OWN = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@_ITS_OWN
@pytest.mark.parametrize("kind", ["nnx", "linen"])
@pytest.mark.parametrize(
    ("act", "reported"),
    [
        ({}, False),
        ({"act_qtype": "int8", "act_calibration_method": "fixed,-3,3"}, True),
        # A range taken from the data has a gradient, though the rounded values have none.
        ({"act_qtype": "int8"}, False),
    ],
)
def test_activations_quantised_by_qwix(kind, act, reported):
    """Refused where the module is seen; a step sees gradients alone, and reports only zeros."""
    provider = qwix.PtqProvider([qwix.QuantizationRule(weight_qtype="int8", **act)])
    params, loss, module = own_model(provider, kind)
    tx = optax.sgd(0.1)
    trainable, frozen = lnt.partition_params(params, CONFIG)
    name = "ln" if kind == "nnx" else "LayerNorm_0"
    assert sorted(trainable) == [f"{name}.bias", f"{name}.scale"]
    step = lnt.make_train_step(loss, tx, donate=False)
    with warnings.catch_warnings(record=True) as caught, jax.numpy_dtype_promotion("standard"):
        warnings.simplefilter("always")
        _, metrics = step(lnt.TrainState.create(trainable, tx), frozen)
    assert any(warning.category is ZeroGradientWarning for warning in caught) == reported
    assert (float(metrics["grad_norm"]) == 0) == reported
    if not act:
        assert lnt.norm_modules(*module) == {name}
        return
    with pytest.raises(ModelError, match=r"act_qtype int8.*wrong gradients"):
        lnt.norm_modules(*module)
    weights_alone = qwix.PtqProvider([qwix.QuantizationRule(weight_qtype="int8")])
    params, exact, _ = own_model(weights_alone, kind)  # the same kernels
    right = lnt.value_and_grad(exact)(*lnt.partition_params(params, CONFIG))[1][f"{name}.bias"]
    wrong = lnt.value_and_grad(loss)(trainable, frozen)[1][f"{name}.bias"]
    assert float(jnp.linalg.norm(wrong - right)) > 0.5 * float(jnp.linalg.norm(right))


@_ITS_OWN
def test_training_with_straight_through_gradients_is_not_refused():
    rules = [qwix.QtRule(weight_qtype="int8", act_qtype="int8")]
    params, loss, module = own_model(qwix.QtProvider(rules), "nnx")
    assert lnt.norm_modules(*module) == {"ln"}
    halves = lnt.partition_params(params, CONFIG)
    _, gradient = lnt.value_and_grad(loss)(*halves)
    assert all(bool(jnp.any(leaf != 0)) for leaf in gradient.values())


def test_wrappers_that_hold_themselves_or_nothing_yet():
    def wrap(provider):
        def method():
            return provider, method, later  # noqa: F821 - deleted below

        later = 0
        del later
        return method

    provider = qwix.PtqProvider([])
    assert find_held(wrap(provider), qwix.PtqProvider) == [provider]

"""Norms and qwix's LoRA in one run: which leaves train, two files, and both put back."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import qwix
from flax import linen as nn
from flax import nnx
from safetensors.numpy import load_file, save_file

import lntune_jax as lnt
from lntune_jax.errors import AdapterError
from tests.support.source_checks import assert_moved_only, assert_same_bits, read_arrays, run_page

X = jax.random.normal(jax.random.key(1), (8, 16))
NORMS = ["first", "last"]
NORM_LEAVES = ["first.bias", "first.scale", "last.scale"]
LORA_LEAVES = [f"{name}.kernel_lora_{factor}" for name in ("down", "up") for factor in "ab"]
CONFIG = lnt.LNTuningConfig()
BOTH = CONFIG.replace(modules_to_save=r".*_lora_[ab]")
# qwix calls methods that Flax would rather have as functions, and its arithmetic mixes dtypes.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture(autouse=True)
def _relaxed():
    with jax.numpy_dtype_promotion("standard"):
        yield


class Nnx(nnx.Module):
    """A residual block between two norms whose names say nothing."""

    def __init__(self):
        rngs = nnx.Rngs(0)
        self.first = nnx.LayerNorm(16, rngs=rngs)
        self.up = nnx.Linear(16, 32, rngs=rngs)
        self.down = nnx.Linear(32, 16, rngs=rngs)
        self.last = nnx.RMSNorm(16, rngs=rngs)

    def __call__(self, x):
        return self.last(x + self.down(nnx.gelu(self.up(self.first(x)))))


class Linen(nn.Module):
    """The same in Linen."""

    @nn.compact
    def __call__(self, x):
        hidden = nn.gelu(nn.Dense(32, name="up")(nn.LayerNorm(name="first")(x)))
        return nn.RMSNorm(name="last")(x + nn.Dense(16, name="down")(hidden))


def make_provider(**settings):
    return qwix.LoraProvider(module_path="up|down", rank=2, alpha=4.0, **settings)


def make_nnx(seed, **settings):
    """Parameters with LoRA's, those of the plain model, and what computes."""
    model = qwix.apply_lora_to_model(Nnx(), make_provider(**settings), X, rngs=nnx.Rngs(seed))
    graphdef, params = nnx.split(model)
    return params, nnx.state(Nnx()), lambda params: nnx.merge(graphdef, params)(X)


def make_linen(seed, **settings):
    model, plain = qwix.apply_lora_to_model(Linen(), make_provider(**settings)), Linen()
    base = plain.init(jax.random.key(0), X)["params"]
    params = model.init(jax.random.key(0), X)["params"]
    others = model.init(jax.random.key(seed), X)["params"]
    for layer in ("up", "down"):
        params[layer]["kernel_lora_a"] = others[layer]["kernel_lora_a"]
    return params, base, lambda params: model.apply({"params": params}, X)


MAKERS = pytest.mark.parametrize("make", [make_nnx, make_linen])


def train(params, apply, steps=5):
    trainable, frozen = lnt.partition_params(params, BOTH, norms=NORMS)
    tx = lnt.adamw(BOTH, 1e-2, head_learning_rate=1e-3)
    step = lnt.make_train_step(lambda params: jnp.square(apply(params) - 1).mean(), tx, BOTH)
    state = lnt.TrainState.create(trainable, tx)
    losses = []
    for _ in range(steps):
        state, metrics = step(state, frozen)
        losses.append(float(metrics["loss"]))
    return state.trainable, frozen, losses


@MAKERS
def test_norms_and_factors_train_and_nothing_else(make):
    params, _, apply = make(1)
    before = read_arrays(params)
    trained, frozen, losses = train(params, apply)
    assert sorted(trained) == sorted(NORM_LEAVES + LORA_LEAVES)
    assert losses[-1] < losses[0]
    merged = lnt.merge_params(trained, frozen)
    labels, _ = jax.tree_util.tree_flatten_with_path(lnt.label_params(params, BOTH, norms=NORMS))
    moved = [jax.tree_util.keystr(path) for path, label in labels if label == "trainable"]
    assert_moved_only(before, read_arrays(merged), moved)
    kept = {id(leaf) for leaf in jax.tree.leaves(params)}
    assert all(id(leaf) in kept for leaf in jax.tree.leaves(frozen))  # no copy of any


@MAKERS
def test_each_kind_has_a_rate_of_its_own(make):
    params, _, _ = make(1)
    trainable, _ = lnt.partition_params(params, BOTH, norms=NORMS)
    tx = lnt.adamw(BOTH, 1e-2, head_learning_rate=1e-3)
    ones = jax.tree.map(jnp.ones_like, trainable)
    updates, _ = tx.update(ones, tx.init(trainable), trainable)
    for path in NORM_LEAVES + LORA_LEAVES:
        np.testing.assert_allclose(
            updates[path], -1e-2 if path in NORM_LEAVES else -1e-3, rtol=1e-5
        )


@MAKERS
@pytest.mark.parametrize("of", ["params with factors", "plain params"])
def test_the_norms_file_fits_the_base_with_and_without_factors(make, of, tmp_path):
    """The factors are no part of the base, whichever tree is saved with."""
    params, plain, apply = make(1)
    trained, _, _ = train(params, apply)
    norms = {path: trained[path] for path in NORM_LEAVES}
    base = plain if of == "plain params" else params
    lnt.save_adapter(tmp_path / "norms", norms, CONFIG, base=base, norms=NORMS)
    trained_on, fresh_plain, _ = make(2)  # other factors
    for tree in (trained_on, fresh_plain):
        restored = lnt.restore_adapter(tmp_path / "norms", tree)
        found, _ = lnt.partition_params(restored, CONFIG, norms=NORMS)
        assert_same_bits(read_arrays(found), read_arrays(norms))


@MAKERS
def test_another_base_is_still_another_base(make, tmp_path):
    params, _, apply = make(1)
    trained, _, _ = train(params, apply)
    norms = {path: trained[path] for path in NORM_LEAVES}
    lnt.save_adapter(tmp_path / "norms", norms, CONFIG, base=params, norms=NORMS)
    other = jax.tree.map(lambda leaf: leaf + 1, params)
    with pytest.raises(AdapterError, match="another base"):
        lnt.restore_adapter(tmp_path / "norms", other)


@MAKERS
@pytest.mark.parametrize("settings", [{}, {"weight_qtype": "int8"}])
def test_two_files_give_the_same_outputs(make, settings, tmp_path):
    params, _, apply = make(1, **settings)
    trained, frozen, _ = train(params, apply)
    norms = {path: leaf for path, leaf in trained.items() if path in NORM_LEAVES}
    factors = {path: np.asarray(trained[path]) for path in LORA_LEAVES}
    lnt.save_adapter(tmp_path / "norms", norms, CONFIG, base=params, norms=NORMS)
    save_file(factors, tmp_path / "lora.safetensors")

    fresh, _, apply_fresh = make(2, **settings)
    restored = lnt.restore_adapter(tmp_path / "norms", fresh)
    trainable, rest = lnt.partition_params(restored, BOTH, norms=NORMS)
    read = load_file(tmp_path / "lora.safetensors")
    whole = lnt.merge_params({**trainable, **read}, rest)
    merged = lnt.merge_params(trained, frozen)
    assert_same_bits(read_arrays(whole), read_arrays(merged))
    outputs = jax.jit(apply_fresh)
    np.testing.assert_array_equal(outputs(whole), outputs(merged))
    assert np.any(outputs(whole) != outputs(params))


@MAKERS
def test_peft_gets_the_norms(make, tmp_path):
    params, _, apply = make(1)
    trained, _, _ = train(params, apply)
    norms = {path: trained[path] for path in NORM_LEAVES}
    path = lnt.export_peft(tmp_path / "peft", norms, CONFIG, base=params, norms=NORMS)
    config = json.loads((path / "adapter_config.json").read_text())
    assert sorted(config["target_modules"]) == NORMS
    keys = load_file(path / "adapter_model.safetensors")
    assert sorted(keys) == [
        "base_model.model.first.ln_tuning_layers.bias",
        "base_model.model.first.ln_tuning_layers.weight",
        "base_model.model.last.ln_tuning_layers.weight",
    ]


def test_one_file_for_both(tmp_path):
    params, plain, apply = make_nnx(1)
    trained, frozen, _ = train(params, apply)
    lnt.save_adapter(tmp_path / "both", trained, BOTH, base=params, norms=NORMS)
    restored = lnt.restore_adapter(tmp_path / "both", make_nnx(2)[0])
    assert_same_bits(read_arrays(restored), read_arrays(lnt.merge_params(trained, frozen)))
    with pytest.raises(AdapterError, match="kernel_lora_a"):
        lnt.restore_adapter(tmp_path / "both", plain)


def test_a_head_beside_the_factors():
    params, _, _ = make_nnx(1)
    config = CONFIG.replace(modules_to_save=r".*_lora_[ab]|up")
    trainable, _ = lnt.partition_params(params, config, norms=NORMS)
    assert sorted(trainable) == sorted([*NORM_LEAVES, *LORA_LEAVES, "up.bias", "up.kernel"])


def test_the_page(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = Nnx()
    names = run_page("../norms-and-lora", {"model": model, "x": X, "y": jnp.ones((8, 16))})
    assert sorted(names["own"]) == NORM_LEAVES
    assert sorted(names["factors"]) == LORA_LEAVES
    halves = names["state"].trainable
    found, _ = lnt.partition_params(names["params"], names["config"], norms=NORMS)
    assert_same_bits(read_arrays(found), read_arrays(halves))
    assert all(np.any(halves[path] != jnp.ones(16)) for path in ("first.scale", "last.scale"))
    restored = lnt.restore_adapter("norms", nnx.state(model))  # the plain model
    assert_same_bits(
        read_arrays(lnt.partition_params(restored, CONFIG, norms=NORMS).trainable),
        read_arrays(names["own"]),
    )

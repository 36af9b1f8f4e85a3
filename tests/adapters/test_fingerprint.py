"""The fingerprint tells another base from the same one in another precision, place or container."""

import json
import tracemalloc
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import nnx

import lntune_jax as lnt
from lntune_jax.adapters import fingerprint as fingerprint_samples
from lntune_jax.adapters.fingerprint import (
    explain_difference,
    list_frozen,
    make_fingerprint,
    sample_leaf,
)
from lntune_jax.selection.select import select_leaves


def make_frozen(seed: int = 0, dtype: Any = np.float32, width: int = 16) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    frozen = {
        f"layers.{i}.mlp.kernel": rng.standard_normal((width, 64)).astype(dtype) for i in range(20)
    }
    return {**frozen, "head.bias": np.zeros(4, dtype)}


def read_again(fingerprint: dict[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps(fingerprint))


@pytest.mark.parametrize("here", [np.float32, np.float16, ml_dtypes.bfloat16, np.float64])
@pytest.mark.parametrize("there", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_the_same_model_in_another_precision_passes_and_another_fails(
    here: Any, there: Any
) -> None:
    fingerprint = read_again(make_fingerprint(make_frozen(dtype=here)))
    assert explain_difference(fingerprint, make_frozen(dtype=there)) is None
    difference = explain_difference(fingerprint, make_frozen(seed=1, dtype=there))
    assert difference is not None
    assert "the values of 'layers.0.mlp.kernel' differ: 8 of 8" in difference
    assert f"expected ({np.dtype(here).name})" in difference


def test_one_sampled_leaf_that_differs_is_named() -> None:
    frozen = make_frozen()
    fingerprint = make_fingerprint(frozen)
    paths = [sample["path"] for sample in fingerprint["samples"]]
    assert len(paths) == 8
    assert "head.bias" not in paths
    for path in paths:
        changed = {**frozen, path: frozen[path] * 1.001}
        difference = explain_difference(fingerprint, changed)
        assert difference is not None
        assert f"{path!r} differ: 8 of 8" in difference


def test_structure_differences_name_up_to_five_leaves() -> None:
    fingerprint = make_fingerprint(make_frozen())
    difference = explain_difference(fingerprint, make_frozen(width=8))
    assert difference is not None
    assert "expected 'layers.0.mlp.kernel' [16, 64]" in difference
    assert "and 15 more; found 'layers.0.mlp.kernel' [8, 64]" in difference


def test_structure_of_a_tree_too_large_to_list() -> None:
    rng = np.random.default_rng(0)
    names = [rng.bytes(30).hex() for _ in range(2000)]
    frozen = {name: jax.ShapeDtypeStruct((2, 2), np.float32) for name in names}
    fingerprint = read_again(make_fingerprint(frozen))
    assert fingerprint["list"] is None
    assert explain_difference(fingerprint, frozen) is None
    del frozen[names[0]]
    difference = explain_difference(fingerprint, frozen)
    assert difference == "other leaves or shapes (2,000 frozen leaves expected, 1,999 found)"


def test_a_large_model_takes_kilobytes() -> None:
    modules = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    frozen = {
        f"model.layers.{i}.{m}.weight": jax.ShapeDtypeStruct((8192, 8192), jnp.bfloat16)
        for i in range(80)
        for m in modules
    }
    fingerprint = make_fingerprint(frozen)
    assert fingerprint["leaves"] == 560
    assert fingerprint["list"] is not None
    assert len(json.dumps(fingerprint)) < 4000


def test_only_a_few_elements_of_a_large_array_are_read() -> None:
    large = np.broadcast_to(np.float32(2), (2**16, 2**16))  # 16 GiB, if it were copied
    tracemalloc.start()
    assert sample_leaf("w", large).tolist() == [2] * 8
    assert sample_leaf("w", large.T).tolist() == [2] * 8
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**20


def test_elements_are_picked_on_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    array = np.random.default_rng(0).standard_normal((30, 40)).astype(ml_dtypes.bfloat16)
    monkeypatch.setattr(fingerprint_samples, "_is_on_host", lambda data: False)
    np.testing.assert_array_equal(sample_leaf("w", jnp.asarray(array)), sample_leaf("w", array))


@pytest.mark.parametrize("shape", [(), (1,), (3,), (1, 1), (7, 5, 3)])
def test_samples_of_any_shape_and_kind_of_array(shape: tuple[int, ...]) -> None:
    array = np.arange(np.prod(shape, dtype=int), dtype=np.float32).reshape(shape)
    found = sample_leaf("w", array)
    np.testing.assert_array_equal(found, sample_leaf("w", jnp.asarray(array)))
    assert set(found.tolist()) <= set(array.reshape(-1).tolist())


def test_quantised_leaves_are_compared_exactly() -> None:
    frozen = {"w.qvalue": np.arange(64, dtype=np.int8).reshape(8, 8)}
    fingerprint = read_again(make_fingerprint(frozen))
    assert fingerprint["samples"][0]["dtype"] == "int8"
    assert explain_difference(fingerprint, frozen) is None
    assert explain_difference(fingerprint, {"w.qvalue": frozen["w.qvalue"] + np.int8(1)})
    other = {"w.qvalue": frozen["w.qvalue"].astype(np.float32)}
    assert "int8 expected, float32 found" in str(explain_difference(fingerprint, other))
    four_bits = {"w.qvalue": jnp.ones((8, 8), jnp.int4)}
    assert explain_difference(make_fingerprint(four_bits), four_bits) is None


def test_special_values() -> None:
    frozen = {"w": np.array([[np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-45]], np.float32)}
    fingerprint = read_again(make_fingerprint(frozen))
    assert explain_difference(fingerprint, frozen) is None
    assert explain_difference(fingerprint, {"w": frozen["w"] * -1}) is not None


def test_statistics_random_states_and_trainable_leaves_take_no_part() -> None:
    class Model(nnx.Module):
        def __init__(self, rngs: nnx.Rngs) -> None:
            self.dense = nnx.Linear(4, 4, rngs=rngs)
            self.norm = nnx.LayerNorm(4, rngs=rngs)
            self.batch_norm = nnx.BatchNorm(4, rngs=rngs)
            self.dropout = nnx.Dropout(0.1, rngs=rngs)

        def __call__(self, x: jax.Array) -> jax.Array:
            return self.dropout(self.batch_norm(self.norm(self.dense(x))))

    def fingerprint_of(model: Model) -> dict[str, Any]:
        selection = select_leaves(nnx.state(model), lnt.LNTuningConfig())
        frozen = list_frozen(selection)
        assert set(frozen) == {
            "dense.kernel",
            "dense.bias",
            "batch_norm.scale",
            "batch_norm.bias",
        }
        return make_fingerprint(frozen)

    model = Model(nnx.Rngs(0))
    before = fingerprint_of(model)
    model(jnp.arange(8.0).reshape(2, 4))
    model.norm.scale[...] = jnp.full(4, 5.0)
    assert fingerprint_of(model) == before
    typed_key = {"rng": jax.random.key(0), "ln": {"scale": np.ones(3, np.float32)}}
    assert list_frozen(select_leaves(typed_key, lnt.LNTuningConfig())) == {}

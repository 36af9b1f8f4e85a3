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
from lntune_jax.adapters import fingerprint
from lntune_jax.adapters.fingerprint import (
    check_fingerprint,
    count_frozen,
    explain_difference,
    list_frozen,
    make_fingerprint,
    read_samples,
)
from lntune_jax.names.layers import LayerSlice
from lntune_jax.selection.select import select_leaves
from tests.support.devices import run_on_devices


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
    assert "the values of 'layers.0.mlp.kernel' differ: 4 of 4" in difference
    assert f"expected ({np.dtype(here).name})" in difference


def test_a_change_in_any_one_matrix_is_seen() -> None:
    """Where eight leaves were sampled, 64 of 72 such models passed for the base."""
    modules = ("q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj")
    rng = np.random.default_rng(0)
    frozen = {
        f"layers.{layer}.{module}.kernel": rng.standard_normal((8, 16)).astype(np.float32)
        for layer in range(12)
        for module in modules
    }
    fingerprint = read_again(make_fingerprint(frozen))
    for path in frozen:
        changed = {**frozen, path: rng.standard_normal((8, 16)).astype(np.float32)}
        difference = explain_difference(fingerprint, changed)
        assert difference is not None
        assert f"{path!r} differ" in difference
    assert len(frozen) == 72
    assert explain_difference(fingerprint, frozen) is None


def test_every_matrix_has_values_and_no_vector_beside() -> None:
    frozen = make_frozen()
    records = make_fingerprint(frozen)["leaves"]
    assert records["head.bias"] == "float32[4]"
    for path in frozen.keys() - {"head.bias"}:
        assert len(records[path].split()) == 5
        changed = {**frozen, path: frozen[path] * 1.001}
        difference = explain_difference({"leaves": records}, changed)
        assert f"{path!r} differ: 4 of 4" in str(difference)
    assert len(make_fingerprint({"a": np.ones(3)})["leaves"]["a"].split()) == 5


def test_structure_differences_name_up_to_five_leaves() -> None:
    fingerprint = make_fingerprint(make_frozen())
    difference = explain_difference(fingerprint, make_frozen(width=8))
    assert difference is not None
    assert "expected 'layers.0.mlp.kernel' [16,64]" in difference
    assert "and 15 more; found 'layers.0.mlp.kernel' [8,64]" in difference


def test_a_base_without_recorded_values_is_not_trusted_in_silence() -> None:
    frozen = make_frozen()
    abstract = {path: jax.ShapeDtypeStruct(x.shape, x.dtype) for path, x in frozen.items()}
    fingerprint = make_fingerprint(abstract)
    with pytest.warns(UserWarning, match=r"of 20 of the base's 20 matrices no values.*as base"):
        assert explain_difference(fingerprint, frozen) is None
    assert explain_difference(fingerprint, abstract) is None
    path = "layers.3.mlp.kernel"
    partly = make_fingerprint({**frozen, path: abstract[path]})
    with pytest.warns(UserWarning, match=rf"of 1 of the base's 20 matrices .*{path}"):
        explain_difference(partly, frozen)


@pytest.mark.parametrize(
    "record",
    ["float32[2,2] 1", "float32[2,2] 1 1 1 1 1", "float32[2,2] 1 1 1 x", "float32(2,2)",
     "int8[2] 1", "object[2,2] 1 1 1 1", "nothing[2,2] 1 1 1 1", "complex64[2] 1 1 1 1", 5, None],
)  # fmt: skip
def test_a_record_with_a_wrong_count_or_of_another_kind_is_an_error(record: Any) -> None:
    with pytest.raises(ValueError, match=r"^base: 'fc'"):
        check_fingerprint({"leaves": {"fc": record}})


def test_a_large_model_takes_a_line_a_leaf() -> None:
    modules = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    whole = np.broadcast_to(np.float32(-1 / 3), (8192, 8192)).view()
    frozen = {f"model.layers.{i}.{m}.weight": whole for i in range(80) for m in modules}
    fingerprint = make_fingerprint(frozen)
    assert len(fingerprint["leaves"]) == 560
    assert count_frozen(fingerprint) == 560 * 8192**2
    assert len(json.dumps(fingerprint)) < 128 * 560


def test_only_a_few_elements_of_a_large_array_are_read() -> None:
    large = np.broadcast_to(np.float32(2), (2**16, 2**16))  # 16 GiB, if it were copied
    tracemalloc.start()
    found = read_samples({"w": large, "v": large.T})
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [values.tolist() for values in found.values()] == [[2] * 4] * 2
    assert peak < 2**20


def test_all_elements_leave_the_devices_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """40 matrices, 16 of them layers of one stack: one transfer, and nothing but the elements."""
    rng = np.random.default_rng(0)
    arrays = {
        f"layers.{i}.kernel": rng.standard_normal((30, 40)).astype(ml_dtypes.bfloat16)
        for i in range(24)
    }
    stack = rng.standard_normal((16, 30, 40)).astype(np.float32)
    on_device = {path: jnp.asarray(array) for path, array in arrays.items()}
    whole = jnp.asarray(stack)
    on_device |= {f"stack.{i}": LayerSlice(whole, 0, i) for i in range(16)}
    transfers: list[int] = []
    fetch = jax.device_get

    def count(values: Any) -> Any:
        transfers.append(sum(leaf.nbytes for leaf in jax.tree.leaves(values)))
        return fetch(values)

    monkeypatch.setattr(fingerprint, "_is_on_host", lambda data: False)
    monkeypatch.setattr(jax, "device_get", count)
    found = read_samples(on_device)
    assert transfers == [24 * 4 * 2 + 16 * 4 * 4]
    on_host = read_samples(arrays | {f"stack.{i}": stack[i] for i in range(16)})
    for path, values in on_host.items():
        np.testing.assert_array_equal(found[path], values)


_SHARDED = """
import jax, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from lntune_jax.adapters import fingerprint
from lntune_jax.adapters.fingerprint import explain_difference, make_fingerprint

mesh = Mesh(np.array(jax.devices()).reshape(2, 4), ("a", "b"))
rng = np.random.default_rng(0)
specs = [PartitionSpec("a", "b"), PartitionSpec(None, "b"), PartitionSpec("a"), PartitionSpec()]
arrays = {f"{i}.kernel": rng.standard_normal((64, 128)).astype("f4") for i in range(8)}
shard = lambda i, x: jax.device_put(x, NamedSharding(mesh, specs[i % 4]))
sharded = {path: shard(i, x) for i, (path, x) in enumerate(arrays.items())}
expected = make_fingerprint(arrays)
fingerprint._is_on_host = lambda data: False
read = []
fetch = jax.device_get
jax.device_get = lambda values: (read.append(sum(x.nbytes for x in values)), fetch(values))[1]
assert make_fingerprint(sharded) == expected
assert read == [8 * 4 * 4], read
assert explain_difference(expected, sharded) is None
for path in arrays:
    assert explain_difference(expected, {**sharded, path: sharded[path] + 1})
print("done")
"""


def test_of_sharded_arrays_only_the_elements_are_read() -> None:
    run_on_devices(_SHARDED, 8)


@pytest.mark.parametrize("shape", [(), (1,), (3,), (1, 1), (7, 5, 3)])
def test_samples_of_any_shape_and_kind_of_array(shape: tuple[int, ...]) -> None:
    array = np.arange(np.prod(shape, dtype=int), dtype=np.float32).reshape(shape)
    found = read_samples({"host": array, "device": jnp.asarray(array)})
    np.testing.assert_array_equal(found["host"], found["device"])
    assert set(found["host"].tolist()) <= set(array.reshape(-1).tolist())
    record = make_fingerprint({"host": array})
    check_fingerprint(read_again(record))
    assert explain_difference(record, {"host": jnp.asarray(array)}) is None


def test_quantised_leaves_are_compared_exactly() -> None:
    frozen = {"w.qvalue": np.arange(64, dtype=np.int8).reshape(8, 8)}
    fingerprint = read_again(make_fingerprint(frozen))
    assert fingerprint["leaves"]["w.qvalue"].startswith("int8[8,8] ")
    assert explain_difference(fingerprint, frozen) is None
    assert explain_difference(fingerprint, {"w.qvalue": frozen["w.qvalue"] + np.int8(1)})
    four_bits = {"w.qvalue": jnp.ones((8, 8), jnp.int4)}
    assert explain_difference(make_fingerprint(four_bits), four_bits) is None
    integers = {"w": np.arange(64, dtype=np.int8).reshape(8, 8)}
    floats = {"w": integers["w"].astype(np.float32)}
    difference = explain_difference(make_fingerprint(integers), floats)
    assert "int8 expected, float32 found" in str(difference)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.float64, ml_dtypes.bfloat16])
def test_recorded_numbers_are_exact(dtype: Any) -> None:
    """Read from their text they are the same bits, so that one dtype is compared exactly."""
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 256, (4000, np.dtype(dtype).itemsize), dtype=np.uint8)
    values = bits.view(dtype).reshape(1, -1)
    with np.errstate(invalid="ignore"):  # numbers that signal
        values = values[np.isfinite(values)].reshape(-1, 1, 1)
    frozen = {str(i): value for i, value in enumerate(values[:300])}
    fingerprint = read_again(make_fingerprint(frozen))
    assert explain_difference(fingerprint, frozen) is None
    near = {path: np.nextafter(value, np.asarray(9, dtype)) for path, value in frozen.items()}
    for path in list(frozen)[:50]:
        assert explain_difference(fingerprint, {**frozen, path: near[path]}) is not None


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

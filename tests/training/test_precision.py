"""The fault that low-precision norms have, and the cure: float32 masters over a bfloat16 base."""

import jax
import numpy as np
import optax
import pytest

import lntune_jax as lnt
from tests.support.small import loss_fn, make_batch, make_params, relax

STEPS, RATE = 60, 1e-4


def train(dtype, param_dtype):
    """60 Adam steps at 1e-4 on the norms; returns how far the scales moved from 1."""
    params = jax.tree.map(lambda leaf: leaf.astype(dtype), make_params())
    config = lnt.LNTuningConfig(param_dtype=param_dtype)
    trainable, frozen = lnt.partition_params(params, config)
    tx = relax(optax.adam(RATE))
    step, state = lnt.make_train_step(loss_fn, tx), lnt.TrainState.create(trainable, tx)
    for seed in range(STEPS):
        state, _ = step(state, frozen, make_batch(64, seed))
    leaves = [np.asarray(v, np.float32) for k, v in state.trainable.items() if "scale" in k]
    return np.concatenate(leaves) - 1


def test_the_fault_and_the_cure():
    reference = train("float32", "float32")
    fault = train("bfloat16", None)
    cure = train("bfloat16", "float32")
    assert np.count_nonzero(reference) == reference.size
    assert np.count_nonzero(fault) == 0  # every step of 1e-4 rounds to nothing
    assert np.count_nonzero(cure) == cure.size
    difference = np.abs(cure - reference).mean() / np.abs(reference).mean()
    assert difference < 0.1  # what bfloat16 activations leave
    assert np.corrcoef(cure, reference)[0, 1] > 0.98


def test_gradients_flow_through_the_cast_in_float32():
    params = jax.tree.map(lambda leaf: leaf.astype("bfloat16"), make_params())
    trainable, frozen = lnt.partition_params(params, lnt.LNTuningConfig())
    _, grads = lnt.value_and_grad(loss_fn)(trainable, frozen, make_batch())
    assert {leaf.dtype.name for leaf in grads.values()} == {"float32"}
    merged = lnt.merge_params(trainable, frozen)
    assert merged["ln_f"]["scale"].dtype == params["ln_f"]["scale"].dtype
    kept = lnt.merge_params(trainable, frozen, cast=False)
    assert kept["ln_f"]["scale"].dtype == np.float32
    assert kept["ln_f"]["scale"] is trainable["ln_f.scale"]


@pytest.mark.filterwarnings("ignore:invalid value encountered in cast")  # signalling NaNs
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float8_e4m3fn"])
def test_widening_and_back_is_exact(dtype):
    import ml_dtypes

    kind = np.dtype(getattr(ml_dtypes, dtype, dtype))
    bits = np.arange(2 ** (8 * kind.itemsize), dtype=f"u{kind.itemsize}")
    values = bits.view(kind)
    finite = np.isfinite(values.astype(np.float32))
    trainable, frozen = lnt.partition_params({"ln": {"scale": values}}, lnt.LNTuningConfig())
    assert trainable["ln.scale"].dtype == np.float32
    back = lnt.merge_params(trainable, frozen)["ln"]["scale"].view(bits.dtype)
    np.testing.assert_array_equal(back[finite], bits[finite])
    assert np.array_equal(np.isnan(values.astype("f4")), np.isnan(back.view(kind).astype("f4")))


def test_wide_leaves_are_never_narrowed():
    with jax.enable_x64(True):
        params = {"ln": {"scale": np.ones(4, np.float64)}}
        trainable, _ = lnt.partition_params(params, lnt.LNTuningConfig())
        assert trainable["ln.scale"] is params["ln"]["scale"]
        params = {"ln": {"scale": np.ones(4, np.float32)}}
        trainable, _ = lnt.partition_params(params, lnt.LNTuningConfig(param_dtype="float64"))
        assert trainable["ln.scale"].dtype == np.float64

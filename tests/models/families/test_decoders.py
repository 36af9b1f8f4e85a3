"""The decoders against PyTorch's logits, for every architecture and every field of its config.

The references are in tests/reference/decoders, made by tests/support/make_decoder_reference.py.
"""

from __future__ import annotations

import jax
import numpy as np
import pytest

from lntune_jax.models import from_config, from_pretrained
from tests.support.decoders import REFERENCE, task_of

CHECKPOINTS = sorted(path.parent.name for path in REFERENCE.glob("*/model.safetensors"))
# A config alone: its weights are those of the checkpoint it is called after.
VARIANTS = sorted({path.parent.name for path in REFERENCE.glob("*/config.json")} - {*CHECKPOINTS})
CASES = ("plain", "long", "right", "left", "left_positions", "positions", "packed")
TOLERANCE = 1e-4


def base_of(name: str) -> str:
    return max((base for base in CHECKPOINTS if name.startswith(base)), key=len)


def reference(name: str) -> dict[str, np.ndarray]:
    with np.load(REFERENCE / name / "reference.npz") as arrays:
        return dict(arrays)


def inputs_of(arrays: dict[str, np.ndarray], case: str) -> dict[str, np.ndarray]:
    names = ("input_ids", "attention_mask", "position_ids")
    inputs = {name: arrays[f"{case}.{name}"] for name in names if f"{case}.{name}" in arrays}
    if case == "packed":
        # PyTorch was told by the positions where a text begins; here it is said outright.
        inputs["segment_ids"] = np.cumsum(inputs.pop("position_ids") == 0, axis=1)
    return inputs


def deviation(found, arrays: dict[str, np.ndarray], case: str) -> float:
    """The largest difference of logits, at tokens that count."""
    expected = arrays[f"{case}.logits"]
    distance = np.abs(np.asarray(found, np.float32) - expected)
    mask = arrays.get(f"{case}.attention_mask")
    # What padding itself computes is nobody's concern.
    return float((distance if mask is None or expected.ndim == 2 else distance[mask == 1]).max())


@pytest.mark.parametrize("name", [*CHECKPOINTS, *VARIANTS])
def test_logits_match_pytorch(name):
    arrays = reference(name)
    loaded = from_pretrained(REFERENCE / base_of(name), task_of(name))
    model = loaded if name in CHECKPOINTS else from_config(REFERENCE / name, task_of(name))
    assert loaded.fresh == ()
    run = jax.jit(model.apply)
    cases = [case for case in CASES if f"{case}.logits" in arrays]
    assert len(cases) >= 3
    found = {case: run(loaded.params, **inputs_of(arrays, case)) for case in cases}
    worst = {case: deviation(found[case].logits, arrays, case) for case in cases}
    print(name, {case: f"{value:.1e}" for case, value in worst.items()})
    assert max(worst.values()) < TOLERANCE
    hidden = np.asarray(found["plain"].last_hidden_state)
    np.testing.assert_allclose(hidden, arrays["plain.last_hidden_state"], atol=TOLERANCE)

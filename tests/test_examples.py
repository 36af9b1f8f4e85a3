"""Each example runs as a user would run it, and says what it should."""

import re
import subprocess
import sys

import pytest

from tests.support.paths import ROOT

EXAMPLES = ROOT / "examples"
SAYS = {
    "linen_loop.py": ["trainable params: 258 ||", "step 199", "accuracy 0."],
    "nnx_loop.py": ["trainable params: 130 ||", "programs compiled: 1", "accuracy 0."],
    "nnx_optimizer.py": ["params: 162 ||", "restored: the same logits True", "accuracy 0."],
    "linen_train_state.py": [
        "trainable params: 322 ||",
        "numbers in the optimizer's state: 645",
        "identical True",
        "accuracy 0.",
    ],
    "optax_groups.py": [
        "state of the optimizer 2,880 bytes",
        "programs compiled: 1",
        "accuracy 0.",
    ],
    "orbax_manager.py": [
        "going on from step 50",
        "gone on: identical True",
        "a checkpoint of state",
    ],
    "equinox_loop.py": ["params: 194 ||", "restored: the same logits True", "accuracy 0."],
    "qwix_base.py": ["params: 194 ||", "kernels: int4", "accuracy 0."],
    "norms_and_lora.py": [
        "Flax NNX: trainable params: 896 ||",
        "Flax Linen: trainable params: 896 ||",
        "norms 4 leaves, LoRA 4 leaves",
        "6 of 14 arrays are still the base's own",
        "restored onto a fresh base: identical True",
        "accuracy 0.",
    ],
    "whole_tree.py": ["Dense_0         0 of", "Dense_1         0 of", "LayerNorm_0   12"],
    "many_tenants.py": [
        "64 tenants: ",
        "added under load: 200 {'rows': 66}",
        "the new one: 200",
        "an unknown one: 404 {'error': \"the bank has no adapter 'nobody'; it has",
        "programs compiled: 1",
    ],
    "save_and_restore.py": ["identical True", "bfloat16", "another base: "],
}


# qwix uses what Flax has deprecated.
QWIX = {"qwix_base.py", "norms_and_lora.py"}
ELSEWHERE = {"hub_adapter.py"}  # needs a hub, which tests/sources/test_source_hub.py has


def test_every_example_is_tested():
    assert {file.name for file in EXAMPLES.glob("*.py")} == SAYS.keys() | ELSEWHERE


@pytest.mark.parametrize("name", SAYS)
def test_example(name):
    warnings = ["-W", "error", *(["-W", "ignore::DeprecationWarning"] if name in QWIX else [])]
    done = subprocess.run(
        [sys.executable, *warnings, str(EXAMPLES / name)],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    for text in SAYS[name]:
        assert text in done.stdout
    assert "identical False" not in done.stdout
    assert all(float(found) > 0.7 for found in re.findall(r"accuracy (\S+)", done.stdout))

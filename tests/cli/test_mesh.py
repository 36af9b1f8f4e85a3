"""`train --mesh` in one process with several devices: the run of one device, faster."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

import lntune_jax as lnt
from lntune_jax.trainer.callbacks import read_metrics
from tests.support.paths import ROOT
from tests.support.runs import WORDS, make_decoder

pytestmark = pytest.mark.long


def train(*words):
    """A process with four devices: its exit code and what it writes to standard error."""
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(ROOT),
        "XLA_FLAGS": "--xla_force_host_platform_device_count=4",
        "COLUMNS": "200",
    }
    command = [sys.executable, "-m", "lntune_jax", "train", *map(str, words)]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=500, check=False
    )
    return done.returncode, done.stderr


def check_same(one, other, adapter="adapter"):
    """Losses, evaluations and leaves of two runs agree to what the order of sums changes."""
    both = [read_metrics(run / "metrics.jsonl") for run in (one, other)]
    assert [line["step"] for line in both[0]] == [line["step"] for line in both[1]]
    for left, right in zip(*both, strict=True):
        assert right["loss"] == pytest.approx(left["loss"], rel=1e-4), left
    left, right = (lnt.load_adapter(run / adapter).trainable for run in (one, other))
    for path, leaf in left.items():
        np.testing.assert_allclose(right[path], leaf, rtol=1e-3, atol=2e-4, err_msg=path)


@pytest.fixture
def words(model_directory, table):
    return [
        *("--model", model_directory, "--data", table, "--max-steps", 8, "--epochs", 9),
        *("--batch-size", 8, "--eval-every", 4, "--learning-rate", 0.001, "--buckets", 2),
    ]


def test_a_run_on_a_mesh_is_that_of_one_device_and_goes_on_on_another(words, tmp_path):
    code, notes = train(*words, "--output", tmp_path / "one")
    assert code == 0, notes
    assert "training uses 1 of 4 devices; --mesh data=4" in notes
    some = [*words, "--output", tmp_path / "some"]
    code, notes = train(*some, "--mesh", "data=4", "--stop-after-steps", 5)
    assert code == 0, notes
    assert "training uses" not in notes
    code, notes = train(*some, "--mesh", "data=2,fsdp=2", "--resume")
    assert code == 0, notes
    check_same(tmp_path / "one", tmp_path / "some")


def test_a_language_model_on_a_mesh(tmp_path):
    model, texts = make_decoder(tmp_path / "model"), tmp_path / "texts.txt"
    lines = [" ".join(WORDS[start % 12 : start % 12 + 5]) for start in range(31)]
    texts.write_text("\n\n".join(lines))
    words = ["--task", "causal_lm", "--model", model, "--data", texts, "--learning-rate", 0.001]
    words += ["--max-length", 16, "--batch-size", 4, "--epochs", 9, "--max-steps", 4]
    for name, flags in (("one", []), ("four", ["--mesh", "data=4"])):
        code, notes = train(*words, "--output", tmp_path / name, *flags)
        assert code == 0, notes
    check_same(tmp_path / "one", tmp_path / "four")


@pytest.mark.parametrize("flags", [["--sweep", "learning_rate=1e-3,1e-2"], ["--seeds", 2]])
def test_a_sweep_on_a_mesh_is_that_of_one_device(words, tmp_path, flags):
    for name, more in (("one", []), ("two", ["--mesh", "data=2"])):
        code, notes = train(*words, "--output", tmp_path / name, *flags, *more)
        assert code == 0, notes
    content = json.loads((tmp_path / "one" / "sweep.json").read_text())
    for trial in content["trials"]:
        check_same(tmp_path / "one", tmp_path / "two", f"adapters/{trial['name']}")


def test_what_the_devices_cannot_do_is_refused(words, tmp_path):
    cases = [
        (["--mesh", "data=8"], "--mesh has 8 devices, and JAX finds 4 here"),
        (["--mesh", "data=3"], "--batch-size is 8, which 3 devices cannot share alike"),
    ]
    for flags, message in cases:
        code, complaint = train(*words, "--output", tmp_path / "refused", *flags)
        assert code == 2
        assert message in complaint
    assert not (tmp_path / "refused").exists()

"""Figures of a run in Weights & Biases and in trackio: the real packages, without a network."""

import json
import subprocess
import sys

import pytest

from tests.support.paths import ROOT

PROGRAM = """
import sys
import jax.numpy as jnp
import lntune_jax as lnt
from lntune_jax import tasks, trainer

def loss(params, batch):
    return jnp.mean((params["norm"]["scale"] - batch) ** 2)

task = tasks.FunctionTask(
    {"norm": {"scale": jnp.ones(4)}}, lnt.LNTuningConfig(), loss, lambda step: jnp.float32(2),
    steps_per_epoch=3, evaluate=lambda params: {"loss": loss(params, 2.0)},
)
board = getattr(trainer, sys.argv[1])(project="trying", name="one")
result = trainer.fit(task, trainer.Recipe(epochs=2, learning_rate=0.1), callbacks=[board])
assert result.finished
"""


def train(kind, tmp_path, **env):
    import os

    (tmp_path / "home").mkdir()
    env = os.environ | {"HOME": str(tmp_path / "home"), "PYTHONPATH": str(ROOT), **env}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, kind],
        cwd=tmp_path,
        env=env,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]


def test_weights_and_biases(tmp_path):
    train("WeightsAndBiases", tmp_path, WANDB_MODE="offline", WANDB_DIR=str(tmp_path))
    (file,) = (tmp_path / "wandb").glob("offline-run-*/run-*.wandb")
    content = file.read_bytes()
    for name in (b"train/loss", b"eval/loss", b"train/learning_rate", b"weight_decay"):
        assert name in content


def test_trackio(tmp_path):
    train("Trackio", tmp_path, TRACKIO_DIR=str(tmp_path / "trackio"))
    script = (
        "import json; from trackio.sqlite_storage import SQLiteStorage as S; "
        "print(json.dumps([each for each in S.get_logs('trying', 'one')], default=str))"
    )
    import os

    env = os.environ | {"HOME": str(tmp_path / "home"), "TRACKIO_DIR": str(tmp_path / "trackio")}
    done = subprocess.run(
        [sys.executable, "-c", script], env=env, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr[-2000:]
    lines = json.loads(done.stdout.strip().splitlines()[-1])
    steps = [line["step"] for line in lines if "train/loss" in line]
    assert steps == [1, 2, 3, 4, 5, 6]
    assert [line["step"] for line in lines if "eval/loss" in line] == [3, 6]


@pytest.mark.parametrize("kind", ["WeightsAndBiases", "Trackio"])
def test_a_package_that_is_missing_is_named(kind, monkeypatch):
    from lntune_jax import trainer
    from lntune_jax.errors import ConfigError

    package = {"WeightsAndBiases": "wandb", "Trackio": "trackio"}[kind]
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError, match=rf"pip install 'lntune-jax\[{package}\]'"):
        getattr(trainer, kind)()

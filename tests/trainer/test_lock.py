"""Two processes in one run's directory: the second one is refused, and a dead one locks nobody."""

import multiprocessing
import os
import signal

import jax.numpy as jnp
import pytest

import lntune_jax as lnt
from lntune_jax import tasks, trainer
from lntune_jax.errors import ConfigError
from lntune_jax.trainer.run import RunFiles, locked


@pytest.fixture(autouse=True)
def _strict_promotion():
    """Not here: Optax's Adam mixes integers and floats, which strict refuses."""


def hold(directory, held):
    with locked(RunFiles.at(directory)):
        held.set()
        signal.pause()


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the run in `tmp_path / "run"`."""
    context = multiprocessing.get_context("spawn")
    held = context.Event()
    process = context.Process(target=hold, args=(tmp_path / "run", held))
    process.start()
    assert held.wait(timeout=120)
    yield process
    process.kill()
    process.join()


def make_task():
    return tasks.FunctionTask(
        {"norm": {"scale": jnp.ones(4)}},
        lnt.LNTuningConfig(),
        lambda params, batch: jnp.mean((params["norm"]["scale"] - batch) ** 2),
        lambda step: jnp.float32(2),
        steps_per_epoch=3,
    )


def test_a_run_that_another_process_trains_is_refused_until_it_dies(holder, tmp_path):
    recipe, output = trainer.Recipe(epochs=1), tmp_path / "run"
    for resume, overwrite in ((False, False), (True, False), (False, True)):
        with pytest.raises(ConfigError, match="another process is training in") as caught:
            trainer.fit(make_task(), recipe, output=output, resume=resume, overwrite=overwrite)
        assert f"{output} (pid {holder.pid})" in str(caught.value)
    assert not (output / "settings.json").exists()
    os.kill(holder.pid, signal.SIGKILL)
    holder.join()
    assert (output / "run.lock").exists()  # It was not removed, and locks nobody.
    assert trainer.fit(make_task(), recipe, output=output, resume=True).finished
    assert not (output / "run.lock").exists()


def test_what_is_refused_leaves_no_directory(tmp_path):
    files = RunFiles.at(tmp_path / "run")
    with locked(files):
        assert files.lock.read_text().strip() == str(os.getpid())
    assert not files.directory.exists()


def test_a_lock_that_was_removed_meanwhile_locks_nobody(tmp_path):
    """Whoever holds a file that has left the directory does not hold the run."""
    files = RunFiles.at(tmp_path / "run")
    with locked(files):
        files.lock.unlink()
        with locked(files):
            pass

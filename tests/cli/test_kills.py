"""A run that is killed again and again is the run that is not, and SIGTERM saves."""

import json
import multiprocessing
import os
import random
import signal
import time
from pathlib import Path

import pytest

from lntune_jax.cli import main
from tests.support.runs import leaves

pytestmark = pytest.mark.long

# A fork of a process that has imported all of this starts in a second.
_LOADED = (
    "jax",
    "orbax.checkpoint",
    "transformers.models.auto.tokenization_auto",
    "lntune_jax.cli.train",
    "tests.cli.test_kills",
)
_KILLS = 20


def train(words: list[str], cache: str, silent: bool = True) -> None:
    """What a child process does."""
    import jax

    # Another program would give other last bits: all of them compile the same way.
    jax.config.update("jax_compilation_cache_dir", cache)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    if silent:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os._exit(main(words))


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(_LOADED))
    cache = str(tmp_path_factory.mktemp("compiled"))

    def start(*words):
        process = context.Process(target=train, args=([str(word) for word in words], cache))
        process.start()
        return process

    return start


@pytest.fixture(scope="module")
def words(model_directory, table):
    paths = ("train", "--model", model_directory, "--data", table, "--pooling", "mean")
    often = ("--batch-size", "8", "--buckets", "2", "--eval-every", "5", "--checkpoint-every", "1")
    return (*paths, *often, "--dropout", "--max-steps", "120", "--epochs", "20")


@pytest.fixture(scope="module")
def whole(tmp_path_factory, words, start):
    output = tmp_path_factory.mktemp("whole") / "run"
    process = start(*words, "--output", output)
    process.join()
    assert process.exitcode == 0
    return output


def read_lines(output: Path) -> list[dict]:
    lines = map(json.loads, (output / "metrics.jsonl").read_text().splitlines())
    return [{k: v for k, v in line.items() if k != "tokens_per_second"} for line in lines]


def assert_same_run(output: Path, whole: Path) -> None:
    assert read_lines(output) == read_lines(whole)
    found, expected = leaves(output / "adapter"), leaves(whole / "adapter")
    assert found.keys() == expected.keys()
    assert all(found[path].tobytes() == expected[path].tobytes() for path in expected)


def wait_for_news(process, path: Path, before: bytes) -> None:
    """Until the run writes another line, or ends."""
    while process.is_alive() and (path.read_bytes() if path.exists() else b"") == before:
        time.sleep(0.002)


def test_twenty_kills_change_nothing(tmp_path, words, start, whole):
    output, draw, kills = tmp_path / "run", random.Random(0), 0
    lines = output / "metrics.jsonl"
    while kills < _KILLS:
        before = lines.read_bytes() if lines.exists() else b""
        process = start(*words, "--output", output, "--resume")
        wait_for_news(process, lines, before)
        time.sleep(draw.uniform(0, 0.05))
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL, "it came to its end before it was killed"
        kills += 1
    process = start(*words, "--output", output, "--resume")
    process.join()
    assert process.exitcode == 0
    assert_same_run(output, whole)


def test_sigterm_saves_and_leaves(tmp_path, words, start, whole):
    output = tmp_path / "run"
    seldom = (*words, "--checkpoint-every", "1000", "--output", output)
    lines = output / "metrics.jsonl"
    process = start(*seldom)
    wait_for_news(process, lines, b"")
    os.kill(process.pid, signal.SIGTERM)
    process.join()
    assert process.exitcode == 143
    saved = max(
        int(each.name) for each in (output / "checkpoints").iterdir() if each.name.isdigit()
    )
    assert [line["step"] for line in read_lines(output) if line["split"] == "train"] == list(
        range(1, saved + 1)
    )
    assert 0 < saved < 120
    process = start(*seldom, "--resume")
    process.join()
    assert process.exitcode == 0
    assert_same_run(output, whole)

"""`train --distributed`: several processes over loopback are one run."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import lntune_jax as lnt
from lntune_jax.trainer.callbacks import read_metrics
from lntune_jax.trainer.run import RunFiles, locked
from tests.support.runs import WORDS, make_decoder

pytestmark = pytest.mark.long

LIMIT = 600  # seconds, for a machine under load


class Run:
    """Processes of one run, and what they print."""

    def __init__(self, folder, count, words, last=(), program=None):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        flags = ["--distributed", "--coordinator", f"127.0.0.1:{port}", "--num-processes", count]
        root = str(Path(lnt.__file__).parents[1])
        environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": root, "XLA_FLAGS": ""}
        self.logs = [folder / f"log{time.monotonic_ns()}-{rank}" for rank in range(count)]
        self.processes = []
        for rank, log in enumerate(self.logs):
            own = last if rank == count - 1 else ()
            command = [sys.executable, "-m", "lntune_jax", *words, *flags, "--process-id", rank]
            command += own
            if program is not None:
                command = [sys.executable, "-c", program, flags[2], rank]
            with log.open("w") as output:
                self.processes.append(
                    subprocess.Popen(
                        [*map(str, command)], env=environment, stdout=output, stderr=output
                    )
                )

    def wait(self):
        """Exit codes and texts, in order."""
        for process in self.processes:
            process.wait(timeout=LIMIT)
        return [process.poll() for process in self.processes], self.texts()

    def texts(self):
        return [log.read_text() for log in self.logs]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in self.processes:
            process.kill()
            process.wait()


@pytest.fixture
def train(model_directory, table, tmp_path):
    """The words of a run of 24 steps into a folder of this name."""

    def words(name, *more):
        return [
            *("train", "--model", model_directory, "--data", table, "--output", tmp_path / name),
            *("--max-steps", 24, "--epochs", 99, "--batch-size", 8, "--eval-every", 12),
            *("--checkpoint-every", 2, "--learning-rate", 0.001, "--buckets", 1, *more),
        ]

    return words


def figures_of(directory):
    """Losses and evaluations of a run, by split and step."""
    lines = read_metrics(directory / "metrics.jsonl")
    keys = [(line["split"], line["step"]) for line in lines]
    assert len(keys) == len(set(keys)), keys
    return {key: line["loss"] for key, line in zip(keys, lines, strict=True)}


def check_same(one, other):
    first, second = figures_of(one), figures_of(other)
    assert first.keys() == second.keys()
    for key, loss in first.items():
        assert second[key] == pytest.approx(loss, rel=1e-4), key
    left, right = (lnt.load_adapter(run / "adapter").trainable for run in (one, other))
    for path, leaf in left.items():
        np.testing.assert_allclose(right[path], leaf, rtol=1e-3, atol=2e-4, err_msg=path)
    summaries = [json.loads((run / "summary.json").read_text()) for run in (one, other)]
    assert summaries[0]["best"]["step"] == summaries[1]["best"]["step"]


def wait_for_steps(both, folder):
    """Until the run is in the middle of its steps."""
    deadline = time.monotonic() + LIMIT
    while len(read_metrics(folder / "metrics.jsonl")) < 7:
        assert time.monotonic() < deadline, both.texts()
        assert both.processes[0].poll() is None, both.texts()
        time.sleep(0.02)


def kill(both, victim, folder):
    """Kill one of two; the codes and texts in the end."""
    wait_for_steps(both, folder)
    both.processes[victim].send_signal(signal.SIGKILL)
    both.wait()
    time.sleep(1)  # for the watchers
    codes, texts = both.wait()
    assert codes[victim] == -signal.SIGKILL, texts
    assert codes[1 - victim] not in (0, None), texts
    assert f"process {1 - victim} of 2" in texts[1 - victim], texts
    assert "start all processes again, with --resume" in texts[1 - victim], texts
    assert f"process {victim} of 2 has ended" in texts[victim], texts
    assert not (folder / "summary.json").exists()


def test_two_processes_one_killed_and_four_that_go_on(train, run, tmp_path):
    assert run(*train("one"))[0] == 0
    with Run(tmp_path, 2, train("some")) as two:
        kill(two, 1, tmp_path / "some")
    # It goes on in other processes, which hold the base in parts.
    with Run(tmp_path, 4, train("some", "--resume", "--mesh", "data=2,fsdp=2")) as four:
        codes, texts = four.wait()
    assert codes == [0] * 4, texts
    assert "best at" in texts[0]
    assert all("best at" not in text for text in texts[1:])
    check_same(tmp_path / "one", tmp_path / "some")


def test_processes_that_were_told_other_things_are_no_run(train, table, tmp_path):
    shorter = tmp_path / table.name
    shorter.write_text("\n".join(table.read_text().splitlines()[:-9]) + "\n")
    last = ["--learning-rate", 0.5, "--stop-after-steps", 3, "--data", shorter]
    with Run(tmp_path, 2, train("run"), last=last) as both:
        codes, texts = both.wait()
    assert codes == [2, 2], texts
    for text in texts:
        assert "process 1 has --learning-rate 0.5 and process 0 0.001" in text
        assert "process 1 has --stop-after-steps 3 and process 0 unset" in text
        assert "process 1 has another content of --data than process 0" in text
        assert "has ended" not in text
    assert not (tmp_path / "run").exists()


def test_what_one_process_cannot_do_ends_both_at_once(train, tmp_path):
    """The first one finds the directory in use; the second one has no fault of its own."""
    began = time.monotonic()
    with locked(RunFiles.at(tmp_path / "run")), Run(tmp_path, 2, train("run")) as both:
        codes, texts = both.wait()
    assert codes == [2, 2], texts
    assert "another process is training in" in texts[0]
    assert "process 0 of 2 could not do its part" in texts[1]
    assert "another process is training in" in texts[1]
    assert time.monotonic() - began < 90  # less than a heartbeat


STUCK = """
import sys, time
from jax.experimental.multihost_utils import process_allgather
from lntune_jax.cli.distributed import joined
from lntune_jax.cli.options import Processes
place, rank = sys.argv[1], int(sys.argv[2])
flags = Processes(True, place, 2, rank, heartbeat_seconds=10)
with joined(flags):
    print("here", flush=True)
    if rank == 0:
        process_allgather(1)
    time.sleep(500)
"""


def test_sigterm_ends_processes_that_wait_for_each_other_for_ever(tmp_path):
    with Run(tmp_path, 2, [], program=STUCK) as both:
        deadline = time.monotonic() + LIMIT
        while not all("here" in text for text in both.texts()):
            assert time.monotonic() < deadline, both.texts()
            time.sleep(0.1)
        began = time.monotonic()
        for process in both.processes:
            process.send_signal(signal.SIGTERM)
        codes, texts = both.wait()
    assert time.monotonic() - began < 40
    assert 143 in codes, texts
    assert 0 not in codes
    assert "had SIGTERM 10 seconds ago" in "".join(texts)


def test_a_language_model_in_two_processes(run, tmp_path):
    model, texts = make_decoder(tmp_path / "model"), tmp_path / "texts.txt"
    lines = [" ".join(WORDS[start % 12 : start % 12 + 5]) for start in range(31)]
    texts.write_text("\n\n".join(lines))
    words = ["train", "--task", "causal_lm", "--model", model, "--data", texts]
    words += ["--max-length", 16, "--batch-size", 4, "--epochs", 9, "--max-steps", 6]
    words += ["--eval-every", 3, "--learning-rate", 0.001]
    assert run(*words, "--output", tmp_path / "one")[0] == 0
    with Run(tmp_path, 2, [*words, "--output", tmp_path / "two"]) as two:
        codes, texts = two.wait()
    assert codes == [0, 0], texts
    check_same(tmp_path / "one", tmp_path / "two")


def test_sigterm_to_one_ends_both_at_the_same_step(train, run, tmp_path):
    folder, words = tmp_path / "run", train("run", "--max-steps", 2000, "--eval-every", 2000)
    with Run(tmp_path, 2, [*words, "--checkpoint-every", 2000]) as both:
        wait_for_steps(both, folder)
        both.processes[1].send_signal(signal.SIGTERM)
        codes, texts = both.wait()
    assert codes == [143, 143], texts
    assert "go on with --resume" in texts[0]
    steps = [line["step"] for line in read_metrics(folder / "metrics.jsonl")]
    assert steps == list(range(1, steps[-1] + 1))
    assert (folder / "checkpoints" / str(steps[-1])).is_dir()
    # A signal that comes while the run is still being set up is heeded after its first step.
    with Run(tmp_path, 2, [*words, "--checkpoint-every", 2000, "--resume"]) as both:
        while "reading" not in both.texts()[0]:
            assert both.processes[0].poll() is None, both.texts()
            time.sleep(0.02)
        both.processes[1].send_signal(signal.SIGTERM)
        codes, texts = both.wait()
    assert codes == [143, 143], texts
    again = [line["step"] for line in read_metrics(folder / "metrics.jsonl")]
    assert again == list(range(1, again[-1] + 1))
    assert len(steps) < len(again) < 2000


def test_when_the_coordinator_is_killed_the_other_ends(train, tmp_path):
    with Run(tmp_path, 2, train("run")) as both:
        kill(both, 0, tmp_path / "run")


def test_what_cannot_be_is_refused_before_anything_starts(train, run, tmp_path):
    cases = [
        (["--process-id", 0], "--process-id goes with --distributed"),
        (["--distributed", "--seeds", 2], "does not go with --sweep, --seeds or --more-data"),
        (["--distributed", "--checkpoint-minutes", 1], "a clock of its own; give --checkpoint-e"),
        (["--distributed", "--mesh", "data"], "expected each axis once, with its size"),
        (["--heartbeat-seconds", 0], "--heartbeat-seconds is 0; it must be 1 or more"),
    ]
    for flags, message in cases:
        code, _, complaint = run(*train("refused", *flags))
        assert code == 2
        assert message in complaint
    assert not (tmp_path / "refused").exists()

"""A run's own files, damaged or cut short: one line that names the file, and a way on."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import lntune_jax as lnt
from lntune_jax.storage import directories as _files
from lntune_jax.trainer import JsonLines, RunInfo, read_metrics

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def words(tmp_path_factory, model_directory, table):
    paths = ("--model", model_directory, "--data", table)
    return ("train", *paths, "--pooling", "mean", "--buckets", "1", "--max-steps", "2")


@pytest.fixture(scope="module")
def finished(tmp_path_factory, words):
    from lntune_jax.cli import main

    output = tmp_path_factory.mktemp("runs") / "whole"
    assert main([str(word) for word in (*words, "--output", output)]) == 0
    return output


DAMAGE = ["", "{", "[]", "[" * 50_000, "{}", '{"labels": 5}']


@pytest.mark.parametrize("content", DAMAGE, ids=range(len(DAMAGE)))
def test_damaged_files_of_a_run_are_named(run, finished, words, tmp_path, content):
    output = tmp_path / "run"
    for name in ("settings.json", "summary.json", "adapter/lntune.json"):
        shutil.rmtree(output, ignore_errors=True)
        shutil.copytree(finished, output)
        (output / name).write_text(content)
        if name == "adapter/lntune.json":
            outcome = run("predict", "--run", output, "--text", "good")
        else:
            outcome = run(*words, "--output", output, "--resume")
        code, _, complaint = outcome
        assert code == 2, (name, outcome)
        assert complaint.count("\n") == 1
        # Settings that are empty are other settings than those of this run.
        assert name in complaint or (name == "settings.json" and "cannot resume" in complaint)
        assert len(complaint) < 1_000


def test_a_full_disk_is_one_line_of_ours(small_disk, words):
    """Threads of TensorStore and tensorboardX print what they like, before it or after."""
    (small_disk / "filler").write_bytes(bytes(shutil.disk_usage(small_disk).free - 40_000))
    command = [sys.executable, "-m", "lntune_jax", *words, "--output", small_disk / "run"]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 2, done.stderr
    _, *errors = done.stderr.split("lntune-jax: error: ")
    assert len(errors) == 1, done.stderr
    assert "No space left on device" in errors[0]
    assert "ERROR:absl" not in done.stderr
    # No traceback through our own code.
    assert str(Path(lnt.__file__).parent) not in done.stderr, done.stderr


def test_a_summary_that_is_deleted_is_written_again(run, finished, words, tmp_path):
    output = shutil.copytree(finished, tmp_path / "run")
    (output / "summary.json").unlink()
    assert run(*words, "--output", output, "--resume")[0] == 0
    before, after = (json.loads((path / "summary.json").read_text()) for path in (finished, output))
    for each in (before, after):
        del each["seconds"], each["compilations"], each["adapter_bytes"]
    assert after == before


def test_a_run_that_dies_while_it_writes_keeps_the_file_before(tmp_path, monkeypatch):
    """The metrics are written anew when a run goes on: all their lines, or those before."""
    lines = tmp_path / "metrics.jsonl"
    writer = JsonLines(lines)
    writer.begin(RunInfo("training", 9, 0, False, [None], (), {}))
    for step in range(1, 6):
        writer.stepped(step, {"loss": 1.0})
    writer.end()
    resumed = RunInfo("training", 9, 3, True, [None], (), {})

    def die(path):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(_files, "sync", die)
        with pytest.raises(KeyboardInterrupt):
            writer.begin(resumed)
    assert [line["step"] for line in read_metrics(lines)] == [1, 2, 3, 4, 5]
    writer.begin(resumed)
    writer.end()
    assert [line["step"] for line in read_metrics(lines)] == [1, 2, 3]
    assert not list(tmp_path.glob(".*"))


def test_names_from_files_do_not_command_the_terminal(run, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "\x1b[2J\u202eevil\x07"}))
    code, _, complaint = run("inspect", tmp_path)
    assert code == 2
    assert "evil" in complaint
    assert complaint.strip("\n").isprintable()

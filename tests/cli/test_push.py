"""`train --push-to-hub` on a hub that is a stand-in, and `--report-to`."""

import subprocess
import sys

from tests.support.hub_processes import make_env
from tests.support.hub_server import serve


def test_a_finished_run_is_pushed(model_directory, table, tmp_path):
    words = ["train", "--model", model_directory, "--data", table, "--output", tmp_path / "run"]
    words += ["--max-steps", 1, "--buckets", 1, "--push-to-hub", "me/tuned"]
    with serve() as hub:
        env = make_env(tmp_path / "home", hub.endpoint)
        command = [sys.executable, "-m", "lntune_jax", *map(str, words)]
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-2000:]
        commit = hub.branches["me/tuned"]["main"]
        assert f"pushed to me/tuned: commit {commit}" in done.stdout
        # A finished run needs no training to be pushed elsewhere.
        command = [*command[:-1], "me/other", "--resume"]
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-2000:]
        assert "me/other" in hub.branches


def test_what_is_no_repository_is_found_first(run, model_directory, table, tmp_path):
    words = ("train", "--model", model_directory, "--data", table, "--output", tmp_path / "run")
    code, _, complaint = run(*words, "--push-to-hub", "a/b/c")
    assert code == 2
    assert "'a/b/c' is no id on the hub" in complaint
    assert not (tmp_path / "run").exists()


def test_dashboards_are_those_that_are_named(run, model_directory, table, tmp_path, monkeypatch):
    words = ("train", "--model", model_directory, "--data", table, "--max-steps", 1, "--buckets", 1)
    code, _, complaint = run(*words, "--output", tmp_path / "run", "--report-to", "none")
    assert (code, complaint) == (0, "")
    assert not (tmp_path / "run" / "tensorboard").exists()
    monkeypatch.setitem(sys.modules, "wandb", None)
    code, _, complaint = run(*words, "--output", tmp_path / "other", "--report-to", "wandb")
    assert code == 2
    assert "pip install 'lntune-jax[wandb]'" in complaint
    code, _, complaint = run(*words, "--output", tmp_path / "x", "--report-to", "none", "wandb")
    assert code == 2
    assert "--report-to none stands alone" in complaint

"""`--revision`: a branch, tag or commit of a model on the hub, which the adapter names too."""

import json
import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import load, save

import lntune_jax as lnt
from lntune_jax.cli.described import base_of
from tests.support.hub_processes import make_env
from tests.support.hub_server import serve


@pytest.fixture
def hub(model_directory):
    """A model whose branch `old` is the one to use; `main` has other weights by now."""
    files = {file.name: file.read_bytes() for file in model_directory.iterdir()}
    weights = {
        name: np.zeros_like(value) for name, value in load(files["model.safetensors"]).items()
    }
    with serve() as hub:
        hub.commit("me/base", "old", files)
        hub.commit("me/base", "main", files | {"model.safetensors": save(weights)})
        yield hub


def call(hub, home, *words):
    command = [sys.executable, "-m", "lntune_jax", *map(str, words)]
    env = make_env(home, hub.endpoint)
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)


def test_the_revision_of_training_is_the_one_that_is_used(hub, table, tmp_path):
    home, out = tmp_path / "home", tmp_path / "run"
    words = ("--model", "me/base", "--data", table, "--output", out, "--max-steps", 1)
    done = call(hub, home, "train", *words, "--buckets", 1, "--model-revision", "old")
    assert done.returncode == 0, done.stderr[-2000:]
    config = json.loads((out / "adapter" / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["revision"]) == ("me/base", "old")
    told = call(hub, home, "predict", "--run", out, "--text", "good")
    assert told.returncode == 0, told.stderr[-2000:]
    # Another revision is another base, and is refused.
    other = call(hub, home, "predict", "--run", out, "--text", "good", "--revision", "main")
    assert other.returncode == 2
    assert "was trained on another base" in other.stderr
    merged = call(hub, home, "merge", "--adapter", out, "--output", tmp_path / "merged")
    assert merged.returncode == 0, merged.stderr[-2000:]
    missing = call(hub, home, "inspect", "me/base", "--revision", "none")
    assert missing.returncode == 2
    assert "'me/base' is neither" in missing.stderr
    assert "Revision" in missing.stderr


def test_a_directory_has_no_revision(run, model_directory, table, tmp_path):
    words = ("--model", model_directory, "--data", table, "--output", tmp_path / "run")
    code, _, complaint = run("train", *words, "--revision", "old")
    assert code == 2
    assert "has no revision 'old': leave --revision out" in complaint
    assert not (tmp_path / "run").exists()


def test_a_revision_in_an_adapter_says_nothing_of_a_directory(model_directory, tmp_path):
    """As PEFT may write it; no flag was given, so none is complained of."""
    config = lnt.LNTuningConfig(base_model_name_or_path=str(model_directory), revision="main")
    config.save_pretrained(tmp_path)
    assert base_of(tmp_path, None) == (str(model_directory), None)
    config.replace(base_model_name_or_path="me/base").save_pretrained(tmp_path)
    assert base_of(tmp_path, None) == ("me/base", "main")
    assert base_of(tmp_path, None, "old") == ("me/base", "old")
    assert base_of(tmp_path, "me/other") == ("me/other", None)

"""The wheel alone, without any extra: the core works, and the rest says what to install."""

import subprocess
import sys
from importlib.metadata import version

import pytest

# The packages that the extras bring.
EXTRAS = "transformers huggingface_hub gguf qwix matplotlib pyarrow tensorboardX"


def run(program, *words):
    blocked = f"import sys\nsys.modules.update(dict.fromkeys({EXTRAS.split()}))\n"
    return subprocess.run(
        [sys.executable, "-c", blocked + program, *map(str, words)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_a_tree_is_tuned_saved_and_exported(tmp_path):
    program = """
import jax.numpy as jnp
import lntune_jax as lnt
params = {"layers": {"0": {"norm": {"scale": jnp.ones(4), "bias": jnp.zeros(4)}}}}
config = lnt.LNTuningConfig()
trainable, _ = lnt.partition_params(params, config)
lnt.save_adapter(sys.argv[1] + "/a", trainable, config, base=params)
lnt.restore_adapter(sys.argv[1] + "/a", params)
lnt.export_peft(sys.argv[1] + "/p", trainable, config, base=params)
lnt.import_peft(sys.argv[1] + "/p", params)
"""
    found = run(program, tmp_path)
    assert (found.returncode, found.stdout, found.stderr) == (0, "", "")


@pytest.mark.parametrize("words", [(), ("--help",), ("train", "--help"), ("inspect", "model")])
def test_the_command_says_what_to_install(words):
    found = run("import runpy; runpy.run_module('lntune_jax', run_name='__main__')", *words)
    assert (found.returncode, found.stdout) == (2, "")
    assert found.stderr.count("\n") == 1
    assert "pip install 'lntune-jax[cli]'" in found.stderr


@pytest.mark.parametrize(
    ("call", "extra"),
    [
        ("from_config({'model_type': 'bert'})", "hf"),
        ("from_pretrained('owner/name')", "hf"),
        ("from_pretrained(sys.argv[1] + '/model.gguf')", "gguf"),
        ("tokenizer_from_gguf(sys.argv[1] + '/model.gguf')", "hf"),
    ],
)
def test_models_say_what_to_install(tmp_path, call, extra):
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    program = f"""
from lntune_jax import models
from lntune_jax.errors import ModelError
try:
    models.{call}
except ModelError as error:
    print(error)
"""
    found = run(program, tmp_path)
    assert (found.returncode, found.stderr) == (0, "")
    assert f"pip install 'lntune-jax[{extra}]'" in found.stdout


def test_the_hub_says_what_to_install(tmp_path):
    program = """
import lntune_jax as lnt
from lntune_jax import hub
try:
    hub.fetch_adapter("owner/name")
except lnt.LNTuningError as error:
    print(error)
"""
    found = run(program, tmp_path)
    assert (found.returncode, found.stderr) == (0, "")
    assert "pip install 'lntune-jax[hf]'" in found.stdout


@pytest.mark.parametrize(
    ("suffix", "extra"), [("parquet", "cli"), ("csv", "hf")], ids=["table", "tokenizer"]
)
def test_a_task_says_what_to_install(tmp_path, suffix, extra):
    (tmp_path / f"rows.{suffix}").write_text("text,label\n" + "good,1\nbad,0\n" * 8)
    program = f"""
from pathlib import Path
import lntune_jax as lnt
from lntune_jax import tasks
from lntune_jax.tasks import text_classification
options = tasks.TaskOptions(model=sys.argv[1], data=Path(sys.argv[1], "rows.{suffix}"))
try:
    text_classification.prepare(options, text_classification.read(options), say=lambda line: None)
except lnt.LNTuningError as error:
    print(error)
"""
    found = run(program, tmp_path)
    assert (found.returncode, found.stderr) == (0, "")
    assert f"pip install 'lntune-jax[{extra}]'" in found.stdout


def test_the_version_is_the_installed_one():
    found = run("import lntune_jax; print(lntune_jax.__version__)")
    assert (found.stdout.strip(), found.stderr) == (version("lntune-jax"), "")

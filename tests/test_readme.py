"""The README's loop runs as written, on a small model."""

import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import lntune_jax as lnt
from tests.support.paths import ROOT
from tests.support.small import loss_fn, make_batch, make_params

README = ROOT / "README.md"
BLOCKS = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)


def test_the_loop_of_the_readme(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    block = BLOCKS[0]
    base = make_params()
    names = {"params": base, "loss_fn": loss_fn}
    with jax.numpy_dtype_promotion("standard"):  # Optax's Adam needs it
        exec(block, names)
        step = names["step"]
        trainable, _, loss = step(
            names["trainable"], names["opt_state"], names["frozen"], make_batch()
        )
    assert "trainable params: 258 ||" in capsys.readouterr().out
    assert jnp.isfinite(loss)
    assert np.any(np.asarray(trainable["ln_f.scale"]) != 1)
    jax.tree.map(np.testing.assert_array_equal, names["params"], base)  # restored, untrained


def test_the_trainer_of_the_readme(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    batch = make_batch()
    names = {
        "params": make_params(),
        "config": lnt.LNTuningConfig(),
        "loss": loss_fn,
        "get_batch": lambda step: batch,
        "evaluate": lambda params: {"loss": loss_fn(params, batch)},
    }
    with jax.numpy_dtype_promotion("standard"):  # Optax's Adam needs it
        exec(BLOCKS[1].replace("steps_per_epoch=100", "steps_per_epoch=5"), names)
    assert names["result"].finished
    assert len(names["result"].history) == 3
    assert set(lnt.load_adapter("run/adapter").trainable) == set(names["result"].adapter.trainable)


def test_the_way_from_peft_and_back(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    params, config = make_params(), lnt.LNTuningConfig()
    tuned = jax.tree.map(lambda x: x + 1, lnt.partition_params(params, config).trainable)
    lnt.export_peft("peft_adapter", tuned, config)
    names = {"lnt": lnt, "params": params}
    exec(BLOCKS[2], names)
    assert np.all(np.asarray(names["params"]["ln_f"]["scale"]) == 2)
    written = [Path(name) / "adapter_model.safetensors" for name in ("peft_adapter", "for_peft")]
    assert written[0].read_bytes() == written[1].read_bytes()


def test_every_relative_link_leads_somewhere():
    for page in [README, *README.parent.glob("docs/**/*.md")]:
        assert "@@" not in page.read_text(), page.name  # a figure yet to come
        for link in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / link).exists(), (page.name, link)


def test_the_tables_of_architectures_are_the_registry_s():
    command = [sys.executable, ROOT / "docs/models_table.py", "--check"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (found.returncode, found.stderr) == (0, "")

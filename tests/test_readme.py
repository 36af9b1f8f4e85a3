"""The README's snippet runs as it stands, and the links of all pages lead somewhere."""

import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np

import lntune_jax as lnt
from lntune_jax.selection.architectures import OUR_TARGETS, PEFT_TARGETS
from tests.support.paths import ROOT
from tests.support.small import make_params

README = ROOT / "README.md"


def read_blocks(page):
    return re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)


def test_the_snippet_of_the_readme_runs_as_it_stands(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (block,) = read_blocks(README)
    names = {}
    with jax.numpy_dtype_promotion("standard"):  # Optax's Adam needs it
        exec(block, names)
    assert "trainable params: 48 ||" in capsys.readouterr().out
    before, after = (
        names["loss_fn"](names[which], names["x"], names["x"][:, :1])
        for which in ("params", "tuned")
    )
    assert after < 0.7 * before
    assert names["tuned"]["dense"]["kernel"] is names["params"]["dense"]["kernel"]


def test_the_readme_is_read_in_a_minute():
    text = README.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 110
    assert (
        f"targets for {len(PEFT_TARGETS)} architectures | the same, and {len(OUR_TARGETS)}" in text
    )


def test_the_way_from_peft_and_back(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    params, config = make_params(), lnt.LNTuningConfig()
    tuned = jax.tree.map(lambda x: x + 1, lnt.partition_params(params, config).trainable)
    lnt.export_peft("peft_adapter", tuned, config)
    names = {"lnt": lnt, "params": params}
    blocks = read_blocks(ROOT / "docs" / "from-peft.md")
    exec(next(block for block in blocks if "export_peft(" in block), names)
    assert np.all(np.asarray(names["params"]["ln_f"]["scale"]) == 2)
    written = [Path(name) / "adapter_model.safetensors" for name in ("peft_adapter", "for_peft")]
    assert written[0].read_bytes() == written[1].read_bytes()


def test_every_relative_link_leads_somewhere():
    for page in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]:
        text = page.read_text(encoding="utf-8")
        assert "@@" not in text, page.name  # a figure yet to come
        for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text):
            assert (page.parent / link).exists(), (page.name, link)


def test_the_tables_of_architectures_are_the_registry_s():
    command = [sys.executable, ROOT / "docs/models_table.py", "--check"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (found.returncode, found.stderr) == (0, "")

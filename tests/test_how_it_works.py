"""The code of docs/how-it-works.md runs as it is written, and prints what the page shows."""

import re

import jax

from tests.support.paths import ROOT

PAGE = ROOT / "docs" / "how-it-works.md"


def test_the_page_runs_from_top_to_bottom(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    text = PAGE.read_text(encoding="utf-8")
    pairs = re.findall(r"```python\n(.*?)```\n(?:\n```\n(.*?)```)?", text, re.DOTALL)
    assert len(pairs) == 5
    names = {}
    for block, shown in pairs:
        with jax.numpy_dtype_promotion("standard"):  # Optax's Adam needs it
            exec(block, names)
        assert capsys.readouterr().out == shown
    assert names["metrics"]["loss"] < 0.3
    assert names["frozen"]["dense"]["kernel"] is names["params"]["dense"]["kernel"]

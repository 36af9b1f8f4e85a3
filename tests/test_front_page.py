"""The snippet of the site's front page runs as it stands."""

import re

import jax
import numpy as np

from tests.support.paths import ROOT

PAGE = (ROOT / "docs/index.md").read_text(encoding="utf-8")


def test_the_front_page_s_snippet_runs_as_it_stands(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (block,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    names = {}
    with jax.numpy_dtype_promotion("standard"):  # Optax's Adam needs it
        exec(block, names)
    said = capsys.readouterr().out
    assert "norm.scale" in said
    assert "dense" not in said
    base, tuned = names["params"], names["tuned"]
    loss = [float(names["loss_fn"](each, names["batch"])) for each in (base, tuned)]
    assert loss[1] < 0.1 * loss[0]
    same = np.asarray(tuned["dense"]["kernel"]).tobytes()
    assert same == np.asarray(base["dense"]["kernel"]).tobytes()

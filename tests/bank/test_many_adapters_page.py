"""The page on many adapters: its code runs as written."""

import re

import jax
import numpy as np
import pytest

import lntune_jax as lnt
from tests.support.banks import CONFIG, make_adapter
from tests.support.paths import ROOT
from tests.support.small import apply, loss_fn, make_batch, make_params


def read_blocks(page):
    return re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)


@pytest.mark.long
def test_the_page_runs_from_top_to_bottom(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    params = make_params()
    names = {"jax": jax, "params": params, "apply_fn": apply, "x": make_batch(3)["x"]}
    names |= {"lnt": lnt, "config": CONFIG, "loss_fn": loss_fn, "batch": make_batch()}
    names |= {name: make_adapter(params, seed) for seed, name in enumerate(["french", "italian"])}
    names["german"] = make_adapter(params, 7)
    lnt.save_adapter("adapters/german", *names["german"], base=params)
    names["evaluate"] = lambda leaves: -float(np.abs(leaves["ln_f.scale"] - 1).max())
    blocks = read_blocks(ROOT / "docs/many-adapters.md")
    assert len(blocks) == 6
    for block in blocks:
        with jax.numpy_dtype_promotion("standard"):  # Optax's Adam needs it
            exec(block, names)
    assert names["run"]._cache_size() == 1  # "compiled once, above"
    assert names["bank"].names == ("base", "french", "german")
    assert names["soup"].names
    assert names["logits"].shape == (3, 2)
    assert names["metrics"]["loss"].shape == (3,)
    moved = [float(np.abs(leaves["ln_f.scale"] - 1).max()) for leaves in names["tuned"]]
    assert 0 < moved[0] < moved[1] < moved[2]


def test_every_public_name_of_the_bank_is_on_the_page():
    page = (ROOT / "docs/many-adapters.md").read_text()
    functions = [name for name in lnt.bank.__all__ if name[0].islower()]
    missing = [name for name in functions if name not in page]
    assert not missing

"""The code of docs/adapter-files.md runs as it is written, from top to bottom."""

import re

import jax
import numpy as np

import lntune_jax as lnt
from tests.support.paths import ROOT
from tests.support.small import make_params

PAGE = ROOT / "docs" / "adapter-files.md"


def test_the_page_runs_from_top_to_bottom(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    params, config = make_params(), lnt.LNTuningConfig()
    trainable = jax.tree.map(lambda x: x + 1, lnt.partition_params(params, config).trainable)
    names = {"lnt": lnt, "params": params, "other_params": make_params(seed=1)}
    names |= {"config": config, "trainable": trainable}
    whole, other = re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    exec(whole, names)
    assert names["adapter"].task == {"labels": ["no", "yes"]}
    assert np.all(np.asarray(names["params"]["ln_f"]["scale"]) == 2)
    exec(other, names)
    assert np.all(np.asarray(names["params"]["ln_f"]["scale"]) == 2)
    np.testing.assert_array_equal(
        names["params"]["classifier"]["kernel"], names["other_params"]["classifier"]["kernel"]
    )

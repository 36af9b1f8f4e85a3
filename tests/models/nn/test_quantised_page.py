"""docs/quantised.md: its code runs as written, and its table lists every kind."""

import re

import numpy as np
import pytest

import lntune_jax as lnt
from lntune_jax.errors import AdapterError
from lntune_jax.models.nn.quantized import KINDS
from tests.support.paths import ROOT
from tests.support.quantizing import MODELS

PAGE = (ROOT / "docs" / "quantised.md").read_text()


def test_the_code_of_the_page(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    directory, task = MODELS["llama"]
    load, move = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    names = {"lnt": lnt, "directory": directory, "config": lnt.LNTuningConfig()}
    exec(load, names)
    tuned = {path: leaf + 1 for path, leaf in names["trainable"].items()}
    lnt.save_adapter("adapter", tuned, names["config"], base=names["model"].params)
    names["float_model"] = lnt.models.from_pretrained(directory, task)
    with pytest.raises(AdapterError, match="int8"):
        lnt.restore_adapter("adapter", names["float_model"].params)
    exec(move, names)
    found = lnt.partition_params(names["params"], names["config"]).trainable
    assert found.keys() == tuned.keys()
    for path, leaf in found.items():
        np.testing.assert_array_equal(leaf, tuned[path])


def test_every_kind_is_in_the_table():
    assert sorted(re.findall(r'^\| `"(\w+)"` \|', PAGE, re.MULTILINE)) == sorted(KINDS)

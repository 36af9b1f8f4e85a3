"""The lines on torchax of the README and of its page run as written."""

import re

import numpy as np

from tests.support.parity.small_models import make, make_batch
from tests.support.paths import ROOT
from tests.support.source_checks import run_page

README = ROOT / "README.md"


def test_the_lines_of_the_readme():
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    (block,) = [block for block in blocks if "from_torch" in block]
    names = {"torch_module": make("llama"), "tokens": np.ones((2, 5), "int32")}
    exec(block, names)
    assert names["logits"].shape[:2] == (2, 5)


def test_the_code_of_the_page(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = run_page("torchax", {"torch_module": make("llama"), "batches": [make_batch("llama")]})
    assert names["metrics"]["loss"] > 0
    assert (tmp_path / "adapter" / "lntune.json").exists()

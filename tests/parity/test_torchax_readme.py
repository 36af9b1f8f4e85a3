"""The README's lines on torchax run as written."""

import re

import numpy as np

from tests.support.parity.small_models import make
from tests.support.paths import ROOT

README = ROOT / "README.md"


def test_the_lines_of_the_readme():
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    (block,) = [block for block in blocks if "from_torch" in block]
    names = {"torch_module": make("llama"), "tokens": np.ones((2, 5), "int32")}
    exec(block, names)
    assert names["logits"].shape[:2] == (2, 5)

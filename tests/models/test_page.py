"""The code of docs/models.md runs as it is written, on tiny models under the names it uses."""

import re

import jax
import numpy as np
import pytest

import lntune_jax as lnt
from tests.support.gguf_files import checkpoint, write
from tests.support.paths import ROOT

TOKENS = np.arange(4, 16, dtype=np.int32).reshape(2, 6)


class Tokenizer:
    """Gives the same tokens for any texts."""

    def __call__(self, texts, **_):
        return {"input_ids": TOKENS, "attention_mask": np.ones_like(TOKENS)}

    def decode(self, row):
        return " ".join(map(str, row))


@pytest.fixture
def names(tmp_path, monkeypatch):
    """What the reader of the page has already."""
    monkeypatch.chdir(tmp_path)
    written = write(tmp_path / "SmolLM2-135M-Instruct.Q4_1.gguf", *checkpoint("mistral"))
    return {
        "jax": jax,
        "lnt": lnt,
        "path": written,
        "tokens": TOKENS,
        "attention_mask": np.ones_like(TOKENS),
        "ids": TOKENS,
        "key": jax.random.key(0),
        "tokenizer": Tokenizer(),
        "config": lnt.LNTuningConfig(),
    }


def test_the_page_of_models(names, capsys):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs/models.md").read_text(), re.DOTALL)
    load, generation, scanned, memory = (
        block.replace("max_new_tokens=64", "max_new_tokens=2") for block in blocks
    )
    exec(load, names)
    assert names["logits"].shape[:2] == TOKENS.shape
    names["params"] = names["model"].params
    exec(generation, names)
    assert len(names["texts"]) == 2
    assert names["column"].shape == (2,)
    apart = names["params"]
    exec(scanned, names)
    assert names["model"].options.scan_layers
    restored = lnt.restore_adapter("adapter", apart)  # fits the model of separate layers too
    jax.tree.map(np.testing.assert_array_equal, restored, apart)
    exec(memory, names)
    weights, activations, total = map(int, capsys.readouterr().out.split())
    assert 0 < weights < total
    assert activations >= 0

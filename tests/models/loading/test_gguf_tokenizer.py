"""Tokenizers out of GGUF files; `parity/test_gguf.py` has the comparison with transformers."""

from __future__ import annotations

import functools
import sys

import pytest

from lntune_jax.errors import ModelError
from lntune_jax.models import tokenizer_from_gguf
from tests.support.gguf_files import checkpoint, write
from tests.support.gguf_tokenizers import gemma, gpt2, other


def test_pieces(tmp_path):
    path = write(tmp_path / "gemma.gguf", *checkpoint("gemma3_text"), tokenizer=gemma)
    found = tokenizer_from_gguf(path)

    def pieces(text: str) -> list[str]:
        return found.convert_ids_to_tokens(found(text)["input_ids"])

    assert pieces("hello world") == ["<bos>", "hello", "▁world"]
    assert pieces("<start_of_turn>é") == ["<bos>", "<start_of_turn>", "<0xC3>", "<0xA9>"]
    assert found.decode(found("é hello")["input_ids"], skip_special_tokens=True) == "é hello"
    path = write(tmp_path / "gpt2.gguf", *checkpoint("gpt2"), tokenizer=gpt2)
    found = tokenizer_from_gguf(path)
    assert pieces("hello world 12") == ["hello", "Ġworld", "Ġ", "12"]
    # A file that says nothing about a space at the beginning is a Gemma like any other.
    silent = functools.partial(gemma, prefix=None)
    path = write(tmp_path / "silent.gguf", *checkpoint("gemma"), tokenizer=silent)
    found = tokenizer_from_gguf(path)
    assert pieces("hello world") == ["<bos>", "hello", "▁world"]


def test_without_the_conversion_of_newer_transformers(tmp_path, monkeypatch):
    """transformers 5.0 has no such package."""
    for name in ("gguf", "gguf.gguf_tokenizer_mapping"):
        monkeypatch.setitem(sys.modules, f"transformers.integrations.{name}", None)
    path = write(tmp_path / "gpt2.gguf", *checkpoint("gpt2"), tokenizer=gpt2)
    found = tokenizer_from_gguf(path)
    assert found.convert_ids_to_tokens(found("hello world")["input_ids"]) == ["hello", "Ġworld"]


def test_no_token_lies_beyond_the_vocabulary(tmp_path):
    """A table of embeddings has no row for one."""
    llama = functools.partial(gemma, prefix=True)
    path = write(tmp_path / "llama.gguf", *checkpoint("mistral"), tokenizer=llama)
    found = tokenizer_from_gguf(path)
    assert max(found.get_vocab().values()) == found.vocab_size - 1 == len(found) - 1
    ids = found("hello world")["input_ids"]
    assert found.convert_ids_to_tokens(ids) == ["<bos>", "▁hello", "▁world"]
    assert found.decode(ids, skip_special_tokens=True) == "hello world"


@pytest.mark.parametrize(
    ("split", "pieces"),
    [
        ("gpt-2", "12 Ġ 12"),
        ("smollm", "1 2 Ġ 1 2"),
        ("llama-bpe", "12 Ġ 12"),
        ("qwen2", "1 2 Ġ 1 2"),
        ("qwen35", "1 2 Ġ 1 2"),
        ("tekken", "1 2 Ġ 1 2"),
        ("gpt-4o", "12 Ġ 12"),
    ],
)
def test_how_numbers_are_split(tmp_path, split, pieces):
    add = functools.partial(gpt2, split=split)
    found = tokenizer_from_gguf(write(tmp_path / "model.gguf", *checkpoint("gpt2"), tokenizer=add))
    assert found.convert_ids_to_tokens(found("12 12")["input_ids"]) == pieces.split()


def test_refusals(tmp_path):
    path = tmp_path / "model.gguf"
    write(path, *checkpoint("gemma2"), tokenizer=functools.partial(gemma, prefix=True))
    with pytest.raises(ModelError, match="add_space_prefix is True; supported: False"):
        tokenizer_from_gguf(path)
    write(path, *checkpoint("mistral"), tokenizer=gemma)
    with pytest.raises(ModelError, match="add_space_prefix is False; supported: True"):
        tokenizer_from_gguf(path)
    write(path, *checkpoint("gpt2"), tokenizer=other)
    with pytest.raises(ModelError, match=r"tokenizer\.ggml\.model is 't5'; supported"):
        tokenizer_from_gguf(path)
    write(path, *checkpoint("gpt2"), tokenizer=functools.partial(gpt2, split="new"))
    with pytest.raises(ModelError, match=r"tokenizer\.ggml\.pre is 'new', a way to split"):
        tokenizer_from_gguf(path)
    write(path, *checkpoint("gpt2"))
    with pytest.raises(ModelError, match=r"tokenizer\.ggml\.model is None; supported"):
        tokenizer_from_gguf(path)


def test_a_phi3_writes_a_space_before_every_text(tmp_path):
    """Before one that begins with a space too, where a Llama's writes none."""
    add = functools.partial(gemma, prefix=None)
    found = {}
    for name in ("phi3", "mistral"):
        path = write(tmp_path / f"{name}.gguf", *checkpoint(name), tokenizer=add)
        found[name] = tokenizer_from_gguf(path)
    for text, more in (("hello", 0), (" hello", 1)):
        tokens = {name: each.tokenize(text) for name, each in found.items()}
        assert "".join(tokens["mistral"]) == "▁hello"
        assert "".join(tokens["phi3"]) == "▁" * more + "▁hello"
        ids = found["phi3"](text)["input_ids"]
        assert found["phi3"].decode(ids, skip_special_tokens=True) == text

"""Tokenizers out of GGUF files; `parity/test_gguf.py` has the comparison with transformers."""

from __future__ import annotations

import functools

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
    write(path, *checkpoint("gpt2"))
    with pytest.raises(ModelError, match=r"tokenizer\.ggml\.model is None; supported"):
        tokenizer_from_gguf(path)

"""The tokenizer in a GGUF file, built by transformers' own conversion, without PyTorch."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from lntune_jax.errors import ModelError
from lntune_jax.storage.directories import refuse_url

from .gguf import GgufFile

_PREFIX = "tokenizer.ggml."

# What transformers' conversion reads, by the names it gives them.
_PARTS = {
    "model": "tokenizer_type",
    "pre": "pre_tokenizer_type",
    "tokens": "tokens",
    "scores": "scores",
    "token_type": "token_type",
    "merges": "merges",
}

_SPECIAL = {
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "unk_token": "unknown_token_id",
    "pad_token": "padding_token_id",
}

# A vocabulary of SentencePiece, and one of byte-level pieces.
_KINDS = ("llama", "gpt2")

# Ways to split text before merging that are GPT-2's own, or need no entry of their own.
_PLAIN_SPLITS = ("default", "gpt-2", "gpt2")

# GPT-2's way, but with every digit on its own.
_DIGIT_SPLITS = ("smollm",)


def tokenizer_from_gguf(path: str | os.PathLike[str]) -> Any:
    """Build the tokenizer that a GGUF file describes.

    Args:
        path: the file.

    Returns:
        A fast transformers tokenizer, with the file's special tokens and chat template.

    Raises:
        ModelError: the file is damaged, or its tokenizer is of a kind that is not known.

    Example:
        >>> from lntune_jax.models import tokenizer_from_gguf
        >>> try:
        ...     tokenizer_from_gguf("no-such-file.gguf")
        ... except ValueError as error:
        ...     print(error)
        no-such-file.gguf: no such file
    """
    from transformers import PreTrainedTokenizerFast
    from transformers.integrations.gguf.gguf_tokenizer_mapping import (
        GGUF_PRE_TOKENIZER_SPLITS,
        convert_gguf_tokenizer,
    )

    refuse_url(path, error=ModelError)
    path = Path(path).expanduser()
    if not path.is_file():
        raise ModelError(f"{path}: no such file")
    file = GgufFile(path)
    parts = {name: file.field(_PREFIX + key) for key, name in _PARTS.items()}
    parts = {name: value for name, value in parts.items() if value is not None}
    if parts.get("tokenizer_type") not in _KINDS:
        found = parts.get("tokenizer_type")
        raise ModelError(f"{path}: field {_PREFIX}model is {found!r}; supported: {_KINDS}")
    split = parts.get("pre_tokenizer_type", "default")
    if split not in (*_PLAIN_SPLITS, *_DIGIT_SPLITS, *GGUF_PRE_TOKENIZER_SPLITS):
        raise ModelError(f"{path}: field {_PREFIX}pre is {split!r}, a way to split text not known")
    usual = file.kind.space_prefix
    prefix = file.field(_PREFIX + "add_space_prefix", usual)
    if parts["tokenizer_type"] == "llama" and prefix != usual:
        raise ModelError(f"{path}: field {_PREFIX}add_space_prefix is {prefix}; supported: {usual}")
    try:
        backend, _ = convert_gguf_tokenizer(file.architecture, parts)
    except (KeyError, ValueError) as error:
        raise ModelError(f"{path}: its tokenizer cannot be built ({error})") from error
    if split in _DIGIT_SPLITS:
        backend.pre_tokenizer = _digits_apart()
    special = {name: file.field(_PREFIX + key) for name, key in _SPECIAL.items()}
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        chat_template=file.field("tokenizer.chat_template"),
        add_bos_token=file.field(_PREFIX + "add_bos_token", parts["tokenizer_type"] == "llama"),
        add_eos_token=file.field(_PREFIX + "add_eos_token", False),
        **{name: parts["tokens"][index] for name, index in special.items() if index is not None},
    )


def _digits_apart() -> Any:
    from tokenizers import pre_tokenizers

    digits = pre_tokenizers.Digits(individual_digits=True)
    return pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])

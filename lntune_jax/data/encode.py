"""Text to token ids, with the tokenizer that lies beside the model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..errors import ModelError
from ..messages import need_package
from .share import share_rows


def load_tokenizer(model: str, revision: str | None = None) -> Any:
    """The tokenizer of a model directory, a GGUF file or a hub id.

    Args:
        model: The directory, file or id.
        revision: A branch, tag or commit on the hub.

    Raises:
        ModelError: If there is none that can be read, or transformers is not installed.
    """
    need_package("transformers", "hf", f"the tokenizer of {model}", ModelError)
    from transformers import AutoTokenizer

    from ..models import tokenizer_from_gguf
    from ..models.loading.sources import TOKENIZER_PATTERNS, find_directory

    path = find_directory(model, revision, TOKENIZER_PATTERNS)
    if path.is_file():
        return tokenizer_from_gguf(path)
    try:
        return AutoTokenizer.from_pretrained(path)
    # A damaged file surfaces as whatever the parser underneath raises, plain Exception included.
    except Exception as error:
        reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else repr(error)
        raise ModelError(
            f"--model {model} has no tokenizer that can be read (tokenizer.json, or vocab.txt "
            f"with tokenizer_config.json): {reason}"
        ) from error


def encode(
    tokenizer: Any, texts: Sequence[str], max_length: int, vocabulary: int
) -> tuple[np.ndarray, ...]:
    """Token ids of each text, special tokens included.

    Args:
        tokenizer: From `load_tokenizer`.
        texts: The texts.
        max_length: Longer rows are cut to this many tokens.
        vocabulary: How many token ids the model has.

    Returns:
        One int32 array of shape (tokens,) a text.

    Raises:
        ModelError: If the tokenizer gives an id that the model does not have.
    """
    encoded = tokenizer(list(texts), truncation=True, max_length=max_length)["input_ids"]
    # A tokenizer without special tokens gives nothing for a text it knows no piece of.
    rows = tuple(np.asarray(ids or [padding_of(tokenizer)], np.int32) for ids in encoded)
    check_vocabulary(rows, vocabulary)
    return rows


def encode_shared(
    tokenizer: Any, texts: Sequence[str], max_length: int, vocabulary: int, mesh: Any
) -> tuple[np.ndarray, ...]:
    """As `encode`; of several processes each tokenises a share, and all get the rest."""

    def make(numbers: Sequence[int]) -> Sequence[np.ndarray]:
        own = [texts[number] for number in numbers]
        return encode(tokenizer, own, max_length, vocabulary) if own else []

    return tuple(share_rows(make, len(texts), mesh))


def encode_inputs(
    tokenizer: Any,
    texts: Sequence[str],
    pairs: Sequence[str] | None,
    max_length: int,
    config: Any,
    mesh: Any = None,
) -> tuple[tuple[np.ndarray, ...], tuple[np.ndarray, ...] | None]:
    """Token ids of texts or of pairs of texts, and which text of a pair each token belongs to.

    Args:
        tokenizer: From `load_tokenizer`.
        texts: The texts.
        pairs: The second text of each; `None` where there are none.
        max_length: Longer rows are cut to this many tokens, of a pair the longer text first.
        config: The model's config.
        mesh: `None` in a run of one process; of several each tokenises a share.

    Returns:
        One int32 array of shape (tokens,) a row, and the same of 0 and 1; `None` for these where
        there are no pairs, or the model or the tokenizer does not tell them apart.

    Raises:
        ModelError: If the tokenizer gives an id that the model does not have.
    """
    if pairs is None:
        return encode_shared(tokenizer, texts, max_length, config.vocab_size, mesh), None
    # RoBERTa's family has one type for both, DistilBERT's and decoders none.
    are_read = (getattr(config, "type_vocab_size", None) or 0) > 1
    are_read = are_read and "token_type_ids" in tokenizer.model_input_names

    def make(numbers: Sequence[int]) -> list[np.ndarray]:
        if not numbers:
            return []
        parts = ([column[number] for number in numbers] for column in (texts, pairs))
        encoded = tokenizer(*parts, truncation=True, max_length=max_length)
        ids = [own or [padding_of(tokenizer)] for own in encoded["input_ids"]]
        halves = [ids, encoded["token_type_ids"]] if are_read else [ids]
        return [np.concatenate(each).astype(np.int32) for each in zip(*halves, strict=True)]

    rows = share_rows(make, len(texts), mesh)
    if not are_read:
        tokens, types = tuple(rows), None
    else:
        halves = [np.split(row, 2) for row in rows]
        tokens, types = (tuple(half[part] for half in halves) for part in (0, 1))
    check_vocabulary(tokens, config.vocab_size)
    return tokens, types


def check_vocabulary(rows: Sequence[np.ndarray], vocabulary: int) -> None:
    """Refuse token ids that the model does not have.

    Raises:
        ModelError: If there is one.
    """
    largest = max(int(row.max()) for row in rows)
    if largest >= vocabulary:
        raise ModelError(
            f"the tokenizer gives token {largest}, but the model has {vocabulary}: the files in "
            "the --model directory do not belong together"
        )


def padding_of(tokenizer: Any) -> int:
    """Token id to pad with; any will do where there is none, because padding is masked."""
    return tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0

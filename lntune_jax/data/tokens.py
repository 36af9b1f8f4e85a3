"""Documents to token ids, and which of the tokens the loss counts.

Every document ends with the end-of-text token, where the tokenizer has one, and that token is
learnt like the others, so that a tuned model knows when to stop.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..errors import DataError
from .documents import Documents
from .encode import check_vocabulary
from .share import share_rows

IGNORED = -100


@dataclass(frozen=True)
class Encoded:
    """A document, or a part of one.

    Attributes:
        tokens: Token ids, int32 of shape (tokens,).
        labels: The same ids where the loss counts them, `IGNORED` elsewhere; never at the first
            token, which there is nothing to predict from.
        number: The row of the data file that it is from.
    """

    tokens: np.ndarray
    labels: np.ndarray
    number: int = 0

    @property
    def targets(self) -> int:
        """Tokens that the loss counts."""
        return int((self.labels != IGNORED).sum())


def encode_documents(tokenizer: Any, documents: Documents, vocabulary: int) -> list[Encoded]:
    """Tokenise documents of any form.

    Args:
        tokenizer: From `load_tokenizer`.
        documents: The documents.
        vocabulary: How many token ids the model has.

    Returns:
        One entry a document, of any length.

    Raises:
        DataError: If the tokenizer has no chat template, or one with which a chat does not begin
            as its own beginning does.
        ModelError: If the tokenizer gives an id that the model does not have.
    """
    if documents.form == "text":
        rows = tokenizer(list(documents.values))["input_ids"]
        encoded = [_label(_with_end(ids, tokenizer), 0) for ids in rows]
    elif documents.form == "completion":
        encoded = _encode_pairs(tokenizer, documents.values)
    else:
        encoded = [
            _encode_chat(tokenizer, messages, documents, row)
            for messages, row in zip(documents.values, documents.rows, strict=True)
        ]
    check_vocabulary([each.tokens for each in encoded if len(each.tokens)], vocabulary)
    pairs = zip(encoded, documents.rows, strict=True)
    return [replace(each, number=number) for each, number in pairs]


def encode_shared(
    tokenizer: Any, documents: Documents, vocabulary: int, mesh: Any
) -> list[Encoded]:
    """As `encode_documents`; of several processes each tokenises a share, and all get the rest."""

    def make(numbers: Sequence[int]) -> list[np.ndarray]:
        if not numbers:
            return []
        own = encode_documents(tokenizer, documents.take(np.asarray(numbers)), vocabulary)
        return [np.concatenate([each.tokens, each.labels]) for each in own]

    rows = share_rows(make, len(documents.values), mesh)
    halves = (np.split(row, 2) for row in rows)
    pairs = zip(halves, documents.rows, strict=True)
    return [Encoded(tokens, labels, number) for (tokens, labels), number in pairs]


def _encode_pairs(tokenizer: Any, pairs: Sequence[tuple[str, str]]) -> list[Encoded]:
    """Prompt and completion tokenised apart: what a model that generates will be given."""
    prompts = tokenizer([prompt for prompt, _ in pairs])["input_ids"]
    completions = tokenizer([text for _, text in pairs], add_special_tokens=False)["input_ids"]
    encoded = []
    for prompt, completion in zip(prompts, completions, strict=True):
        before = prompt[:-1] if prompt and prompt[-1] == tokenizer.eos_token_id else prompt
        encoded.append(_label(before + _with_end(completion, tokenizer), len(before)))
    return encoded


def _encode_chat(
    tokenizer: Any, messages: list[dict[str, Any]], documents: Documents, row: int
) -> Encoded:
    """A chat in the tokenizer's template; the loss counts what the assistant says.

    An answer reaches from behind the words that ask for one (`add_generation_prompt`) to where the
    template ends the message, its end-of-turn token included.
    """
    whole = _render(tokenizer, messages, documents, row)
    labels = np.full(len(whole), IGNORED, np.int32)
    tokens = np.asarray(whole, np.int32)
    for number, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before = _render(tokenizer, messages[:number], documents, row, asks=True) if number else []
        until = _render(tokenizer, messages[: number + 1], documents, row)
        for part in (before, until):
            if whole[: len(part)] != part:
                raise DataError(
                    f"{documents.path}: the chat template changes earlier messages of row {row} "
                    f"when message {number + 1} follows, so that the assistant's tokens cannot be "
                    "told apart; give the rows as prompt and completion"
                )
        labels[len(before) : len(until)] = tokens[len(before) : len(until)]
    labels[:1] = IGNORED
    return Encoded(tokens, labels)


def _render(
    tokenizer: Any,
    messages: list[dict[str, Any]],
    documents: Documents,
    row: int,
    *,
    asks: bool = False,
) -> list[int]:
    if not getattr(tokenizer, "chat_template", None):
        raise DataError(
            f"{documents.path} holds messages, but the model's tokenizer has no chat template; "
            "give the rows as prompt and completion"
        )
    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=asks)
    # A template is a program of its own: whatever it raises is about this row.
    except Exception as error:
        reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else repr(error)
        raise DataError(
            f"{documents.path}: the chat template cannot write row {row}: {reason}"
        ) from error
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def _with_end(ids: list[int], tokenizer: Any) -> list[int]:
    end = tokenizer.eos_token_id
    return ids if end is None or (ids and ids[-1] == end) else [*ids, end]


def _label(ids: list[int], first: int) -> Encoded:
    tokens = np.asarray(ids, np.int32)
    labels = tokens.copy()
    labels[: max(first, 1)] = IGNORED
    return Encoded(tokens, labels)

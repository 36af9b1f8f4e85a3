"""Documents to token ids, and which of the tokens the loss counts.

Every document ends with the end-of-text token, where the tokenizer has one, and that token is
learnt like the others, so that a tuned model knows when to stop.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from .chats import Chat, encode_chats
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
        first: Tokens at its beginning that the tokenizer puts before every text.
    """

    tokens: np.ndarray
    labels: np.ndarray
    number: int = 0
    first: int = 0

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
        DataError: If the tokenizer has no chat template, or one that cannot write some rows.
        ModelError: If the tokenizer gives an id that the model does not have.
    """
    first = _count_first(tokenizer, documents)
    if documents.form == "text":
        rows = prompt_tokens(tokenizer, documents.values)
        encoded = [_label(_with_end(ids, tokenizer), first, first) for ids in rows]
    elif documents.form == "completion":
        encoded = _encode_pairs(tokenizer, documents.values, first)
    else:
        encoded = [_label_chat(chat) for chat in encode_chats(tokenizer, documents)]
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
    first = _count_first(tokenizer, documents)
    return [Encoded(tokens, labels, number, first) for (tokens, labels), number in pairs]


def first_tokens(tokenizer: Any) -> list[int]:
    """The special tokens that a tokenizer puts before a text: Gemma's `<bos>`, GPT-2's none.

    Some models read everything against their first token, and are lost without it.
    """
    # A tokenizer of few letters may have no token for the first of these.
    for text in ("x", "a", "1", ".", " "):
        own = list(tokenizer(text, add_special_tokens=False)["input_ids"])
        whole = list(tokenizer(text)["input_ids"])
        places = range(len(whole) - len(own) + 1)
        if own:
            return whole[: next((at for at in places if whole[at : at + len(own)] == own), 0)]
    whole = list(tokenizer("")["input_ids"])
    return whole[:-1] if whole and whole[-1] == tokenizer.eos_token_id else whole


def prompt_tokens(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """The ids of texts that are to be continued: as the tokenizer begins them, without an end."""
    first = first_tokens(tokenizer)
    return [first + own for own in _plain(tokenizer, texts)]


def _count_first(tokenizer: Any, documents: Documents) -> int:
    # A chat's template writes them itself.
    return 0 if documents.form == "messages" else len(first_tokens(tokenizer))


def _plain(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    found = tokenizer(list(texts), add_special_tokens=False)["input_ids"]
    return [list(ids) for ids in found]


def _encode_pairs(tokenizer: Any, pairs: Sequence[tuple[str, str]], first: int) -> list[Encoded]:
    """Prompt and completion tokenised apart: what a model that generates will be given."""
    prompts = prompt_tokens(tokenizer, [prompt for prompt, _ in pairs])
    completions = _plain(tokenizer, [completion for _, completion in pairs])
    return [
        _label(prompt + _with_end(completion, tokenizer), len(prompt), first)
        for prompt, completion in zip(prompts, completions, strict=True)
    ]


def _label_chat(chat: Chat) -> Encoded:
    tokens = np.asarray(chat.tokens, np.int32)
    labels = np.where(chat.counted, tokens, IGNORED).astype(np.int32)
    labels[:1] = IGNORED
    return Encoded(tokens, labels)


def _with_end(ids: list[int], tokenizer: Any) -> list[int]:
    end = tokenizer.eos_token_id
    return ids if end is None or (ids and ids[-1] == end) else [*ids, end]


def _label(ids: list[int], start: int, first: int) -> Encoded:
    tokens = np.asarray(ids, np.int32)
    labels = tokens.copy()
    labels[: max(start, 1)] = IGNORED
    return Encoded(tokens, labels, first=first)

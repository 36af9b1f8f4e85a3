"""Words as pieces: the first piece of a word has its label, and the loss counts no other one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any, NamedTuple

import numpy as np

from ..errors import DataError, ModelError
from .batches import PlannedBatch
from .encode import check_vocabulary, padding_of
from .labels import number_labels
from .packing import LanguageRows, assemble_language
from .sentences import Sentences
from .share import share_rows
from .spread import spread_rows
from .tokens import IGNORED


class EncodedSentence(NamedTuple):
    """A sentence for a model.

    Attributes:
        tokens: Token ids, int32 of shape (tokens,).
        firsts: The number of the word that a token is the first piece of, from 0; `IGNORED` at
            other tokens.
        lost: Words behind the cut.
    """

    tokens: np.ndarray
    firsts: np.ndarray
    lost: int


def encode_sentences(
    tokenizer: Any,
    sentences: Sequence[Sequence[str]],
    max_length: int,
    vocabulary: int,
    mesh: Any = None,
) -> list[EncodedSentence]:
    """Token ids, special tokens included, and which of them begin which word.

    A word that becomes no piece, as a blank, begins at none.

    Args:
        tokenizer: From `load_tokenizer`.
        sentences: The words of each.
        max_length: Longer rows are cut to this many tokens.
        vocabulary: How many token ids the model has.
        mesh: Of several processes each tokenises a share, and all get the rest.

    Raises:
        ModelError: If the tokenizer cannot say where its pieces are from, or gives an id that the
            model does not have.
    """
    if not tokenizer.is_fast:
        raise ModelError(
            "the tokenizer of --model cannot say which word a piece is of: a model with a "
            "tokenizer.json is needed to label words"
        )

    def make(numbers: Sequence[int]) -> list[np.ndarray]:
        own = [[_with_blank(word) for word in sentences[number]] for number in numbers]
        if not own:
            return []
        found = tokenizer(own, is_split_into_words=True, truncation=True, max_length=max_length)
        return [_join(each, padding_of(tokenizer)) for each in found.encodings]

    encoded = []
    for row in share_rows(make, len(sentences), mesh):
        tokens, firsts = np.split(row[1:], 2)
        encoded.append(EncodedSentence(tokens, firsts, int(row[0])))
    check_vocabulary([each.tokens for each in encoded], vocabulary)
    return encoded


def _with_blank(word: str) -> str:
    """A word as it stands in a text: byte-level tokenizers have other pieces for one without."""
    return f" {word}" if word.strip() else ""


def _join(encoding: Any, padding: int) -> np.ndarray:
    """The count of words lost, the token ids and the words' beginnings, in one array."""
    firsts = _list_firsts(encoding.word_ids)
    kept = {word for word in firsts if word != IGNORED}
    cut = {word for part in encoding.overflowing for word in part.word_ids if word is not None}
    # A tokenizer without special tokens gives nothing for words it knows no piece of.
    tokens, firsts = (encoding.ids, firsts) if encoding.ids else ([padding], [IGNORED])
    return np.asarray([len(cut - kept), *tokens, *firsts], np.int32)


def _list_firsts(words: Sequence[int | None]) -> list[int]:
    before = [None, *words[:-1]]
    return [
        IGNORED if word is None or word == last else word
        for word, last in zip(words, before, strict=True)
    ]


def take_rows(rows: LanguageRows, numbers: np.ndarray) -> LanguageRows:
    """The rows with these numbers, in this order."""
    fields = (rows.tokens, rows.labels, rows.numbers)
    tokens, labels, places = (tuple(each[number] for number in numbers) for each in fields)
    return LanguageRows(tokens, labels, None, places)


def make_rows(
    tokenizer: Any,
    table: Sentences,
    names: Sequence[str],
    limit: int,
    vocabulary: int,
    say: Callable[[str], None],
    mesh: Any = None,
) -> LanguageRows:
    """Rows whose labels stand at the first pieces of words.

    Args:
        tokenizer: From `load_tokenizer`.
        table: Words and labels.
        names: The known labels, by class number.
        limit: Tokens in a row at most.
        vocabulary: How many token ids the model has.
        say: Called with a line about words that have no piece.
        mesh: As for `encode_sentences`.

    Raises:
        DataError: If a label is not known, or no word has a piece.
    """
    counts = [len(words) for words in table.words]
    flat = list(chain.from_iterable(table.labels))
    places = np.repeat(table.places, counts).tolist()
    numbered = number_labels(flat, names, table.path, places, table.unit)
    classes = np.split(numbered, np.cumsum(counts)[:-1])
    encoded = encode_sentences(tokenizer, table.words, limit, vocabulary, mesh)
    for line in describe_losses(encoded, counts, limit):
        say(f"{table.path.name}: {line}")
    rows = [
        (each.tokens, _at_firsts(each.firsts, own), (place,))
        for each, own, place in zip(encoded, classes, table.places, strict=True)
        if (each.firsts != IGNORED).any()
    ]
    if not rows:
        raise DataError(f"{table.path} has no word that the model's tokenizer has a piece for")
    tokens, labels, numbers = zip(*rows, strict=True)
    return LanguageRows(tokens, labels, None, numbers)


def _at_firsts(firsts: np.ndarray, classes: np.ndarray) -> np.ndarray:
    return np.where(firsts == IGNORED, IGNORED, classes[np.maximum(firsts, 0)]).astype(np.int32)


def describe_losses(
    encoded: Sequence[EncodedSentence], counts: Sequence[int], limit: int
) -> list[str]:
    """Which words have no place in the rows, a line each; nothing where all have one.

    Args:
        encoded: The sentences.
        counts: Words of each.
        limit: Tokens in a row.
    """
    lost = sum(each.lost for each in encoded)
    cut = sum(each.lost > 0 for each in encoded)
    known = sum(int((each.firsts != IGNORED).sum()) for each in encoded)
    lines = []
    if cut:
        lines.append(
            f"{cut:,} row{'s are' if cut > 1 else ' is'} longer than {limit} tokens and cut: "
            f"{lost:,} of {sum(counts):,} words are lost (--max-length)"
        )
    missing = sum(counts) - known - lost
    if missing:
        lines.append(
            f"{missing:,} word{'s become' if missing > 1 else ' becomes'} no piece, as a blank "
            "does, and count nowhere"
        )
    return lines


def place_pieces(
    planned: PlannedBatch, rows: LanguageRows, batch_size: int, padding: int, mesh: Any
) -> dict[str, Any]:
    """The arrays of one batch; past its last row the first again, without labels."""

    def make(start: int, stop: int) -> dict[str, Any]:
        places = np.arange(start, stop)
        real = places < len(planned.rows)
        # A row of padding alone has no defined attention.
        numbers = planned.rows[np.where(real, places, 0)]
        part = PlannedBatch(numbers, planned.length)
        arrays = assemble_language(part, rows, len(numbers), padding)
        arrays["labels"][~real] = IGNORED
        lengths = np.asarray([len(rows.tokens[number]) for number in numbers])
        mask = np.arange(planned.length) < lengths[:, None]
        return arrays | {"attention_mask": mask.astype(np.int32)}

    return spread_rows(make, batch_size, mesh)

"""Entities in label sequences, and their precision, recall and F1, by seqeval's default rules.

An entity is a type, a first and a last word; it is right if all three are. In IOB2 `B-PER` begins
one and `I-PER` goes on with it; an `I-PER` after `O` or after another type begins one too, and
`E-` and `S-` (IOBES) end and stand alone. Of labels without a prefix, each run of equal ones is an
entity, but for `O`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

_PREFIXED = re.compile(r"([BIES])-(.+)", re.DOTALL)


class Entity(NamedTuple):
    """A type, and the numbers of the first and the last word."""

    kind: str
    first: int
    last: int


def list_entities(labels: Sequence[str]) -> list[Entity]:
    """The entities of a sentence, in their order.

    Example:
        >>> list_entities(["B-PER", "I-PER", "O", "I-LOC"])
        [Entity(kind='PER', first=0, last=1), Entity(kind='LOC', first=3, last=3)]
        >>> [tuple(each) for each in list_entities(["NOUN", "NOUN", "VERB"])]
        [('NOUN', 0, 1), ('VERB', 2, 2)]
    """
    found: list[Entity] = []
    tag, kind, first = "O", "", 0
    for place, label in enumerate([*labels, "O"]):
        next_tag, next_kind = _split(label)
        # What begins an entity also ends the one before it.
        goes_on = tag in ("B", "I") and next_tag in ("I", "E") and kind == next_kind
        if tag != "O" and not goes_on:
            found.append(Entity(kind, first, place - 1))
        if not goes_on:
            first = place
        tag, kind = next_tag, next_kind
    return found


@dataclass(frozen=True)
class EntityScore:
    """How well entities were found.

    Attributes:
        right: Entities found, type and both ends.
        found: Entities predicted.
        actual: Entities that there are.
    """

    right: int
    found: int
    actual: int

    @property
    def precision(self) -> float:
        """Share of the predicted entities that are right; 0 where none was."""
        return self.right / max(self.found, 1)

    @property
    def recall(self) -> float:
        """Share of the entities that were found; 0 where there is none."""
        return self.right / max(self.actual, 1)

    @property
    def f1(self) -> float:
        """The harmonic mean of both."""
        return 2 * self.right / max(self.found + self.actual, 1)


def score_entities(
    labels: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]]
) -> tuple[EntityScore, dict[str, EntityScore]]:
    """Compare sentences' labels with predicted ones.

    Args:
        labels: The labels of each sentence.
        predicted: As many of each.

    Returns:
        The score over all entities, which is seqeval's (micro average), and each type's, by name.

    Example:
        >>> whole, types = score_entities([["B-PER", "I-PER", "O"]], [["B-PER", "O", "B-LOC"]])
        >>> whole, sorted(types)
        (EntityScore(right=0, found=2, actual=1), ['LOC', 'PER'])
    """
    right, found, actual = Counter(), Counter(), Counter()
    for own, other in zip(labels, predicted, strict=True):
        true, claimed = set(list_entities(own)), set(list_entities(other))
        right.update(each.kind for each in true & claimed)
        found.update(each.kind for each in claimed)
        actual.update(each.kind for each in true)
    types = {
        kind: EntityScore(right[kind], found[kind], actual[kind])
        for kind in sorted(found.keys() | actual.keys())
    }
    return EntityScore(right.total(), found.total(), actual.total()), types


def _split(label: str) -> tuple[str, str]:
    """The tag and the type of a label; one without a prefix goes on as long as it is repeated."""
    if label == "O":
        return "O", ""
    prefixed = _PREFIXED.fullmatch(label)
    return (prefixed[1], prefixed[2]) if prefixed else ("I", label)

"""Labels as numbers: their order, and the rows to hold out.

Label names have one total order, so that the same labels get the same numbers on any machine, in
every process and under every hash seed.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from ..errors import DataError
from ..messages import list_names, nearest, warn
from .tables import name_places

# What float() takes beside these, as nan, inf and 1_000, is a word here.
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?", re.ASCII)

# So many labels or rows are named in a message.
_MOST_NAMED = 20


def sort_labels(labels: Iterable[str]) -> tuple[str, ...]:
    """The different labels in their one order: numbers by value, then words by letter.

    Example:
        >>> sort_labels(["10", "9", "nan", "inf", "1.0", "1", "10"])
        ('1', '1.0', '9', '10', 'inf', 'nan')
    """
    return tuple(sorted(set(labels), key=_place_label))


def _place_label(name: str) -> tuple[bool, float, str]:
    is_number = _NUMBER.fullmatch(name) is not None
    # The name decides between numbers of one value, and there are no two of one name.
    return not is_number, float(name) if is_number else 0.0, name


def name_labels(labels: Sequence[str], path: Path) -> tuple[str, ...]:
    """The different labels of a training table, in the order of their class numbers.

    Warns of a label that a single row has.

    Args:
        labels: One label a row.
        path: The file they come from, for messages.

    Raises:
        DataError: If there are fewer than two, or no label occurs twice.

    Example:
        >>> name_labels(["10", "9", "9", "10"], Path("a.csv"))
        ('9', '10')
    """
    names = set(labels)
    if len(names) < 2:
        raise DataError(
            f"every row of {path} has the label {labels[0]!r}; a classifier needs two or more "
            "(--label-column)"
        )
    if len(names) == len(labels) > 2:
        raise DataError(
            f"all {len(labels)} rows of {path} have different labels; --label-column must name "
            "a column of classes"
        )
    single = sort_labels(name for name, count in Counter(labels).items() if count == 1)
    if single:
        which = "the label" if len(single) == 1 else "each of the labels"
        warn(
            f"{path} has a single row with {which} {list_names(single)}: too few to learn from and "
            "to evaluate on",
            UserWarning,
        )
    return sort_labels(names)


def number_labels(
    labels: Sequence[str],
    names: Sequence[str],
    path: Path,
    places: Sequence[int] | None = None,
    unit: str = "row",
) -> np.ndarray:
    """Class numbers for labels.

    Args:
        labels: One label a row.
        names: The known labels, by class number.
        path: The file the labels come from, for messages.
        places: Where each row is in the file; `None` counts from 1.
        unit: What `places` counts: `line` or `row`.

    Returns:
        int32 array of shape (rows,).

    Raises:
        DataError: If labels are not known; the message names them and where they are.
    """
    numbers = {name: number for number, name in enumerate(names)}
    places = range(1, len(labels) + 1) if places is None else places
    unknown = [
        (label, at) for label, at in zip(labels, places, strict=True) if label not in numbers
    ]
    if unknown:
        found: dict[str, list[int]] = {}
        for label, place in unknown[:_MOST_NAMED]:
            found.setdefault(label, []).append(place)
        told = "; ".join(f"{label!r} in {name_places(unit, at)}" for label, at in found.items())
        more = len(unknown) - _MOST_NAMED
        told += f"; and {more:,} more {unit}{'s' * (more > 1)}" if more > 0 else ""
        known = ", ".join(map(repr, names[:_MOST_NAMED])) + ", ..." * (len(names) > _MOST_NAMED)
        hint = nearest(unknown[0][0], names)
        raise DataError(
            f"{path} has labels that training did not have: {told}; it had {known}{hint}; choose "
            "the column with --label-column"
        )
    return np.asarray([numbers[label] for label in labels], np.int32)


def draw_rows(rows: np.ndarray, most: int | None, seed: int) -> np.ndarray:
    """At most so many of some rows, in their order.

    Args:
        rows: Row numbers.
        most: How many to keep; `None` keeps all.
        seed: Which rows are drawn.

    Example:
        >>> draw_rows(np.arange(10), 3, seed=0).shape, draw_rows(np.arange(2), 3, seed=0).tolist()
        ((3,), [0, 1])
    """
    if most is None or most >= len(rows):
        return rows
    return np.sort(np.random.default_rng(seed).choice(rows, most, replace=False))


def split_rows(classes: np.ndarray, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Hold out the same share of every class.

    Args:
        classes: Class numbers, shape (rows,).
        fraction: Share to hold out, between 0 and 1.
        seed: Which rows are drawn.

    Returns:
        Row numbers to train on and row numbers held out, each sorted. A class of two rows or
        more has at least one on either side.

    Raises:
        DataError: If no row would be left on one side.
    """
    generator = np.random.default_rng(seed)
    held_out = []
    for number in np.unique(classes):
        rows = generator.permutation(np.flatnonzero(classes == number))
        share = round(fraction * len(rows))
        held_out.append(rows[: min(max(share, 1), len(rows) - 1)])
    evaluation = np.sort(np.concatenate(held_out))
    training = np.setdiff1d(np.arange(len(classes)), evaluation)
    if not len(evaluation) or not len(training):
        raise DataError(
            f"{len(classes)} rows are too few to hold any out for evaluation; give --eval-data"
        )
    return training, evaluation

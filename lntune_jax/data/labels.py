"""Labels as numbers: their order, and the rows to hold out.

Label names are sorted (numbers by value), so that the same file gives the same numbers on any
machine.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..errors import DataError
from ..messages import nearest


def name_labels(labels: Sequence[str], path: Path) -> tuple[str, ...]:
    """The different labels of a training table, in the order of their class numbers.

    Args:
        labels: One label a row.
        path: The file they come from, for messages.

    Raises:
        DataError: If there are fewer than two, or no label occurs twice.

    Example:
        >>> name_labels(["10", "9", "9"], Path("a.csv"))
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
    try:
        return tuple(sorted(names, key=lambda name: (float(name), name)))
    except ValueError:
        return tuple(sorted(names))


def number_labels(labels: Sequence[str], names: Sequence[str], path: Path) -> np.ndarray:
    """Class numbers for labels.

    Args:
        labels: One label a row.
        names: The known labels, by class number.
        path: The file the labels come from, for messages.

    Returns:
        int32 array of shape (rows,).

    Raises:
        DataError: If a label is not known; the message names it and its row.
    """
    numbers = {name: number for number, name in enumerate(names)}
    for row, label in enumerate(labels, start=1):
        if label not in numbers:
            known = ", ".join(repr(name) for name in names[:20]) + (", ..." * (len(names) > 20))
            raise DataError(
                f"{path} has the label {label!r} in row {row}, which training did not have; it "
                f"had {known}{nearest(label, names)}; choose the column with --label-column"
            )
    return np.asarray([numbers[label] for label in labels], np.int32)


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

"""Accuracy, F1, the confusion matrix and correlations, in float64 on the host."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Scores:
    """How well logits match classes.

    Attributes:
        loss: Mean cross entropy.
        accuracy: Share of rows whose largest logit is the right one.
        macro_f1: Mean of the classes' F1, over the classes that occur or are predicted.
        precision: By class, shape (classes,).
        recall: By class, shape (classes,).
        f1: By class, shape (classes,).
        confusion: Rows by true class (first axis) and predicted class, shape (classes, classes).
    """

    loss: float
    accuracy: float
    macro_f1: float
    precision: np.ndarray
    recall: np.ndarray
    f1: np.ndarray
    confusion: np.ndarray


def score(logits: np.ndarray, classes: np.ndarray) -> Scores:
    """Compare logits with class numbers.

    Args:
        logits: Shape (rows, classes).
        classes: Class numbers, shape (rows,).

    Example:
        >>> score(np.array([[2.0, 0.0], [0.0, 2.0], [3.0, 0.0]]), np.array([0, 1, 1])).confusion
        array([[1, 0],
               [1, 1]])
    """
    predicted = logits.argmax(axis=1)
    confusion = np.zeros((logits.shape[1],) * 2, np.int64)
    np.add.at(confusion, (classes, predicted), 1)
    right, actual, claimed = np.diag(confusion), confusion.sum(axis=1), confusion.sum(axis=0)
    f1 = _ratio(2 * right, actual + claimed)
    seen = (actual + claimed) > 0
    of_own_class = _log_softmax(logits)[np.arange(len(classes)), classes]
    return Scores(
        loss=float(-of_own_class.mean()),
        accuracy=float((predicted == classes).mean()),
        macro_f1=float(f1[seen].mean()),
        precision=_ratio(right, claimed),
        recall=_ratio(right, actual),
        f1=f1,
        confusion=confusion,
    )


def probabilities(logits: np.ndarray) -> np.ndarray:
    """Softmax over the last axis, in float64; shape (rows, classes)."""
    return np.exp(_log_softmax(logits))


def rank(values: np.ndarray) -> np.ndarray:
    """Ranks from 1; equal values share the mean of theirs.

    Example:
        >>> rank(np.array([0.5, 0.1, 0.5, 0.9])).tolist()
        [2.5, 1.0, 2.5, 4.0]
    """
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[places]


def correlate(left: np.ndarray, right: np.ndarray) -> float:
    """Pearson's correlation; 0 where one side is constant and it has no value.

    Example:
        >>> correlate(np.array([1.0, 2.0, 3.0]), np.array([2.0, 4.0, 6.0]))
        1.0
        >>> correlate(np.array([1.0, 1.0]), np.array([0.0, 1.0]))
        0.0
    """
    left, right = left - left.mean(), right - right.mean()
    both = np.sqrt((left @ left) * (right @ right))
    return float(np.clip(left @ right / both, -1, 1)) if both > 0 else 0.0


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Part of whole, and 0 where there is no whole."""
    return part / np.maximum(whole, 1)

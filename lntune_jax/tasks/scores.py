"""Accuracy, F1 and the confusion matrix, from logits in float64 on the host."""

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


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Part of whole, and 0 where there is no whole."""
    return part / np.maximum(whole, 1)

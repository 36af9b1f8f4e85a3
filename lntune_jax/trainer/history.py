"""What a run has seen so far: evaluations, the best of them, and whether to stop.

Small immutable records that go into every checkpoint as JSON, so that a resumed run decides as an
uninterrupted one would.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from ..tasks.base import LOSS, Metric


@dataclass(frozen=True)
class Evaluation:
    """The figures of one evaluation.

    Attributes:
        step: Steps done.
        figures: By name; `loss` is always there.

    Example:
        >>> Evaluation(4, {"loss": 0.5, "accuracy": 0.75}).loss
        0.5
    """

    step: int
    figures: Mapping[str, float] = field(default_factory=dict)

    @property
    def loss(self) -> float:
        """The mean loss."""
        return self.figures["loss"]

    def describe(self, metrics: Iterable[Metric]) -> str:
        """The figures as words.

        Example:
            >>> Evaluation(4, {"loss": 0.5}).describe(())
            'evaluation loss 0.5000'
        """
        labels = {metric.name: metric.label for metric in (LOSS, *metrics)}
        pairs = self.figures.items()
        return ", ".join(f"{labels.get(name, name)} {value:.4f}" for name, value in pairs)


def rank(evaluation: Evaluation, metric: Metric) -> tuple[float, float, int]:
    """What orders evaluations, the best first; on a tie the lower loss, then the earlier step."""
    value = evaluation.figures[metric.name]
    # A figure that is no number is the worst.
    return (metric.sign * value if value == value else np.inf, evaluation.loss, evaluation.step)


@dataclass(frozen=True)
class History:
    """The evaluations of one adapter.

    Attributes:
        evaluations: All of them, in order.
        stopped: Whether its training was stopped early.
    """

    evaluations: tuple[Evaluation, ...] = ()
    stopped: bool = False

    def best(self, metric: Metric) -> Evaluation:
        """The best evaluation so far; of equal figures the lower loss, then the earlier step."""
        return min(self.evaluations, key=lambda each: rank(each, metric))

    def add(self, evaluation: Evaluation, metric: Metric, patience: int | None) -> History:
        """The history with one more evaluation; stopped when patience has run out."""
        longer = replace(self, evaluations=(*self.evaluations, evaluation))
        best = longer.best(metric)
        since = sum(each.step > best.step for each in longer.evaluations)
        return replace(longer, stopped=patience is not None and since >= patience)

    def to_json(self) -> dict[str, Any]:
        """A dictionary of plain values."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> History:
        """The inverse of `to_json`."""
        return cls(tuple(Evaluation(**each) for each in content["evaluations"]), content["stopped"])


@dataclass(frozen=True)
class Records:
    """The histories of all adapters of a run.

    Attributes:
        histories: One each.
        diverged: The step at which an adapter's loss was no number, or `None`.
        skipped: How many steps in a row each has skipped.
        seconds: Time spent in training and evaluation.
    """

    histories: tuple[History, ...]
    diverged: tuple[int | None, ...]
    skipped: tuple[int, ...]
    seconds: float = 0.0

    @classmethod
    def new(cls, count: int) -> Records:
        """Those of a run that has not begun."""
        return cls((History(),) * count, (None,) * count, (0,) * count)

    def active(self) -> np.ndarray:
        """Which adapters go on, booleans of shape (adapters,)."""
        pairs = zip(self.histories, self.diverged, strict=True)
        return np.asarray([not history.stopped and step is None for history, step in pairs])

    def diverge(self, numbers: Iterable[int], step: int) -> Records:
        """The records with these adapters out."""
        diverged = list(self.diverged)
        for number in numbers:
            diverged[number] = step
        return replace(self, diverged=tuple(diverged))

    def with_history(self, number: int, history: History) -> Records:
        """The records with another history of one adapter."""
        histories = list(self.histories)
        histories[number] = history
        return replace(self, histories=tuple(histories))

    def to_json(self) -> dict[str, Any]:
        """A dictionary of plain values."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Records:
        """The inverse of `to_json`."""
        histories = tuple(History.from_json(each) for each in content["histories"])
        diverged, skipped = tuple(content["diverged"]), tuple(content["skipped"])
        return cls(histories, diverged, skipped, content["seconds"])

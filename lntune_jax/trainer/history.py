"""What a run has seen so far: its evaluations, the best of them, and whether to stop.

A small immutable record that goes into every checkpoint as JSON, so that a resumed run decides
as an uninterrupted one would.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any


@dataclass(frozen=True)
class Evaluation:
    """The figures of one evaluation; `None` for those that the task does not have.

    Attributes:
        step: Steps done.
        loss: Mean cross entropy: a row of a classifier, a predicted token of a language model.
        accuracy: Share of rows labelled right.
        macro_f1: Mean of the classes' F1.
        perplexity: The exponential of the loss.
    """

    step: int
    loss: float
    accuracy: float | None = None
    macro_f1: float | None = None
    perplexity: float | None = None

    def figures(self) -> dict[str, float]:
        """The figures that the task has, by name."""
        values = asdict(self)
        del values["step"]
        return {name: value for name, value in values.items() if value is not None}

    def describe(self) -> str:
        """The figures as words."""
        return ", ".join(f"{_NAMES[name]} {value:.4f}" for name, value in self.figures().items())


def rank(evaluation: Evaluation, metric: str) -> tuple[float, float, int]:
    """What orders evaluations, the best first; on a tie the lower loss, then the earlier step."""
    sign = 1.0 if metric in ("loss", "perplexity") else -1.0
    return (sign * getattr(evaluation, metric), evaluation.loss, evaluation.step)


_NAMES = {
    "loss": "evaluation loss",
    "accuracy": "accuracy",
    "macro_f1": "macro F1",
    "perplexity": "perplexity",
}


@dataclass(frozen=True)
class History:
    """The evaluations of a run.

    Attributes:
        evaluations: All of them, in order.
        seconds: Time spent in training and evaluation.
        stopped: Whether the run was stopped early.
    """

    evaluations: tuple[Evaluation, ...] = ()
    seconds: float = 0.0
    stopped: bool = False

    def best(self, metric: str) -> Evaluation:
        """The best evaluation so far; of equal figures the lower loss, then the earlier step."""
        return min(self.evaluations, key=lambda each: rank(each, metric))

    def add(self, evaluation: Evaluation, metric: str, patience: int | None) -> History:
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
        evaluations = tuple(Evaluation(**each) for each in content["evaluations"])
        return cls(evaluations, content["seconds"], content["stopped"])

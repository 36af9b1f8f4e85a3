"""What can be set for `demo`; as in `_settings`, the docstrings are the help."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from .help import shown
from .options import TrainTask


@dataclass(frozen=True)
class DemoSettings:
    """The whole job on a small real model and real data, on a CPU, in minutes.

    MiniLM on film reviews: a head on the frozen encoder, then norms and head.
    With --task causal_lm, SmolLM2 on longer ones: its norms in float32 over a float32
    and over a bfloat16 base, and in bfloat16, where small steps round to nothing.
    The adapter is saved, restored into a fresh base, and predictions compared.
    """

    task: TrainTask = "seq_cls"
    """What is trained: a classifier of texts, or a causal language model."""
    output: Path = Path("demo-output")
    """Directory that receives the runs and the figure; an earlier demo there is replaced."""
    full: bool = False
    """Also train every weight of the classifier, for comparison (several times slower)."""
    seeds: tuple[int, ...] = (0,)
    """Train once with each of these seeds."""
    steps: Annotated[int | None, shown("the whole recipe", "INT")] = None
    """Train for so few steps only, on fewer rows: a smoke test, not a result."""
    learning_rate: Annotated[float | None, shown("0.001", "FLOAT")] = None
    """Peak learning rate of the language model's norms."""

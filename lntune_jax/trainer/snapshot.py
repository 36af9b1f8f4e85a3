"""What a checkpoint of a run holds: the training state, and the best leaves so far."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax

from ..training.state import TrainState


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Snapshot:
    """A pytree with the position of a run.

    Attributes:
        train: The training state.
        best: Trainable leaves of the best evaluation, as numpy arrays.
    """

    train: TrainState
    best: dict[str, Any]

    @property
    def step(self) -> Any:
        """Steps done, which names the checkpoint."""
        return self.train.step

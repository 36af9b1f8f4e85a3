"""One training step: optimizer, gradients, state, step, checkpoints."""

from .checkpoints import finish_saves, open_checkpoints, restore_state, save_state
from .gradients import WeightedLoss, value_and_grad
from .many import make_multi_step, stack_states, unstack_states
from .optimizer import adamw, make_optimizer
from .state import TrainState
from .step import TrainStep, make_train_step

__all__ = [
    "TrainState",
    "TrainStep",
    "WeightedLoss",
    "adamw",
    "finish_saves",
    "make_multi_step",
    "make_optimizer",
    "make_train_step",
    "open_checkpoints",
    "restore_state",
    "save_state",
    "stack_states",
    "unstack_states",
    "value_and_grad",
]

"""One training step: optimizer, gradients, state, step, checkpoints."""

from . import checkpoints as checkpoints

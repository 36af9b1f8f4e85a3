"""`lntune-jax demo`: which of the two jobs it is, and what goes with which."""

from __future__ import annotations

from ..errors import ConfigError
from .options import DemoSettings


def run(settings: DemoSettings) -> None:
    """Train, compare, save, restore, and say what was found.

    Raises:
        ConfigError: If a flag belongs to the other task, or has no sensible value.
    """
    if not settings.seeds:
        raise ConfigError("--seeds needs one number or more")
    if settings.task == "seq_cls":
        from . import demo_classifier as demo

        if settings.learning_rate is not None:
            raise ConfigError("--learning-rate goes with --task causal_lm in the demo")
    else:
        from . import demo_language as demo

        if settings.full:
            raise ConfigError("--full goes with --task seq_cls; the language demo trains norms")
    demo.run(settings)

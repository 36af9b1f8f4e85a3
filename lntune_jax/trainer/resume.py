"""What a run's checkpoints hold beside the arrays, and whether they are of this run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..adapters.fingerprint import explain_difference, list_frozen
from ..errors import ConfigError
from ..selection.select import select_views
from ..tasks.base import Work


def frozen_leaves(work: Work) -> dict[str, Any]:
    """The base's leaves that do not train, by path."""
    model = work.model
    return list_frozen(
        select_views(model.params, work.config, None, model.name_map, warn=False).named
    )


def check_extra(
    extra: Any, names: tuple[str, ...], frozen: Mapping[str, Any], directory: Path
) -> dict[str, Any]:
    """Check that a checkpoint is of this version and of this base.

    Args:
        extra: What was saved.
        names: What must be in it.
        frozen: The leaves of the base at hand.
        directory: The run, for messages.

    Raises:
        ConfigError: it is of another version, or the base is another one.
    """
    missing = [name for name in ("data", "base", *names) if name not in (extra or {})]
    if missing:
        raise ConfigError(
            f"cannot resume {directory}: its checkpoints hold no {missing[0]!r}, so that another "
            "version of lntune-jax has written them; give --overwrite to start again"
        )
    difference = explain_difference(extra["base"], frozen)
    if difference is not None:
        raise ConfigError(
            f"cannot resume {directory}: the base at --model is not the one that the run was "
            f"started with ({difference}); give that one, or --overwrite to start again"
        )
    return extra

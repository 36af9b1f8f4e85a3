"""Which training checkpoints are kept, told to Orbax."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ..errors import AdapterError


def open_checkpoints(
    directory: str | os.PathLike[str],
    *,
    keep: int = 2,
    keep_best: int = 0,
    best_metric: str = "loss",
    highest_is_best: bool = False,
    keep_every_seconds: int | None = None,
) -> Any:
    """Opens a directory of training checkpoints, and makes it if there is none.

    Args:
        directory: where the checkpoints are, one subdirectory a step.
        keep: how many of the latest are kept.
        keep_best: how many of the best are kept besides, by the `metrics` of `save_state`.
        best_metric: which of the metrics decides.
        highest_is_best: for an accuracy rather than a loss.
        keep_every_seconds: also keep one each time that so much time has passed.

    Returns:
        An `orbax.checkpoint.CheckpointManager`, which is a context manager too; close it after use.
        Its `best_step()` is the best step that is kept.

    Raises:
        AdapterError: the directory cannot be made, `keep` is less than 1, or another number is
            out of range.

    Example:
        >>> import tempfile
        >>> with open_checkpoints(tempfile.mkdtemp()) as manager:
        ...     print(manager.latest_step())
        None
    """
    import orbax.checkpoint as ocp
    from orbax.checkpoint import checkpoint_managers as policies

    if keep < 1:
        raise AdapterError(f"keep must be at least 1, not {keep}: a run needs one to go on from")
    if keep_best < 0 or (keep_every_seconds is not None and keep_every_seconds < 1):
        raise AdapterError(
            f"keep_best is {keep_best} and keep_every_seconds {keep_every_seconds}: expected 0 or "
            "more, and None or 1 or more"
        )

    def read_metric(metrics: Any) -> float:
        return metrics[best_metric]

    kept: list[policies.PreservationPolicy] = [policies.LatestN(keep)]
    if keep_best:
        best = policies.BestN(
            get_metric_fn=read_metric,
            reverse=not highest_is_best,
            n=keep_best,
            keep_checkpoints_without_metrics=False,
        )
        kept.append(best)
    if keep_every_seconds is not None:
        kept.append(policies.EveryNSeconds(keep_every_seconds))
    path = Path(directory).expanduser().resolve()
    options = ocp.CheckpointManagerOptions(
        preservation_policy=policies.AnyPreservationPolicy(kept),
        best_fn=read_metric if keep_best else None,
        best_mode="max" if highest_is_best else "min",
        create=True,
    )
    try:
        return ocp.CheckpointManager(path, options=options)
    except (OSError, ValueError) as error:
        raise AdapterError(f"cannot open the checkpoint directory {path}: {error}") from error

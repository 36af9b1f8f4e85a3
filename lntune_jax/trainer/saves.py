"""The checkpoints of a run: what is in one, and whether it is of this run's base and tasks."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from ..adapters.fingerprint import explain_difference
from ..errors import ConfigError
from ..messages import Argument, shorten
from ..training.state import TrainState
from .history import Records
from .nonfinite import find_checkpoint


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Snapshot:
    """A pytree with the position of a run.

    Attributes:
        step: Steps done, which names the checkpoint; an adapter that is done has taken fewer.
        train: The training state, of all adapters.
        best: Trainable leaves of each one's best evaluation, numpy arrays with an axis of adapters.
    """

    step: Any
    train: TrainState
    best: dict[str, Any]


class Saves:
    """The checkpoints of a run, or nothing where none are kept."""

    def __init__(
        self, stack: contextlib.ExitStack, directory: Path | None, base: Any, tasks: list[Any]
    ):
        from ..training import open_checkpoints

        self._directory = directory
        # As JSON gives it back: tuples are lists there.
        self._extra = {"base": base, "tasks": json.loads(json.dumps(tasks))}
        self._manager = None
        if directory is not None:
            self._manager = stack.enter_context(open_checkpoints(directory))

    def restore(
        self, snapshot: Snapshot, records: Records, frozen: Mapping[str, Any]
    ) -> tuple[Snapshot, Records, bool]:
        """The last checkpoint's, or these where there is none."""
        from ..training import restore_state

        found = None if self._manager is None else restore_state(self._manager, snapshot)
        if found is None:
            return snapshot, records, False
        assert self._directory is not None
        snapshot, extra = found
        check_extra(extra, frozen, self._extra["tasks"], self._directory.parent)
        return snapshot, Records.from_json(extra["records"]), True

    def save(self, snapshot: Snapshot, records: Records) -> None:
        """Begin to write a checkpoint."""
        from ..training import save_state

        if self._manager is not None:
            extra = {**self._extra, "records": records.to_json()}
            save_state(self._manager, snapshot, extra, wait=False)

    def finish(self) -> None:
        """Wait until what was begun is written."""
        from ..training import finish_saves

        if self._manager is not None:
            finish_saves(self._manager)

    def find_last(self) -> Path | None:
        """The directory of the last checkpoint, if there is one."""
        return None if self._manager is None else find_checkpoint(self._manager)


def check_extra(
    extra: Any, frozen: Mapping[str, Any], tasks: Sequence[Any], directory: Path
) -> None:
    """Check that a checkpoint is of this version, of this base and of these tasks.

    Args:
        extra: What was saved.
        frozen: The leaves of the base at hand.
        tasks: What each task's adapters say of themselves, their label names among it.
        directory: The run, for messages.

    Raises:
        ConfigError: It is of another version, or the base or a task is another one.
    """
    missing = [name for name in ("base", "tasks", "records") if name not in (extra or {})]
    if missing:
        raise ConfigError(
            f"cannot resume {directory}: its checkpoints hold no {missing[0]!r}, so that another "
            "version of lntune-jax has written them; pass ",
            Argument("overwrite", True),
            " to start again",
        )
    difference = explain_difference(extra["base"], frozen)
    if difference is not None:
        raise ConfigError(
            f"cannot resume {directory}: the base is not the one that the run was started with (",
            difference,
            "); pass that one, or ",
            Argument("overwrite", True),
            " to start again",
        )
    for before, now in zip(extra["tasks"], tasks, strict=False):
        for name in sorted({*before, *now}):
            if before.get(name) != now.get(name):
                raise ConfigError(
                    f"cannot resume {directory}: its task was started with {name} = "
                    f"{shorten(str(before.get(name)))}, not {shorten(str(now.get(name)))}; pass ",
                    Argument("overwrite", True),
                    " to start again",
                )

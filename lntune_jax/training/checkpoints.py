"""Training checkpoints through Orbax, from which a run goes on bit for bit.

A state is stored as a flat tree of its leaves with a manifest of their shapes, dtypes and
checksums, so that what Orbax would pad, cast or pass over in silence is an error here. Beside it
lies a record of all files' checksums, written last.
"""

from __future__ import annotations

import json
import numbers
import os
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ..errors import CheckpointError, LNTuningError
from ..storage.directories import resolve_path, sync, sync_tree
from ..storage.leaves import shorten_error
from ..storage.processes import meet, together
from ..storage.sealed import (
    METADATA_FILE,
    check_files,
    describe_files,
    open_sealed,
    read_bounded,
    seal_json,
)
from .checkpoint_leaves import (
    check_classes,
    check_structure,
    check_values,
    describe,
    list_classes,
    list_leaves,
    make_target,
    place_leaf,
    read_leaf,
)

_FORMAT_VERSION = 3
_ADVICE = "delete this step's directory to go on from the checkpoint before it"


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
        CheckpointError: the directory cannot be made, `keep` is less than 1, or another number is
            out of range.

    Example:
        >>> import tempfile
        >>> with open_checkpoints(tempfile.mkdtemp()) as manager:
        ...     print(manager.latest_step())
        None
    """
    import orbax.checkpoint as ocp

    with together():
        path = resolve_path(directory, error=CheckpointError)
        options = _make_options(keep, keep_best, best_metric, highest_is_best, keep_every_seconds)
        if path.exists() and not path.is_dir():
            raise CheckpointError(f"{path} is a file: pass a directory for the checkpoints")
        meet()  # Orbax waits for all
        try:
            return ocp.CheckpointManager(path, options=options)
        except (OSError, ValueError) as error:
            raise CheckpointError(
                f"cannot open the checkpoint directory {path}: {error}"
            ) from error


def _make_options(
    keep: int, keep_best: int, best_metric: str, highest_is_best: bool, keep_every: int | None
) -> Any:
    import orbax.checkpoint as ocp
    from orbax.checkpoint import checkpoint_managers as policies

    if not _is_whole(keep) or keep < 1:
        raise CheckpointError(
            f"keep must be at least 1, not {keep!r}: a run needs one to go on from"
        )
    seconds = 1 if keep_every is None else keep_every
    if not _is_whole(keep_best) or keep_best < 0 or not _is_whole(seconds) or seconds < 1:
        raise CheckpointError(
            f"keep_best is {keep_best!r} and keep_every_seconds {keep_every!r}: expected 0 "
            "or more, and None or 1 or more"
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
    if keep_every is not None:
        kept.append(policies.EveryNSeconds(keep_every))
    return ocp.CheckpointManagerOptions(
        preservation_policy=policies.AnyPreservationPolicy(kept),
        best_fn=read_metric if keep_best else None,
        best_mode="max" if highest_is_best else "min",
        create=True,
    )


def _is_whole(value: Any) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def save_state(
    manager: Any,
    state: Any,
    extra: Any = None,
    *,
    metrics: dict[str, float] | None = None,
    wait: bool = True,
) -> None:
    """Saves a state at step `state.step`; returns when it is on the disk.

    In a run of several processes each must call this. The base is no part of a `TrainState`, and
    so of no checkpoint.

    Args:
        manager: what `open_checkpoints` returned.
        state: any pytree with an attribute `step`, such as a `TrainState`.
        extra: any JSON value: the data position, a history.
        metrics: figures of this step, for `open_checkpoints(keep_best=...)`.
        wait: `False` returns as soon as the values are copied, and writes them while training
            goes on. The next call waits for it, and raises what went wrong in it; after the last
            one call `finish_saves`.

    Raises:
        CheckpointError: the step is not above the latest one saved, `extra` is not JSON, `metrics`
            are no numbers, or the file system refuses.

    Example:
        >>> import tempfile
        >>> import jax.numpy as jnp, optax
        >>> import lntune_jax as lnt
        >>> state = lnt.TrainState.create({"ln.scale": jnp.ones(2)}, optax.adam(1e-3))
        >>> with open_checkpoints(tempfile.mkdtemp()) as manager:
        ...     save_state(manager, state, {"seen": 0})
        ...     restored, extra = restore_state(manager, state)
        >>> restored.trainable["ln.scale"].tolist(), extra
        ([1.0, 1.0], {'seen': 0})
    """
    import orbax.checkpoint as ocp

    with together():
        _finish(manager)
        step = _check_step(manager, state)
        try:
            extra = json.loads(json.dumps(extra))
        except (TypeError, ValueError) as error:
            raise CheckpointError(f"extra must be a JSON value: {error}") from None
        if metrics is not None:
            metrics = _check_metrics(metrics)
        leaves = list_leaves(state)
        # A copy where training goes on: its next step may reuse the memory.
        arrays = {
            path: read_leaf(path, leaf) if wait else np.array(read_leaf(path, leaf))
            for path, leaf in leaves.items()
        }
        manifest = {path: describe(leaf, arrays[path]) for path, leaf in leaves.items()}
        fields = {"leaves": manifest, "classes": list_classes(state), "extra": extra}
        about = {"sealed": seal_json({"format_version": _FORMAT_VERSION, **fields})}
        # Orbax refuses arrays without elements; there is nothing to store in them either.
        stored = {path: array for path, array in arrays.items() if array.size}
        items = ocp.args.Composite(
            state=ocp.args.StandardSave(stored),  # pyright: ignore[reportCallIssue]
            about=ocp.args.JsonSave(about),  # pyright: ignore[reportCallIssue]
        )
        meet()  # Orbax waits for all
        try:
            done = manager.save(step, args=items, metrics=metrics)
        except Exception as error:
            raise CheckpointError(
                f"cannot save step {step} in {manager.directory}: {shorten_error(error)}"
            ) from error
        if not done:
            raise CheckpointError(
                f"Orbax did not save step {step} in {manager.directory}: open it with "
                "open_checkpoints"
            )
        if wait:
            _finish(manager)


def _check_step(manager: Any, state: Any) -> int:
    """The step of a state that may be saved next.

    Raises:
        CheckpointError: it has none, or one that is not above the latest.
    """
    if not hasattr(state, "step"):
        raise CheckpointError(
            f"the state is a {type(state).__name__} without an attribute step: pass a TrainState, "
            "or a pytree that has one"
        )
    step, latest = int(state.step), manager.latest_step()
    if latest is not None and step <= latest:
        raise CheckpointError(
            f"cannot save step {step} in {manager.directory}, which holds step {latest}: a "
            "checkpoint must be of a later step. Resume with restore_state; to go on from an "
            "earlier step, such as the best, save into another directory of open_checkpoints"
        )
    return step


def finish_saves(manager: Any) -> None:
    """Waits until what was saved is on the disk, and flushed.

    Args:
        manager: what `open_checkpoints` returned.

    Raises:
        CheckpointError: a save that was not waited for has failed.

    Example:
        >>> import tempfile
        >>> import jax.numpy as jnp, optax
        >>> import lntune_jax as lnt
        >>> state = lnt.TrainState.create({"ln.scale": jnp.ones(2)}, optax.adam(1e-3))
        >>> with open_checkpoints(tempfile.mkdtemp()) as manager:
        ...     save_state(manager, state, wait=False)
        ...     finish_saves(manager)
        ...     print(manager.all_steps())
        [0]
    """
    with together():
        _finish(manager)


def _finish(manager: Any) -> None:
    try:
        manager.wait_until_finished()
        latest = manager.latest_step()
        directory = Path(manager.directory) / str(latest)
        if latest is not None and jax.process_index() == 0 and not _has_record(directory):
            _write_record(directory)
    except Exception as error:
        reason = shorten_error(error)
        raise CheckpointError(f"cannot save in {manager.directory}: {reason}") from error


def restore_state(
    manager: Any, like_state: Any, *, step: int | None = None
) -> tuple[Any, Any] | None:
    """Reads the latest checkpoint, or that of a step.

    Args:
        manager: what `open_checkpoints` returned.
        like_state: a state of the same structure, shapes and dtypes, such as the one that a new
            run would start with, or an abstract one (`TrainState.create` of
            `jax.ShapeDtypeStruct`s). The result takes its containers and shardings.
        step: which one, such as `manager.best_step()`; `None` for the latest.

    Returns:
        `(state, extra)`, or None where no checkpoint has been saved.

    Raises:
        CheckpointError: there is no such step, the checkpoint is damaged, or `like_state` is
            otherwise than what was saved; the message names the path.

    Example:
        >>> import tempfile
        >>> with open_checkpoints(tempfile.mkdtemp()) as manager:
        ...     print(restore_state(manager, {}))
        None
    """
    import orbax.checkpoint as ocp

    with together():
        manager.wait_until_finished()
        manager.reload()  # another process may have saved since
        steps = manager.all_steps()
        if step is not None and step not in steps:
            raise CheckpointError(
                f"{manager.directory} has no checkpoint of step {step}; it has {sorted(steps)}"
            )
        step = manager.latest_step() if step is None else step
        if step is None:
            return None
        directory = Path(manager.directory) / str(step)
        _check_record(directory)
        meet()  # Orbax waits for all
        about = _read_item(manager, step, "about", ocp.args.JsonRestore())
        manifest, classes, extra = _parse_about(directory, about)
        likes = list_leaves(like_state)
        check_structure(directory, manifest, likes)
        check_classes(directory, classes, list_classes(like_state))
        targets = {path: make_target(manifest[path]) for path in likes}
        arrays = {path: target for path, target in targets.items() if not target.size}
        wanted = {path: target for path, target in targets.items() if target.size}
        meet()
        arrays |= _read_item(manager, step, "state", ocp.args.StandardRestore(wanted))  # pyright: ignore[reportCallIssue]
        check_values(directory, manifest, arrays)
        meet()  # to put a leaf on devices of several processes is a collective
        leaves = [
            place_leaf(path, arrays[path], like, manifest[path]) for path, like in likes.items()
        ]
        return jax.tree_util.tree_structure(like_state).unflatten(leaves), extra


def _read_item(manager: Any, step: int, name: str, args: Any) -> Any:
    import orbax.checkpoint as ocp

    try:
        return manager.restore(step, args=ocp.args.Composite(**{name: args}))[name]
    except Exception as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
        raise CheckpointError(
            f"Orbax could not read {name!r} of the checkpoint {manager.directory}/{step}: "
            f"{first}. It is damaged: {_ADVICE}"
        ) from error


def _check_metrics(metrics: dict[str, Any]) -> dict[str, float]:
    try:
        return {name: float(value) for name, value in metrics.items()}
    except (TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"metrics must be names and numbers: {error}") from None


def _write_record(directory: Path) -> None:
    """Records the checksums of all files, beside those of the leaves, and flushes all to the disk.

    Orbax does not flush its metadata. After a crash before this the leaves' checksums do.
    """
    # Beside the checkpoint and moved in: one that is killed here must not leave half a record.
    beside = directory.parent / f".{directory.name}-{METADATA_FILE}"
    record = {"format_version": _FORMAT_VERSION, "files": describe_files(directory)}
    beside.write_text(seal_json(record), encoding="utf-8")
    sync_tree(directory)
    sync(beside)
    beside.replace(directory / METADATA_FILE)
    sync(directory)
    sync(directory.parent)


def _has_record(directory: Path) -> bool:
    """Whether `write_record` came to its end here."""
    return (directory / METADATA_FILE).exists()


def _check_record(directory: Path) -> None:
    """Refuses damaged files before another library parses them.

    Raises:
        CheckpointError: names the file.
    """
    file = directory / METADATA_FILE
    if not file.exists():
        return
    try:
        text = read_bounded(file)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file} is damaged ({error}): {_ADVICE}") from None
    record = _open(directory, METADATA_FILE, text)
    try:
        check_files(directory, record["files"], _ADVICE)
    except LNTuningError as error:
        raise CheckpointError(str(error)) from error


def _parse_about(directory: Path, about: Any) -> tuple[dict[str, Any], dict[str, str], Any]:
    """The manifest of the leaves, the classes of the nodes, and the user's own value."""
    text = about.get("sealed") if isinstance(about, dict) else None
    text = text if isinstance(text, str) else json.dumps(about)  # as before version 3
    fields = _open(directory, "about", text.encode())
    return fields["leaves"], fields["classes"], fields["extra"]


def _open(directory: Path, name: str, text: bytes) -> dict[str, Any]:
    """The fields of a sealed text.

    Raises:
        CheckpointError: it is damaged, or of another format version.
    """
    try:
        fields, is_intact = open_sealed(text)
    except ValueError as error:
        raise CheckpointError(f"{directory / name} is damaged ({error}): {_ADVICE}") from None
    found = fields.get("format_version") if isinstance(fields, dict) else fields
    if is_intact and found == _FORMAT_VERSION:
        return fields
    if isinstance(found, int) and found != _FORMAT_VERSION:
        raise CheckpointError(
            f"the checkpoint {directory} has format version {found}, expected {_FORMAT_VERSION}: "
            "resume with the version of lntune_jax that saved it"
        )
    raise CheckpointError(f"{directory / name} has a wrong checksum. It is damaged: {_ADVICE}")

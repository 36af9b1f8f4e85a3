"""Training checkpoints through Orbax, from which a run goes on bit for bit.

A state is stored as a flat tree of its leaves with a manifest of their shapes, dtypes and
checksums, so that what Orbax would pad, cast or pass over in silence is an error here.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ..errors import AdapterError
from .checkpoint_leaves import (
    check_structure,
    check_values,
    describe,
    list_leaves,
    make_target,
    place_leaf,
    read_leaf,
)
from .checkpoint_manager import open_checkpoints as open_checkpoints
from .checkpoint_record import (
    ADVICE,
    FORMAT_VERSION,
    check_record,
    has_record,
    parse_about,
    seal,
    write_record,
)


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
        AdapterError: the step is not above the latest one saved, `extra` is not JSON, `metrics`
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

    finish_saves(manager)
    step, latest = int(state.step), manager.latest_step()
    if latest is not None and step <= latest:
        raise AdapterError(
            f"cannot save step {step} in {manager.directory}, which holds step {latest}: a "
            "checkpoint must be of a later step. Resume with restore_state, or pass another "
            "directory to open_checkpoints"
        )
    try:
        extra = json.loads(json.dumps(extra))
    except (TypeError, ValueError) as error:
        raise AdapterError(f"extra must be a JSON value: {error}") from None
    if metrics is not None:
        metrics = _check_metrics(metrics)
    leaves = list_leaves(state)
    # A copy where training goes on: its next step may reuse the memory.
    arrays = {
        path: read_leaf(path, leaf) if wait else np.array(read_leaf(path, leaf))
        for path, leaf in leaves.items()
    }
    manifest = {path: describe(leaf, arrays[path]) for path, leaf in leaves.items()}
    about = seal({"format_version": FORMAT_VERSION, "leaves": manifest, "extra": extra})
    # Orbax refuses arrays without elements; there is nothing to store in them either.
    stored = {path: array for path, array in arrays.items() if array.size}
    items = ocp.args.Composite(
        state=ocp.args.StandardSave(stored),  # pyright: ignore[reportCallIssue]
        about=ocp.args.JsonSave(about),  # pyright: ignore[reportCallIssue]
    )
    try:
        done = manager.save(step, args=items, metrics=metrics)
    except Exception as error:
        raise AdapterError(f"cannot save step {step} in {manager.directory}: {error}") from error
    if not done:
        raise AdapterError(
            f"Orbax did not save step {step} in {manager.directory}: open it with open_checkpoints"
        )
    if wait:
        finish_saves(manager)


def finish_saves(manager: Any) -> None:
    """Waits until what was saved is on the disk, and flushed.

    Args:
        manager: what `open_checkpoints` returned.

    Raises:
        AdapterError: a save that was not waited for has failed.

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
    try:
        manager.wait_until_finished()
        latest = manager.latest_step()
        directory = Path(manager.directory) / str(latest)
        if latest is not None and jax.process_index() == 0 and not has_record(directory):
            write_record(directory)
    except Exception as error:
        raise AdapterError(f"cannot save in {manager.directory}: {error}") from error


def restore_state(
    manager: Any, like_state: Any, *, step: int | None = None
) -> tuple[Any, Any] | None:
    """Reads the latest checkpoint, or that of a step.

    Args:
        manager: what `open_checkpoints` returned.
        like_state: a state of the same structure, shapes and dtypes, such as the one that a new
            run would start with. The result takes its containers and shardings.
        step: which one, such as `manager.best_step()`; `None` for the latest.

    Returns:
        `(state, extra)`, or None where no checkpoint has been saved.

    Raises:
        AdapterError: there is no such step, the checkpoint is damaged, or `like_state` is
            otherwise than what was saved; the message names the path.

    Example:
        >>> import tempfile
        >>> with open_checkpoints(tempfile.mkdtemp()) as manager:
        ...     print(restore_state(manager, {}))
        None
    """
    import orbax.checkpoint as ocp

    manager.wait_until_finished()
    manager.reload()  # another process may have saved since
    steps = manager.all_steps()
    if step is not None and step not in steps:
        raise AdapterError(
            f"{manager.directory} has no checkpoint of step {step}; it has {sorted(steps)}"
        )
    step = manager.latest_step() if step is None else step
    if step is None:
        return None
    directory = Path(manager.directory) / str(step)
    check_record(directory)
    about = _read_item(manager, step, "about", ocp.args.JsonRestore())
    manifest, extra = parse_about(directory, about)
    likes = list_leaves(like_state)
    check_structure(directory, manifest, likes)
    targets = {path: make_target(manifest[path]) for path in likes}
    arrays = {path: target for path, target in targets.items() if not target.size}
    wanted = {path: target for path, target in targets.items() if target.size}
    arrays |= _read_item(manager, step, "state", ocp.args.StandardRestore(wanted))  # pyright: ignore[reportCallIssue]
    check_values(directory, manifest, arrays)
    leaves = [place_leaf(arrays[path], like, manifest[path]) for path, like in likes.items()]
    return jax.tree_util.tree_structure(like_state).unflatten(leaves), extra


def _read_item(manager: Any, step: int, name: str, args: Any) -> Any:
    import orbax.checkpoint as ocp

    try:
        return manager.restore(step, args=ocp.args.Composite(**{name: args}))[name]
    except Exception as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
        raise AdapterError(
            f"Orbax could not read {name!r} of the checkpoint {manager.directory}/{step}: "
            f"{first}. It is damaged: {ADVICE}"
        ) from error


def _check_metrics(metrics: dict[str, Any]) -> dict[str, float]:
    try:
        return {name: float(value) for name, value in metrics.items()}
    except (TypeError, ValueError, AttributeError) as error:
        raise AdapterError(f"metrics must be names and numbers: {error}") from None

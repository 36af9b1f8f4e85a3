"""Training checkpoints through Orbax, from which a run goes on bit for bit.

A state is stored as a flat tree of its leaves with a manifest of their shapes, dtypes and
checksums, so that what Orbax would pad, cast or pass over in silence is an error here.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from ._adapter_metadata import METADATA_FILE, check_files, describe_files
from ._checkpoint_leaves import (
    check_structure,
    check_values,
    describe,
    list_leaves,
    make_target,
    place_leaf,
    read_leaf,
)
from ._errors import AdapterError
from ._files import sync, sync_tree

_FORMAT_VERSION = 1
_ADVICE = "delete this step's directory to go on from the checkpoint before it"


def open_checkpoints(directory: str | os.PathLike[str], *, keep: int = 2) -> Any:
    """Opens a directory of training checkpoints, and makes it if there is none.

    Args:
        directory: where the checkpoints are, one subdirectory a step.
        keep: how many of the latest are kept.

    Returns:
        An `orbax.checkpoint.CheckpointManager`, which is a context manager too; close it after use.

    Raises:
        AdapterError: the directory cannot be made, or `keep` is less than 1.

    Example:
        >>> import tempfile
        >>> with open_checkpoints(tempfile.mkdtemp()) as manager:
        ...     print(manager.latest_step())
        None
    """
    import orbax.checkpoint as ocp

    if keep < 1:
        raise AdapterError(f"keep must be at least 1, not {keep}: a run needs one to go on from")
    path = Path(directory).expanduser().resolve()
    options = ocp.CheckpointManagerOptions(
        max_to_keep=keep, create=True, enable_async_checkpointing=False
    )
    try:
        return ocp.CheckpointManager(path, options=options)
    except (OSError, ValueError) as error:
        raise AdapterError(f"cannot open the checkpoint directory {path}: {error}") from error


def save_state(manager: Any, state: Any, extra: Any = None) -> None:
    """Saves a state at step `state.step`; returns when it is on the disk.

    In a run of several processes each must call this.

    Args:
        manager: what `open_checkpoints` returned.
        state: any pytree with an attribute `step`, such as a `TrainState`.
        extra: any JSON value: the data position, a history.

    Raises:
        AdapterError: the step is not above the latest one saved, `extra` is not JSON, or the file
            system refuses.

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
    leaves = list_leaves(state)
    arrays = {path: read_leaf(path, leaf) for path, leaf in leaves.items()}
    manifest = {path: describe(leaf, arrays[path]) for path, leaf in leaves.items()}
    about = _seal({"format_version": _FORMAT_VERSION, "leaves": manifest, "extra": extra})
    # Orbax refuses arrays without elements; there is nothing to store in them either.
    stored = {path: array for path, array in arrays.items() if array.size}
    items = ocp.args.Composite(
        state=ocp.args.StandardSave(stored),  # pyright: ignore[reportCallIssue]
        about=ocp.args.JsonSave(about),  # pyright: ignore[reportCallIssue]
    )
    try:
        done = manager.save(step, args=items)
        manager.wait_until_finished()
        if done and jax.process_index() == 0:
            _finish(Path(manager.directory) / str(step))
    except Exception as error:
        raise AdapterError(f"cannot save step {step} in {manager.directory}: {error}") from error
    if not done:
        raise AdapterError(
            f"Orbax did not save step {step} in {manager.directory}: open it with open_checkpoints"
        )


def restore_state(manager: Any, like_state: Any) -> tuple[Any, Any] | None:
    """Reads the latest checkpoint.

    Args:
        manager: what `open_checkpoints` returned.
        like_state: a state of the same structure, shapes and dtypes, such as the one that a new
            run would start with. The result takes its containers and shardings.

    Returns:
        `(state, extra)`, or None where no checkpoint has been saved.

    Raises:
        AdapterError: the checkpoint is damaged, or `like_state` is otherwise than what was saved;
            the message names the path.

    Example:
        >>> import tempfile
        >>> with open_checkpoints(tempfile.mkdtemp()) as manager:
        ...     print(restore_state(manager, {}))
        None
    """
    import orbax.checkpoint as ocp

    manager.reload()  # another process may have saved since
    step = manager.latest_step()
    if step is None:
        return None
    directory = Path(manager.directory) / str(step)
    _check_finished(directory)
    about = _read_item(manager, step, "about", ocp.args.JsonRestore())
    manifest, extra = _parse(directory, about)
    likes = list_leaves(like_state)
    check_structure(directory, manifest, likes)
    targets = {path: make_target(manifest[path]) for path in likes}
    arrays = {path: target for path, target in targets.items() if not target.size}
    wanted = {path: target for path, target in targets.items() if target.size}
    arrays |= _read_item(manager, step, "state", ocp.args.StandardRestore(wanted))  # pyright: ignore[reportCallIssue]
    check_values(directory, manifest, arrays)
    leaves = [place_leaf(arrays[path], like, manifest[path]) for path, like in likes.items()]
    return jax.tree_util.tree_structure(like_state).unflatten(leaves), extra


def _finish(directory: Path) -> None:
    """Records the checksums of all files, beside those of the leaves, and flushes all to the disk.

    Orbax does not flush its metadata. After a crash before this the leaves' checksums do.
    """
    (directory / METADATA_FILE).write_text(json.dumps(_seal({"files": describe_files(directory)})))
    sync_tree(directory)
    sync(directory.parent)


def _check_finished(directory: Path) -> None:
    """Refuses damaged files before another library parses them."""
    file = directory / METADATA_FILE
    if not file.exists():
        return
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        if _seal(record) != record:
            raise ValueError("wrong checksum")
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise AdapterError(f"{file} is damaged ({error}): {_ADVICE}") from None
    check_files(directory, record["files"], _ADVICE)


def _read_item(manager: Any, step: int, name: str, args: Any) -> Any:
    import orbax.checkpoint as ocp

    try:
        return manager.restore(step, args=ocp.args.Composite(**{name: args}))[name]
    except Exception as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
        raise AdapterError(
            f"Orbax could not read {name!r} of the checkpoint {manager.directory}/{step}: "
            f"{first}. It is damaged: {_ADVICE}"
        ) from error


def _seal(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields and a checksum over them: Orbax keeps none."""
    fields = {name: value for name, value in fields.items() if name != "sha256"}
    text = json.dumps(fields, sort_keys=True)
    return {**fields, "sha256": hashlib.sha256(text.encode()).hexdigest()}


def _parse(directory: Path, about: Any) -> tuple[dict[str, Any], Any]:
    if not isinstance(about, dict) or about.get("format_version") != _FORMAT_VERSION:
        found = about.get("format_version") if isinstance(about, dict) else about
        raise AdapterError(
            f"the checkpoint {directory} has format version {found!r}, expected {_FORMAT_VERSION}: "
            "resume with the version of lntune_jax that saved it"
        )
    if _seal(about) != about:
        raise AdapterError(
            f"the checkpoint {directory} has a wrong checksum in its JSON file. It is damaged: "
            f"{_ADVICE}"
        )
    return about["leaves"], about["extra"]

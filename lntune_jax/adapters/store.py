"""Adapter directories: the trainable leaves, the config and checksums, never the base's weights.

Saving writes all or nothing; reading accepts exactly what was saved, on exactly the base it was
trained on, and says which path or file is otherwise.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..config import CONFIG_FILE, LNTuningConfig
from ..errors import AdapterError, ConfigError
from ..messages import Message, shorten, warn
from ..names.layers import join_arrays, split_arrays
from ..names.rules import NameMap
from ..selection.select import Views, select_views
from ..selection.selection import Selection, get_config
from ..storage.directories import (
    is_directory,
    list_asides,
    read_settled,
    resolve_path,
    write_directory,
)
from ..storage.leaves import ARRAYS_DIRECTORY, is_array_file, to_numpy, write_arrays
from ..storage.processes import spans_processes, together, write_on_first_process
from ..storage.sealed import METADATA_FILE, check_files
from .fingerprint import explain_difference, list_frozen, make_fingerprint
from .fit import check_place, check_trainable, check_values, fill_placeholders, place_leaves
from .format import (
    ADAPTER,
    Kind,
    Metadata,
    describe_leaf,
    list_own,
    read_leaves,
    read_metadata,
    write_metadata,
)


@dataclass(frozen=True, eq=False)
class Adapter:
    """What an adapter directory holds. `trainable, config = adapter` takes it apart.

    Attributes:
        trainable: `{leaf path: array}`, in the order in which it was saved.
        config: the config it was trained with.
        task: what it is for, as given to `save_adapter`; None where nothing was said.

    Example:
        >>> import numpy as np
        >>> adapter = Adapter({"ln.scale": np.ones(2)}, LNTuningConfig())
        >>> list(adapter.trainable), adapter.config.target_modules
        (['ln.scale'], None)
    """

    trainable: dict[str, np.ndarray]
    config: LNTuningConfig
    task: Mapping[str, Any] | None = None

    def __iter__(self) -> Iterator[Any]:
        return iter((self.trainable, self.config))


def save_adapter(
    path: str | os.PathLike[str],
    trainable: Mapping[str, Any],
    config: LNTuningConfig | Selection,
    *,
    base: Any,
    overwrite: bool = False,
    norms: Iterable[str] | None = None,
    name_map: str | NameMap | None = None,
    task: Mapping[str, Any] | None = None,
) -> Path:
    """Writes the trainable leaves and the config into one directory, whole or not at all.

    In a run of several processes each must call this, on a shared disk; the first one writes.

    Args:
        path: the directory to make. Its parents are made too.
        trainable: `{leaf path: array}`, as `partition_params` gave it or after training.
        config: the config that `partition_params` was given, or the `Selection`.
        base: the parameters that were tuned, or the frozen half of `partition_params`. Only a
            fingerprint of it is saved.
        overwrite: whether an adapter that is there is replaced. It is never lost on the way, and
            nothing else than an adapter is ever replaced.
        norms: as given to `partition_params`, if it was.
        name_map: for trees whose layers are stacked: each layer is saved as a leaf of its own,
            under the path of transformers' module (`model.name_map`, or the name of a table), so
            that the adapter fits the model whose layers are not stacked, and its fingerprint is
            that model's. The patterns of `config` are for these names.
        task: what the adapter is for, as JSON values: the labels of a classifier, how it pools, a
            prompt's form, the base's name. It is kept as it is, and `Adapter.task` gives it back.

    Returns:
        The absolute path of the directory.

    Raises:
        AdapterError: the path exists, the leaves are not those that the config selects in `base`,
            a value is not finite, `task` is no JSON object, or the file system refuses. Nothing
            has changed then.
        SelectionError: the config selects nothing in `base`.

    Example:
        >>> import tempfile
        >>> import jax.numpy as jnp
        >>> import lntune_jax as lnt
        >>> params = {"ln_1": {"scale": jnp.ones(4)}, "fc": {"kernel": jnp.ones((4, 4))}}
        >>> config = lnt.LNTuningConfig()
        >>> trainable, frozen = lnt.partition_params(params, config)
        >>> path = save_adapter(tempfile.mkdtemp() + "/adapter", trainable, config, base=params)
        >>> sorted(entry.name for entry in path.iterdir())
        ['adapter_config.json', 'arrays', 'lntune.json']
    """
    with together():
        target = resolve_path(path, error=AdapterError)
        task = _check_task(task)
        params, placeholders = fill_placeholders(base)
        views = select_views(params, config, norms, name_map, warn=False)
        config = get_config(config)
        expected = views.tree.list_trainable()
        check_trainable(trainable, expected, placeholders)
        arrays = {name: to_numpy(name, trainable[name]) for name in expected}
        check_values(arrays)
        if views.parts is not None:
            arrays = split_arrays(arrays, views.parts)
        leaves = {name: describe_leaf(array) for name, array in arrays.items()}
        fingerprint = make_fingerprint(list_frozen(views.named))

        def fill(new: Path) -> None:
            (new / CONFIG_FILE).write_text(config.to_json(), encoding="utf-8")
            write_arrays(new / ARRAYS_DIRECTORY, arrays)
            write_metadata(new, Metadata(leaves, fingerprint, views.norms, task))
            read_directory(new)  # what cannot be read back is not put in place

        def write() -> None:
            write_directory(target, fill, noun="adapter", list_own=list_own, overwrite=overwrite)

        write_on_first_process(write)
    return target


def load_adapter(path: str | os.PathLike[str]) -> Adapter:
    """Reads an adapter directory, verifying all of it.

    Args:
        path: the directory that `save_adapter` wrote.

    Returns:
        An `Adapter(trainable, config)`; the leaves are numpy arrays in the dtype they trained in.

    Raises:
        AdapterError: the directory is absent, unfinished, of a later version, or not bit for bit
            what was saved.

    Example:
        >>> import tempfile
        >>> import jax.numpy as jnp
        >>> import lntune_jax as lnt
        >>> params = {"ln_1": {"scale": jnp.ones(2)}}
        >>> trainable, _ = lnt.partition_params(params, lnt.LNTuningConfig())
        >>> path = tempfile.mkdtemp() + "/adapter"
        >>> _ = save_adapter(path, trainable, lnt.LNTuningConfig(), base=params)
        >>> load_adapter(path).trainable
        {'ln_1.scale': array([1., 1.], dtype=float32)}
    """
    return read_target(resolve_path(path, error=AdapterError))[1]


def restore_adapter(
    path: str | os.PathLike[str],
    params: Any,
    *,
    cast: bool = True,
    name_map: str | NameMap | None = None,
) -> Any:
    """Puts a saved adapter into the base it was trained on.

    In a run of several processes each must call this.

    Args:
        path: the directory that `save_adapter` wrote.
        params: the base: any pytree of arrays, numpy arrays or `jax.ShapeDtypeStruct`, in any
            container and sharding, in the precision of training or another.
        cast: whether the leaves take the dtype of the base; False keeps the one they trained in.
        name_map: for trees whose layers are stacked: under which names the layers were saved, as
            in `save_adapter`.

    Returns:
        A tree like `params`, its frozen leaves the same objects. A leaf of the adapter takes the
        sharding of the leaf it replaces; where that is a numpy array it is one too; where it is a
        `jax.ShapeDtypeStruct` it is an array, and frozen leaves stay abstract.

    Raises:
        AdapterError: as for `load_adapter`; or the leaves or shapes are others than those the
            config selects in `params`; or `params` is another base.

    Example:
        >>> import tempfile
        >>> import jax.numpy as jnp
        >>> import lntune_jax as lnt
        >>> params = {"ln_1": {"scale": jnp.ones(2)}, "fc": {"kernel": jnp.ones((2, 2))}}
        >>> trainable, _ = lnt.partition_params(params, lnt.LNTuningConfig())
        >>> path = tempfile.mkdtemp() + "/adapter"
        >>> tuned = {"ln_1.scale": trainable["ln_1.scale"] * 3}
        >>> _ = save_adapter(path, tuned, lnt.LNTuningConfig(), base=params)
        >>> restore_adapter(path, params)["ln_1"]["scale"].tolist()
        [3.0, 3.0]
    """
    with together(spans_processes(params)):
        adapter, views = read_fitting(path, params, name_map)
        found = adapter.trainable
        found = found if views.parts is None else join_arrays(found, views.parts)
        return place_leaves(views.tree, found, cast)


def read_fitting(
    path: str | os.PathLike[str], params: Any, name_map: str | NameMap | None = None
) -> tuple[Adapter, Views]:
    """Reads an adapter directory that fits `params`, its base; and gives the leaves of `params`.

    Raises:
        AdapterError: as for `restore_adapter`.
    """
    directory, adapter, metadata = read_target(resolve_path(path, error=AdapterError))
    trained_on = _name_base(adapter)
    views = check_place(
        directory, params, adapter.trainable, adapter.config, metadata.norms, name_map, trained_on
    )
    difference = explain_difference(metadata.base, list_frozen(views.named))
    if difference:
        raise AdapterError(_explain_other_base(directory, trained_on, difference))
    return adapter, views


def _check_task(task: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if task is None:
        return None
    try:
        if not isinstance(task, Mapping):
            raise TypeError(f"it is a {type(task).__name__}")
        if not _has_text_keys(task):  # json.dumps would write 1 as "1"
            raise TypeError("a key is no text")
        return json.loads(json.dumps(dict(task), allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise AdapterError(
            f"task must be a dict of JSON values (text, numbers, lists, dicts): {error}"
        ) from None


def _has_text_keys(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(isinstance(key, str) and _has_text_keys(item) for key, item in value.items())
    return not isinstance(value, list | tuple) or all(map(_has_text_keys, value))


def _name_base(adapter: Adapter) -> str:
    """What the base was called, as far as the adapter says; else nothing."""
    task, config = adapter.task or {}, adapter.config
    named = config.base_model_name_or_path or task.get("base_model") or config.model_type
    return shorten(named) if isinstance(named, str) else ""


def _explain_other_base(directory: Path, trained_on: str, difference: Message) -> Message:
    about = f" (trained on {trained_on})" if trained_on else ""
    return (
        f"the adapter {directory}{about} was trained on another base than params: ",
        difference,
        ". Pass the base it was trained on; to use the leaves anyway, call "
        "merge_params(load_adapter(path).trainable, frozen)",
    )


def read_target(target: Path) -> tuple[Path, Adapter, Metadata]:
    """Reads a directory, again if another process replaced it under the reader's hands."""
    find = functools.partial(find_directory, target)
    directory, (adapter, metadata) = read_settled(find, read_directory)
    return directory, adapter, metadata


def read_directory(directory: Path) -> tuple[Adapter, Metadata]:
    """Reads one directory, verifying every file and every leaf.

    Raises:
        AdapterError: names the file or leaf, what was expected and what was found.
    """
    metadata = read_metadata(directory)
    check_files(directory, metadata.files, from_hub=True, is_left_out=is_array_file)
    try:
        config = LNTuningConfig.from_pretrained(directory)
    except ConfigError as error:
        raise AdapterError(f"{directory / CONFIG_FILE} cannot be used: {error}") from error
    return Adapter(read_leaves(directory, metadata), config, metadata.task), metadata


def find_directory(target: Path, kind: Kind = ADAPTER) -> Path:
    """The directory itself, or the older version that a crash while replacing it left beside it.

    Raises:
        AdapterError: neither is there.
    """
    found = is_directory(target)
    if found:
        return target
    if found is False:
        raise AdapterError(f"{target} is a file: pass the directory that {kind.writer} wrote")
    for aside in list_asides(target):
        if (aside / METADATA_FILE).is_file():
            warn(
                f"{target} is missing: replacing it was interrupted. Reading the version before, "
                f"{aside}; rename it to {target.name} to keep it",
                UserWarning,
            )
            return aside
    if is_directory(target):  # it has come back since
        return target
    raise AdapterError(f"there is no {kind.noun} directory {target}: check the path")

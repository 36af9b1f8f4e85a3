"""A bank on disk: one directory with the rows in use, their names and configs, and checksums.

It is written whole or not at all and read strictly, by the machinery of adapter directories.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ..adapters.fingerprint import explain_difference, list_frozen, make_fingerprint
from ..adapters.fit import fill_placeholders
from ..adapters.format import Kind, Metadata, describe_leaf, list_own, read_metadata, write_metadata
from ..adapters.store import ARRAYS_DIRECTORY, read_leaves, read_settled
from ..config import LNTuningConfig
from ..errors import AdapterError, ConfigError
from ..messages import list_names, shorten
from ..paths import flatten, join
from ..selection.norms import find_statistics
from ..selection.roles import FROZEN_ROLE, SAVED_ROLE, STATE_ROLE, RoledTree
from ..storage.arrays import to_numpy, write_arrays
from ..storage.checksums import METADATA_FILE, check_files, describe_files
from ..storage.directories import resolve_path, write_directory
from ..storage.json_files import read_json
from ..storage.processes import meet, spans_processes, together, write_on_first_process
from .core import AdapterBank, Row, place, round_capacity
from .values import BASE, check_base, check_name

_ROWS_FILE = "bank.json"
_MOST_BYTES = 2**28  # of that file: ten thousand adapters of a 70B model take a fifth of it
BANK = Kind(
    "lntune_jax bank", "bank", "save_bank", frozenset({_ROWS_FILE, METADATA_FILE, ARRAYS_DIRECTORY})
)


def save_bank(
    path: str | os.PathLike[str], bank: AdapterBank, *, base: Any, overwrite: bool = False
) -> Path:
    """Writes the rows in use into one directory, whole or not at all.

    Free rows are not written, so that rows may have other numbers when they are read again. In a
    run of several processes each must call this, on a shared disk; the first one writes.

    Args:
        path: the directory to make.
        bank: the bank.
        base: the parameters it was made over, or their frozen half. Of them only a fingerprint is
            saved, and row 0.
        overwrite: whether a bank that is there is replaced; nothing else ever is.

    Returns:
        The absolute path of the directory.

    Raises:
        AdapterError: the path exists, `base` is another base, or the file system refuses. Nothing
            has changed then.

    Example:
        >>> import tempfile
        >>> import jax.numpy as jnp
        >>> import lntune_jax as lnt
        >>> params = {"ln": {"scale": jnp.ones(2)}, "fc": {"kernel": jnp.ones((2, 2))}}
        >>> bank = lnt.bank.make_bank(params, {"a": {"ln.scale": jnp.zeros(2)}})
        >>> path = lnt.bank.save_bank(tempfile.mkdtemp() + "/bank", bank, base=params)
        >>> sorted(entry.name for entry in path.iterdir())
        ['arrays', 'bank.json', 'lntune.json']
    """
    with together():
        target = resolve_path(path, error=AdapterError)
        used = np.array([number for number, row in enumerate(bank.rows) if row is not None])
        params, placeholders = fill_placeholders(base)
        others, own = list_base(params, bank.leaves)
        arrays = {name: to_numpy(name, leaf)[used] for name, leaf in bank.leaves.items()}
        check_base("base", arrays, own, has_values=not placeholders)
        leaves = {name: describe_leaf(array, own[name].dtype) for name, array in arrays.items()}
        fingerprint = make_fingerprint(others)

        def fill(new: Path) -> None:
            new.joinpath(_ROWS_FILE).write_text(_write_rows(bank), encoding="utf-8")
            write_arrays(new / ARRAYS_DIRECTORY, arrays)
            write_metadata(new, Metadata(leaves, describe_files(new), fingerprint, None), BANK)
            _read(new)  # what cannot be read back is not put in place

        def write() -> None:
            own = partial(list_own, kind=BANK)
            write_directory(target, fill, noun="bank", list_own=own, overwrite=overwrite)

        write_on_first_process(write)
    return target


def load_bank(
    path: str | os.PathLike[str],
    params: Any,
    *,
    capacity: int | None = None,
    sharding: jax.sharding.Sharding | None = None,
    on_host: bool = False,
) -> AdapterBank:
    """Reads a bank that `save_bank` wrote, verifying all of it.

    Args:
        path: the directory.
        params: the base it was made over, in the precision of then or another.
        capacity: as in `make_bank`.
        sharding: as in `make_bank`.
        on_host: as in `make_bank`.

    Raises:
        AdapterError: the directory is absent, unfinished, of a later version, or not bit for bit
            what was saved; or `params` is another base.

    Example:
        >>> import tempfile
        >>> import jax.numpy as jnp
        >>> import lntune_jax as lnt
        >>> params = {"ln": {"scale": jnp.ones(2)}, "fc": {"kernel": jnp.ones((2, 2))}}
        >>> bank = lnt.bank.make_bank(params, {"a": {"ln.scale": jnp.zeros(2)}})
        >>> path = lnt.bank.save_bank(tempfile.mkdtemp() + "/bank", bank, base=params)
        >>> lnt.bank.load_bank(path, params).names
        ('base', 'a')
    """
    with together(spans_processes((params, sharding))):
        directory, (arrays, rows, metadata) = read_settled(
            resolve_path(path, error=AdapterError), _read, BANK
        )
        others, own = list_base(params, arrays)
        difference = explain_difference(metadata.base, others)
        if difference:
            raise AdapterError(
                f"the bank {directory} was made over another base than params: {difference}. Pass "
                "that base"
            )
        check_base("params", arrays, own, has_values=True)
        count = round_capacity(len(rows), capacity)

        def spread(array: np.ndarray) -> np.ndarray:
            leaf = np.full((count, *array.shape[1:]), np.nan, array.dtype)
            leaf[: len(rows)] = array
            return leaf

        if spans_processes(sharding):
            meet()  # to put a value there is a collective
        leaves = {name: place(spread(array), sharding, on_host) for name, array in arrays.items()}
        return AdapterBank(leaves, (*rows, *[None] * (count - len(rows))))


def list_base(params: Any, paths: Iterable[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The parameters that a bank has no rows for, and those that it has rows for.

    Raises:
        AdapterError: `params` lacks one of these.

    Example:
        >>> params = {"ln": {"scale": np.ones(2)}, "fc": {"kernel": np.ones((2, 2))}}
        >>> [list(part) for part in list_base(params, ["ln.scale"])]
        [['fc.kernel'], ['ln.scale']]
    """
    wanted = list(paths)
    leaves, treedef = flatten(params)
    values = {join(leaf.path): leaf.value for leaf in leaves}
    absent = [path for path in wanted if path not in values]
    if absent:
        raise AdapterError(
            f"the base lacks {list_names(absent)}, which the bank has rows for: pass the tree that "
            "the bank was made over"
        )
    statistics, own = find_statistics(leaves), set(wanted)

    def get_role(leaf: Any) -> str:
        if join(leaf.path) in own:
            return SAVED_ROLE
        is_state = not leaf.is_parameter or leaf.path in statistics
        return STATE_ROLE if is_state else FROZEN_ROLE

    selection = RoledTree(leaves, treedef, [get_role(leaf) for leaf in leaves])
    return list_frozen(selection), {path: values[path] for path in wanted}


def _write_rows(bank: AdapterBank) -> str:
    rows = [
        {
            "name": row.name,
            "config": None if row.config is None else row.config.to_dict(),
            "leaves": list(row.paths),
        }
        for row in bank.rows
        if row is not None
    ]
    return json.dumps({"rows": rows}, indent=1) + "\n"


def _read(directory: Path) -> tuple[dict[str, np.ndarray], tuple[Row, ...], Metadata]:
    metadata = read_metadata(directory, BANK)
    check_files(directory, metadata.files)
    rows = _parse_rows(directory / _ROWS_FILE)
    arrays = read_leaves(directory, metadata)
    names = [row.name for row in rows]
    unknown = sorted({path for row in rows for path in row.paths} - arrays.keys())
    wrong = [path for path, array in arrays.items() if array.shape[:1] != (len(rows),)]
    if unknown or wrong or len(set(names)) != len(names) or not rows or rows[0].config is not None:
        raise AdapterError(
            f"{directory / _ROWS_FILE} does not belong to the arrays beside it: {len(rows)} rows, "
            f"leaves without an array {list_names(unknown)}, leaves with other rows "
            f"{list_names(wrong)}"
        )
    return arrays, rows, metadata


def _parse_rows(file: Path) -> tuple[Row, ...]:
    try:
        fields: Mapping[str, Any] = read_json(file, _MOST_BYTES)
        return tuple(_parse_row(row, number) for number, row in enumerate(fields["rows"]))
    except ConfigError as error:
        raise AdapterError(f"{file} holds a config that cannot be used: {error}") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise AdapterError(f"{file} cannot be read: {shorten(repr(error))}") from error


def _parse_row(row: Mapping[str, Any], number: int) -> Row:
    name, config, leaves = row["name"], row["config"], row["leaves"]
    if number:
        check_name(name)
    elif name != BASE:
        raise ValueError(f"row 0 is called {shorten(repr(name))}, expected {BASE!r}")
    if not isinstance(leaves, list) or not all(isinstance(path, str) for path in leaves):
        raise ValueError(f"the leaves of {shorten(repr(name))} are no list of paths")
    return Row(name, None if config is None else LNTuningConfig.from_dict(config), tuple(leaves))

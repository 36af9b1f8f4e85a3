"""A bank on disk: one directory with the rows in use, their names and configs, and checksums.

It is written whole or not at all and read strictly, by the machinery of adapter directories.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ..adapters.fingerprint import explain_difference, list_frozen, make_fingerprint
from ..adapters.fit import fill_placeholders
from ..adapters.format import (
    Kind,
    Metadata,
    describe_leaf,
    list_own,
    read_leaves,
    read_metadata,
    write_metadata,
)
from ..adapters.store import find_directory
from ..arguments import check_flag
from ..config import LNTuningConfig
from ..errors import AdapterError, ConfigError
from ..messages import list_names, shorten
from ..paths import flatten, join
from ..selection.norms import find_statistics
from ..selection.roles import FROZEN_ROLE, SAVED_ROLE, STATE_ROLE, RoledTree
from ..storage.directories import read_settled, resolve_path, write_directory
from ..storage.leaves import ARRAYS_DIRECTORY, is_array_file, to_numpy, write_arrays
from ..storage.processes import spans_processes, together, write_on_first_process
from ..storage.sealed import METADATA_FILE, check_files
from .core import BASE, MOST_ROWS, AdapterBank, Row, build_bank, check_bank
from .sources import check_base, check_name, get_own

_MOST_BYTES = 2**28  # of metadata: ten thousand adapters of a 70B model take a fifth of it
_MOST_FREED = 64  # times the rows in use: a short file must not ask for all memory
_ENTRIES = frozenset({METADATA_FILE, ARRAYS_DIRECTORY})
BANK = Kind("lntune_jax bank", "bank", "save_bank", _ENTRIES, _MOST_BYTES)


def save_bank(
    path: str | os.PathLike[str], bank: AdapterBank, *, base: Any, overwrite: bool = False
) -> Path:
    """Writes the rows in use into one directory, whole or not at all.

    Free rows are not written; ids stay the same. In a run of several processes each must call
    this, on a shared disk; the first one writes.

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
        ['arrays', 'lntune.json']
    """
    with together():
        check_bank(bank)
        target = resolve_path(path, error=AdapterError)
        used = np.array([number for number, row in enumerate(bank.rows) if row is not None])
        params, placeholders = fill_placeholders(base)
        own = get_own(params, bank.leaves)
        arrays = {name: to_numpy(name, leaf)[used] for name, leaf in bank.leaves.items()}
        check_base("base", arrays, own, has_values=not placeholders)
        leaves = {name: describe_leaf(array) for name, array in arrays.items()}
        fingerprint = make_fingerprint(_list_others(params, own))

        def fill(new: Path) -> None:
            write_arrays(new / ARRAYS_DIRECTORY, arrays)
            write_metadata(new, Metadata(leaves, fingerprint, rows=_describe_rows(bank)), BANK)
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
        check_flag("on_host", on_host)
        find = partial(find_directory, resolve_path(path, error=AdapterError), BANK)
        directory, (arrays, rows, freed, metadata) = read_settled(find, _read)
        own = get_own(params, arrays)
        difference = explain_difference(metadata.base, _list_others(params, own))
        if difference:
            raise AdapterError(
                f"the bank {directory} was made over another base than params: ",
                difference,
                ". Pass that base",
            )
        check_base("params", arrays, own, has_values=True)
        if capacity is None and len(freed) > _MOST_FREED * len(rows):
            raise AdapterError(
                f"the bank {directory} holds {len(rows)} rows and keeps {len(freed):,} free ones "
                "for the ids of removed adapters: pass "
                f"capacity={len(rows) + len(freed)} if that is right"
            )
        return build_bank(arrays.items(), rows, freed, capacity, sharding, on_host)


def _list_others(params: Any, own: Iterable[str]) -> dict[str, Any]:
    """The parameters of a base that a bank has no rows for."""
    leaves, treedef = flatten(params)
    statistics, wanted = find_statistics(leaves), set(own)

    def get_role(leaf: Any) -> str:
        if join(leaf.path) in wanted:
            return SAVED_ROLE
        is_state = not leaf.is_parameter or leaf.path in statistics
        return STATE_ROLE if is_state else FROZEN_ROLE

    return list_frozen(RoledTree(leaves, treedef, [get_role(leaf) for leaf in leaves]))


def _describe_rows(bank: AdapterBank) -> dict[str, Any]:
    """What the metadata says of the rows."""
    pairs = list(zip(bank.rows, bank.ids, strict=True))
    used = [
        {
            "id": number,
            "name": row.name,
            "config": None if row.config is None else row.config.to_dict(),
            "leaves": list(row.paths),
        }
        for row, number in pairs
        if row is not None
    ]
    # Rows that had an adapter and are free, so that no id comes back from the disk.
    freed = [number for row, number in pairs if row is None and number >= MOST_ROWS]
    return {"used": used, "freed": freed}


def _read(
    directory: Path,
) -> tuple[dict[str, np.ndarray], dict[int, Row], list[int], Metadata]:
    metadata = read_metadata(directory, BANK)
    check_files(directory, metadata.files, is_left_out=is_array_file)
    rows, freed = parse_rows(directory / METADATA_FILE, metadata.rows)
    arrays = read_leaves(directory, metadata)
    unknown = sorted({path for row in rows.values() for path in row.paths} - arrays.keys())
    wrong = [path for path, array in arrays.items() if array.shape[:1] != (len(rows),)]
    if unknown or wrong:
        raise AdapterError(
            f"{directory / METADATA_FILE} does not belong to the arrays beside it: {len(rows)} "
            f"rows, leaves without an array {list_names(unknown)}, leaves with other rows "
            f"{list_names(wrong)}"
        )
    return arrays, rows, freed, metadata


def parse_rows(file: Path, fields: Any) -> tuple[dict[int, Row], list[int]]:
    """The rows by id, and the next ids of rows that are free again.

    Raises:
        AdapterError: the metadata in `file` holds no rows, or some that no bank can have.
    """
    if not isinstance(fields, Mapping):
        raise AdapterError(
            f"{file} holds no rows of a bank: an earlier version wrote it. Make the bank anew from "
            "its adapters"
        )
    try:
        parsed = [_parse_row(row) for row in fields["used"]]
        freed = list(fields["freed"])
    except ConfigError as error:
        raise AdapterError(f"{file} holds a config that cannot be used: {error}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise AdapterError(f"{file} holds rows that cannot be read: {shorten(repr(error))}") from (
            error
        )
    numbers, names = [number for number, _ in parsed], [row.name for _, row in parsed]
    whole = all(type(number) is int and 0 <= number < 2**32 for number in (*numbers, *freed))
    if not whole or numbers[:1] != [0] or names[:1] != [BASE] or parsed[0][1].config is not None:
        raise AdapterError(f"{file} has no row 0 for the base, or ids that are no numbers")
    # Rows are taken from the lowest on, so that all up to the last one are named.
    places = sorted(number % MOST_ROWS for number in (*numbers, *freed))
    if places != list(range(len(places))) or len(set(names)) != len(names):
        raise AdapterError(f"{file} has two rows of one name, two ids for one row, or rows missing")
    return dict(parsed), freed


def _parse_row(fields: Mapping[str, Any]) -> tuple[int, Row]:
    number, name, config, leaves = (fields[key] for key in ("id", "name", "config", "leaves"))
    if number != 0:
        check_name(name)
    if not isinstance(leaves, list) or not all(isinstance(path, str) for path in leaves):
        raise ValueError(f"the leaves of {shorten(repr(name))} are no list of paths")
    config = None if config is None else LNTuningConfig.from_dict(config)
    return number, Row(name, config, tuple(leaves))

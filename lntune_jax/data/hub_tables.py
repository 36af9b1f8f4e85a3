"""Tables of the `datasets` package: a dataset of the Hugging Face hub, or one saved to disk."""

from __future__ import annotations

import importlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import ConfigError, DataError
from ..messages import nearest, need_package
from .columns import Columns
from .readers import SUFFIXES, RawTable

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+", re.ASCII)
# What `save_to_disk` writes for one split, and for several.
_SAVED = ("state.json", "dataset_dict.json")


def is_dataset(path: Path) -> bool:
    """Whether a path names a dataset: a directory of `save_to_disk`, or owner/name of the hub.

    Example:
        >>> is_dataset(Path("owner/reviews")), is_dataset(Path("folder/reviews.csv"))
        (True, False)
    """
    if path.exists():
        return any((path / name).is_file() for name in _SAVED)
    is_file = path.suffix.lower() in (*SUFFIXES, ".txt")
    return not is_file and _HUB_ID.fullmatch(path.as_posix()) is not None


def choose_evaluation(columns: Columns, path: Path) -> tuple[Path | None, str | None, str]:
    """Where the rows to evaluate on are: a file or dataset, its split, and the flag that says so.

    Args:
        columns: The flags.
        path: What is trained on.

    Returns:
        No path where rows of `path` are held out.

    Raises:
        ConfigError: If flags contradict each other, or name splits of what is no dataset.
    """
    given = [
        name
        for name in ("eval_data", "eval_split", "eval_fraction")
        if getattr(columns, name) is not None
    ]
    if columns.no_eval:
        given.append("no_eval")
    if len(given) > 1:
        flags = " and ".join(f"--{name.replace('_', '-')}" for name in given)
        raise ConfigError(f"{flags} contradict each other; give one of them")
    for name in ("train_split", "eval_split"):
        if getattr(columns, name) is not None and not is_dataset(path):
            raise ConfigError(
                f"--{name.replace('_', '-')} goes with a dataset: --data owner/name, or a "
                f"directory of save_to_disk; {path} is none"
            )
    if columns.eval_split is not None:
        return path, columns.eval_split, "--data"
    return columns.eval_data, None, "--eval-data"


def read_dataset(path: Path, wanted: Sequence[str], flag: str, split: str) -> RawTable:
    """Read some columns of one split of a dataset; a class label is given by its name.

    Args:
        path: As for `is_dataset`.
        wanted: Names of columns.
        flag: The flag that gave `path`, for messages.
        split: The split's name.

    Raises:
        DataError: If the package is missing, or the dataset or its split is.
    """
    what = f"{flag} {path} is no file here, and to be read as a dataset"
    need_package("datasets", "datasets", f"{what} it", DataError)
    # By name: it is on no machine that only checks types.
    datasets: Any = importlib.import_module("datasets")
    try:
        if path.is_dir():
            found = datasets.load_from_disk(str(path))
            splits = list(found) if isinstance(found, dict) else [split]
        else:
            found, splits = None, list(datasets.get_dataset_split_names(path.as_posix()))
            if split in splits:
                found = datasets.load_dataset(path.as_posix(), split=split)
    # The package raises errors of its own, of the hub's client, of pyarrow and of Python.
    except Exception as error:
        raise DataError(
            f"{flag} {path} is neither a file here nor a dataset that can be loaded "
            f"({type(error).__name__}): give a file, owner/name of the Hugging Face hub, or a "
            "directory of save_to_disk"
        ) from error
    if split not in splits:
        raise DataError(
            f"{flag} {path} has no split {split!r}; it has {', '.join(map(repr, splits))}"
            f"{nearest(split, splits)}"
        )
    found = found[split] if isinstance(found, dict) else found
    assert found is not None
    names = tuple(found.column_names)
    columns = {
        name: _name_classes(list(found[name]), found.features[name])
        for name in dict.fromkeys(wanted)
        if name in names
    }
    return RawTable(names, columns, tuple(range(1, len(found) + 1)), "row")


def _name_classes(values: list[Any], feature: Any) -> list[Any]:
    """Class numbers as names, where the dataset has them; -1 stands for no label."""
    # Of a list of class labels, the feature of its entries has them.
    feature = feature if hasattr(feature, "names") else getattr(feature, "feature", None)
    names = getattr(feature, "names", None)
    if names is None:
        return values

    def name(value: Any) -> Any:
        if isinstance(value, list):
            return [name(each) for each in value]
        return None if value in (None, -1) else names[value]

    return [name(value) for value in values]

"""Files of a directory that the library wrote: sizes and checksums, recorded and compared."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..errors import AdapterError
from ..messages import list_names

# Written last; it holds the record of the others.
METADATA_FILE = "lntune.json"
_ADVICE = "copy it anew from where it came from, and move files that are not its own elsewhere"
# What the Hugging Face hub puts beside an adapter's own files; nothing in them is read.
_HUB_FILES = frozenset({"README.md", ".gitattributes"})
_HUB_FOLDER = ".cache/huggingface/"


def describe_files(
    directory: Path, is_left_out: Callable[[str], bool] = lambda _: False
) -> dict[str, dict[str, Any]]:
    """Size and sha256 of every file below `directory`, except the metadata file itself.

    Args:
        directory: where the files are.
        is_left_out: which other files, by their relative paths, take no part.
    """
    files: dict[str, dict[str, Any]] = {}
    for path in list_files(directory):
        if path == METADATA_FILE or is_left_out(path):
            continue
        if not (directory / path).is_file():  # a pipe or a dangling link: not to be opened
            files[path] = {"size": 0, "sha256": ""}
            continue
        with (directory / path).open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            files[path] = {"size": file.tell(), "sha256": digest}
    return files


def check_files(
    directory: Path,
    expected: Mapping[str, Mapping[str, Any]],
    advice: str = _ADVICE,
    *,
    from_hub: bool = False,
    is_left_out: Callable[[str], bool] = lambda _: False,
) -> None:
    """Compares every file below `directory` with its record.

    Args:
        directory: where the files are.
        expected: what `describe_files` gave.
        advice: what the message says to do.
        from_hub: whether a model card and the hub's own files may lie beside them.
        is_left_out: as in `describe_files`.

    Raises:
        AdapterError: a file is missing, unexpected, of another size or has other contents.
    """
    try:
        paths = [path for path in list_files(directory) if not is_left_out(path)]
        sizes = {path: _get_size(directory / path) for path in paths if path != METADATA_FILE}
        wrong = [f"{path} is missing" for path in expected if path not in sizes]
        unexpected = [path for path in sizes if path not in expected]
        wrong += [
            f"{path} is unexpected" for path in unexpected if not (from_hub and _is_of_hub(path))
        ]
        for path in expected.keys() & sizes.keys():
            if sizes[path] != expected[path]["size"]:
                both = f"{expected[path]['size']:,} bytes expected, {sizes[path]:,} found"
                wrong.append(f"{path} has another size ({both})")
        found = {} if wrong else describe_files(directory, is_left_out)  # which reads all of each
    except OSError as error:
        raise AdapterError(f"cannot read {error.filename}: {error.strerror}") from None
    wrong += [
        f"{path} has a wrong checksum"
        for path in found.keys() & expected.keys()
        if found[path]["sha256"] != expected[path]["sha256"]
    ]
    if wrong:
        raise AdapterError(
            f"{directory} is not what was saved: {list_names(sorted(wrong), str)}. It is damaged: "
            f"{advice}"
        )


def _get_size(file: Path) -> int:
    return file.stat().st_size if file.is_file() else 0  # a pipe or a dangling link


def _is_of_hub(path: str) -> bool:
    return path in _HUB_FILES or path.startswith(_HUB_FOLDER)


def list_files(directory: Path) -> list[str]:
    """Relative paths of all files below `directory`, and of links, with forward slashes."""
    return sorted(
        (Path(parent) / name).relative_to(directory).as_posix()
        for parent, folders, files in os.walk(directory)
        for name in (
            *files,
            *(folder for folder in folders if (Path(parent) / folder).is_symlink()),
        )
    )

"""What was written is what is read: JSON files, read strictly and sealed, and checksums of files.

JSON may come from a stranger. Python's parser takes a name twice in one object, text that no file
can hold, and nesting that later code cannot walk through; whatever is read here is bounded in size
and depth and free of all that. What is written is for people to read. A sealed file ends with a
checksum of the text above it; `describe_files` records the other files of a directory.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import stat
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
MOST_BYTES = 16 * 2**20  # as text; as Python objects it may be thirty times that
MOST_LEVELS = 100
_WIDEST = 160  # what takes more characters is spread over several lines
_SEAL = re.compile(rb' "sha256": "([0-9a-f]{64})"\n}\n\Z')


def read_json(file: Path, most_bytes: int = MOST_BYTES) -> Any:
    """The content of a JSON file.

    Args:
        file: the file.
        most_bytes: a larger one is refused unread.

    Raises:
        OSError: it cannot be read, or is no file.
        ValueError: it is too large, or no JSON of one meaning; says why.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp()) / "a.json"
        >>> _ = file.write_text('{"a": 1, "a": 2}')
        >>> try:
        ...     read_json(file)
        ... except ValueError as error:
        ...     print(error)
        the name 'a' appears twice in one object
    """
    return parse_json(read_bounded(file, most_bytes))


def read_bounded(file: Path, most_bytes: int = MOST_BYTES) -> bytes:
    """The bytes of a file that is no larger than allowed.

    Raises:
        OSError: it cannot be read, or is no file (a pipe would be waited for).
        ValueError: it is too large.
    """
    found = file.stat()
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, "it is no plain file", str(file))
    if found.st_size > most_bytes:
        raise ValueError(f"it is larger than {most_bytes:,} bytes")
    return file.read_bytes()


def parse_json(text: bytes) -> Any:
    """The value of a JSON text in UTF-8.

    Raises:
        ValueError: it is none, or has two meanings, or is nested too deeply.

    Example:
        >>> parse_json(b'{"a": [1]}')
        {'a': [1]}
    """
    try:
        value = json.loads(text.decode("utf-8"), object_pairs_hook=_make_object)
    except RecursionError:
        raise ValueError(f"it is nested more than {MOST_LEVELS} levels deep") from None
    _check_depth(value)
    if re.search(rb"\\u[dD][89a-fA-F]", text):  # perhaps half a pair, which no file can hold
        try:
            json.dumps(value, ensure_ascii=False).encode("utf-8")
        except UnicodeEncodeError:
            raise ValueError("it holds text that is not Unicode (half a surrogate pair)") from None
    return value


def write_json(value: Any, indent: int = 0) -> str:
    """JSON as a person reads it: an object or list that is short on one line, else spread out.

    Raises:
        ValueError, TypeError: it is no JSON: not a number is none, for one.

    Example:
        >>> write_json({"shape": [8], "dtype": "float32"})
        '{"shape": [8], "dtype": "float32"}'
    """
    text = json.dumps(value, allow_nan=False)
    return text if len(text) <= _WIDEST else _spread(value, indent, text)


def seal_json(fields: Mapping[str, Any]) -> str:
    """The text of a sealed file: the fields, one a line, and a checksum of all above it.

    The same fields give the same text.

    Raises:
        ValueError, TypeError: they are no JSON.

    Example:
        >>> text = seal_json({"format": "example"})
        >>> open_sealed(text.encode())
        ({'format': 'example'}, True)
        >>> open_sealed(text.replace("example", "another").encode())
        ({'format': 'another'}, False)
    """
    text = _spread(fields, 0, "{}").removesuffix("\n}") + ",\n"
    digest = hashlib.sha256(text.encode()).hexdigest()
    return f'{text} "sha256": "{digest}"\n}}\n'


def open_sealed(text: bytes) -> tuple[Any, bool]:
    """What a sealed file says, and whether its checksum is right.

    Raises:
        ValueError: it is no JSON of one meaning.
    """
    fields, seal = parse_json(text), _SEAL.search(text)
    if not isinstance(fields, dict):
        return fields, False
    fields.pop("sha256", None)
    return fields, seal is not None and (
        hashlib.sha256(text[: seal.start()]).hexdigest().encode() == seal[1]
    )


def _spread(value: Any, indent: int, text: str) -> str:
    """An object or list with a line for each item; anything else as `text`."""
    inner = "\n" + " " * (indent + 1)
    if isinstance(value, Mapping) and value:
        items = [f"{json.dumps(k)}: {write_json(v, indent + 1)}" for k, v in value.items()]
        return "{" + inner + f",{inner}".join(items) + "\n" + " " * indent + "}"
    if isinstance(value, list | tuple) and value:
        items = [write_json(item, indent + 1) for item in value]
        return "[" + inner + f",{inner}".join(items) + "\n" + " " * indent + "]"
    return text


def _make_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))
        raise ValueError(f"the name {twice[:80]!r} appears twice in one object")
    return values


def _check_depth(value: Any) -> None:
    level = [value] if isinstance(value, dict | list) else []
    for _ in range(MOST_LEVELS):
        below = (each.values() if isinstance(each, dict) else each for each in level)
        level = [item for items in below for item in items if isinstance(item, dict | list)]
        if not level:
            return
    raise ValueError(f"it is nested more than {MOST_LEVELS} levels deep")


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

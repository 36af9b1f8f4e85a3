"""JSON files: read strictly, since they may come from a stranger, and written for people to read.

Python's parser takes a name twice in one object, text that no file can hold, and nesting that
later code cannot walk through; whatever is read here is bounded in size and depth and free of all
that. A sealed file ends with a checksum of the text above it.
"""

from __future__ import annotations

import errno
import hashlib
import json
import re
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

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

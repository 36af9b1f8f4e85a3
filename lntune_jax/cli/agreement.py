"""Whether the processes of one run were told the same, before they do anything together.

Processes that disagree wait for each other for ever, or read the other's numbers as their own. So
a digest of a fixed size crosses first; where digests differ all values cross, and each difference
is named on every process.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import AnotherProcessError, ConfigError
from ..storage.processes import together

# What decides how rows are drawn and encoded, and which programs are compiled.
_PACKAGES = ("lntune-jax", "jax", "jaxlib", "numpy", "optax", "flax", "transformers", "tokenizers")
_OPTIONS = ("jax_enable_x64", "jax_default_prng_impl", "jax_default_matmul_precision")

_MOST_NAMED = 6
_WHOLE = 2**24  # bytes; of larger files parts are read
_PART, _PARTS = 2**16, 64


class LeaveTogetherError(Exception):
    """Every process knows of the error that is its cause, and ends at the same point."""


def check_agreement(found: Mapping[str, Any]) -> None:
    """Check that all processes found the same; every one of them must call this.

    Args:
        found: Values as plain JSON, by the name that a message gives them.

    Raises:
        LeaveTogetherError: They did not; its cause names the differences.

    Example:
        >>> check_agreement({"--seed": 0})
    """
    from jax.experimental.multihost_utils import process_allgather

    text = json.dumps(found, sort_keys=True).encode()
    digest = np.frombuffer(hashlib.sha256(text).digest(), np.uint8)
    digests = np.asarray(process_allgather(digest)).reshape(-1, len(digest))
    if (digests == digests[0]).all():
        return
    sizes = np.asarray(process_allgather(np.int32(len(text)))).reshape(-1)
    row = np.zeros(int(sizes.max()), np.uint8)
    row[: len(text)] = np.frombuffer(text, np.uint8)
    rows = np.asarray(process_allgather(row)).reshape(len(sizes), -1)
    every = [json.loads(bytes(r[:size])) for r, size in zip(rows, sizes, strict=True)]
    raise LeaveTogetherError from ConfigError(describe_differences(every))


def describe_differences(found: Sequence[Mapping[str, Any]]) -> str:
    """What each process has that process 0 has not.

    Example:
        >>> describe_differences([{"--seed": 0, "--ema": None}, {"--seed": 1, "--ema": None}])
        'process 1 has --seed 1 and process 0 0; start all processes with the same command'
    """
    lines = []
    first = found[0]
    for number, own in enumerate(found[1:], start=1):
        for name in dict.fromkeys((*first, *own)):
            left, right = first.get(name), own.get(name)
            if left == right:
                continue
            lines.append(
                f"process {number} has {name} {_show(right)} and process 0 {_show(left)}"
                if name.startswith("--") or "version" in name or "labels" in name
                else f"process {number} has another {name} than process 0"
                + (f": {_show(right)}, not {_show(left)}" if _is_short(left, right) else "")
            )
    more = len(lines) - _MOST_NAMED
    rest = f"; and {more} differences more" if more > 0 else ""
    return f"{'; '.join(lines[:_MOST_NAMED])}{rest}; start all processes with the same command"


@contextlib.contextmanager
def failing_together() -> Iterator[None]:
    """An error of one process in the block ends all of them; nothing in it waits for another.

    Raises:
        LeaveTogetherError: In a run of several processes, one of them raised.

    Example:
        >>> with failing_together():
        ...     print("done")
        done
    """
    import jax

    if jax.process_count() == 1:
        yield
        return
    own = None
    try:
        with together():
            try:
                yield
            except Exception as error:
                own = error
                raise
    except AnotherProcessError as error:
        raise LeaveTogetherError from error
    except Exception as error:
        if error is not own:
            raise  # The network's, by which no other process knows of it.
        raise LeaveTogetherError from error


def describe_program() -> dict[str, Any]:
    """Versions and options that decide what is computed.

    Example:
        >>> describe_program()["version of jax"] == __import__("jax").__version__
        True
    """
    import jax

    options = {f"${name.upper()}": str(getattr(jax.config, name)) for name in _OPTIONS}
    return {**{f"version of {name}": _version(name) for name in _PACKAGES}, **options}


def describe_files(model: str) -> dict[str, str]:
    """A digest of every file of a model directory; of a large one, of parts all over it.

    Args:
        model: The directory or a file; a hub id gives nothing.
    """
    path = Path(model).expanduser()
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    return {
        f"content of {file.name} in --model": _digest_file(file) for file in files if file.is_file()
    }


def describe_rows(tables: Sequence[Any]) -> dict[str, Any]:
    """What was read from each table: its label names, and a digest of all else.

    Args:
        tables: Named tuples or dataclasses, or tuples of them, as a task's `read` gives them.
    """
    found: dict[str, Any] = {}
    for number, table in enumerate(tables):
        place = "--data" if number == 0 else f"table {number} of --more-data"
        if hasattr(table, "names"):
            found[f"labels in {place}:"] = list(table.names)
        digest = hashlib.sha256()
        _add(digest, table)
        found[f"content of {place} as read"] = digest.hexdigest()
    return found


def describe_tasks(tasks: Sequence[Any], batch_size: int) -> dict[str, Any]:
    """What was made of the tables and the base model: records, steps, and the leaves' shapes.

    Args:
        tasks: One for each table.
        batch_size: Rows in a batch.
    """
    from ..paths import flatten, get_shape, join

    digest = hashlib.sha256()
    for leaf in flatten(tasks[0].params)[0]:
        _add(digest, (join(leaf.path), get_shape(leaf.value), str(leaf.value.dtype)))
    steps = [task.epoch_steps(batch_size) for task in tasks]
    lengths = [list(getattr(task, "buckets", ())) for task in tasks]
    return {
        **{f"{name} of the task": value for name, value in tasks[0].record.items()},
        "number of steps in an epoch": steps,
        "choice of padded lengths": lengths,
        "tree of --model": digest.hexdigest(),
    }


def _add(digest: Any, value: Any) -> None:
    """Add a value to a digest, whatever its strings' and containers' identities."""
    if isinstance(value, np.ndarray) and value.dtype != object:
        digest.update(f"{value.dtype.str} {value.shape} ".encode())
        digest.update(np.ascontiguousarray(value).tobytes())
    elif isinstance(value, Mapping):
        _add(digest, list(value.items()))
    elif isinstance(value, list | tuple | np.ndarray):
        digest.update(f"{len(value)}[".encode())
        for each in value:
            _add(digest, each)
    elif is_dataclass(value):
        _add(digest, [getattr(value, each.name) for each in fields(value)])
    elif isinstance(value, Path):
        digest.update(b"path ")  # The same rows may lie elsewhere; flags are compared as they are.
    else:
        digest.update(f"{type(value).__name__} {value!r} ".encode(errors="surrogatepass"))


def _digest_file(file: Path) -> str:
    digest, size = hashlib.sha256(), file.stat().st_size
    digest.update(str(size).encode())
    with file.open("rb") as opened:
        if size <= _WHOLE:
            digest.update(opened.read())
            return digest.hexdigest()
        for part in range(_PARTS):
            opened.seek((size - _PART) * part // (_PARTS - 1))
            digest.update(opened.read(_PART))
    return digest.hexdigest()


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _is_short(*values: Any) -> bool:
    return all(value is None or len(str(value)) < 64 for value in values)


def _show(value: Any) -> str:
    if value is None or value == []:
        return "unset"
    if isinstance(value, list):
        return " ".join(map(str, value))
    return ("off", "on")[value] if isinstance(value, bool) else str(value)

"""Weights in safetensors files, one file or several with an index, read one tensor at a time.

Names, shapes and types of all tensors are known before any is read; a damaged file is an error
that names it.
"""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lntune_jax.errors import ModelError
from lntune_jax.messages import shorten
from lntune_jax.storage.sealed import read_json

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np


# How safetensors names the types of numbers that weights can be read from.
FLOATING_TYPES = ("F64", "F32", "F16", "BF16")

WEIGHTS_FILE, WEIGHTS_PATTERN = "model.safetensors", "*.safetensors"

INDEX_FILE = "model.safetensors.index.json"

MOST_INDEX_BYTES = 2**26  # the index of a model of 100,000 tensors takes 10 MB


class Weights:
    """The tensors of one checkpoint, by the key each has in its file."""

    def __init__(self, directory: Path, handles: dict[str, tuple[Path, Any]]):
        """Take the open file of every key."""
        self.directory = directory
        self._handles = handles

    def keys(self) -> list[str]:
        """Every tensor's key."""
        return list(self._handles)

    def shape(self, key: str) -> tuple[int, ...]:
        """A tensor's shape, from the header alone."""
        return tuple(self._handles[key][1].get_slice(key).get_shape())

    def read(self, key: str) -> np.ndarray:
        """Read one tensor.

        Raises:
            ModelError: it holds no floating-point numbers of a known type.
        """
        path, handle = self._handles[key]
        kind = handle.get_slice(key).get_dtype()
        if kind not in FLOATING_TYPES:
            raise ModelError(
                f"{path}: tensor {key} is stored as {kind}; supported: {', '.join(FLOATING_TYPES)} "
                "(weights that are not quantised)"
            )
        return handle.get_tensor(key)


@contextmanager
def open_weights(directory: Path) -> Iterator[Weights]:
    """Open a model directory's safetensors files while the block runs.

    Raises:
        ModelError: there are none, one is missing or damaged, or the index does not fit them.
    """
    single, index = directory / WEIGHTS_FILE, directory / INDEX_FILE
    with ExitStack() as stack:
        if single.is_file():
            handle = _open(single, stack)
            yield Weights(directory, dict.fromkeys(handle.keys(), (single, handle)))
        elif index.is_file():
            yield Weights(directory, _indexed(index, stack))
        else:
            raise ModelError(_absence(directory))


def _open(path: Path, stack: ExitStack) -> Any:
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise ModelError(f"{path}: no such file, though the index beside it names it")
    try:
        return stack.enter_context(safe_open(path, framework="numpy"))
    except (SafetensorError, OSError, ValueError) as error:
        reason = shorten(str(error))
        raise ModelError(f"{path}: damaged or cut short ({reason}); fetch it again") from error


def _indexed(index: Path, stack: ExitStack) -> dict[str, tuple[Path, Any]]:
    names = read_index(index)
    shards = {name: _open(index.parent / name, stack) for name in sorted(set(names.values()))}
    present = {name: set(handle.keys()) for name, handle in shards.items()}
    for key, name in names.items():
        if key not in present[name]:
            raise ModelError(f"{index}: {shorten(key)} should be in {name}, which does not hold it")
    return {key: (index.parent / name, shards[name]) for key, name in names.items()}


def read_index(index: Path) -> dict[str, str]:
    """The name of the file that holds each tensor, by an index of several.

    Raises:
        ModelError: it is damaged, or leads out of its own directory.
    """
    try:
        names = read_json(index, MOST_INDEX_BYTES)["weight_map"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{index}: not an index with a weight_map ({error})") from error
    if not isinstance(names, dict):
        raise ModelError(f"{index}: weight_map is no object of keys and file names")
    for key, name in names.items():
        # An index comes from elsewhere: it may not lead out of its own directory.
        if not isinstance(name, str) or not _is_plain(name):
            raise ModelError(
                f"{index}: {shorten(key)} is in {shorten(repr(name))}, which is no plain file name"
            )
    return names


def _is_plain(name: str) -> bool:
    """Whether a name is that of a file in the same directory, and of weights."""
    return Path(name).name == name and name.endswith(".safetensors") and name.isprintable()


def _absence(directory: Path) -> str:
    pickled = sorted(path.name for path in directory.glob("pytorch_model*.bin"))
    if pickled:
        return (
            f"{directory}: the weights are only in {pickled[0]}, a pickle, which can run any code "
            f"when it is read; convert them to {WEIGHTS_FILE} first"
        )
    return f"{directory}: no weights; expected {WEIGHTS_FILE} or {INDEX_FILE}"

"""Weights in one GGUF file, with its config, read and dequantised one tensor at a time."""

from __future__ import annotations

import re
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from lntune_jax.errors import ModelError
from lntune_jax.messages import shorten

from . import _gguf_names as names
from ._gguf_config import config_of_file
from ._gguf_header import check_header

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class GgufFile:
    """The metadata and tensors of one file, by the key each has in a bare model."""

    def __init__(self, path: Path):
        """Read everything but the tensors' content.

        Raises:
            ModelError: the file is damaged, or holds another architecture.
        """
        self.directory = path
        reader = _reader(path)
        self._fields = reader.fields
        self.architecture = self.field("general.architecture")
        if not isinstance(self.architecture, str) or self.architecture not in names.ARCHITECTURES:
            raise ModelError(
                f"{path}: general.architecture is {shorten(repr(self.architecture))}; supported: "
                f"{', '.join(sorted(names.ARCHITECTURES))}"
            )
        self._kind = names.ARCHITECTURES[self.architecture]
        self._factors = None
        self._tensors = {}
        for tensor in reader.tensors:
            if self._kind.reordered and tensor.name == names.FREQUENCY_FACTORS:
                self._factors = tensor
            else:
                self._tensors[_module_name(path, tensor.name, self._kind)] = tensor
        self._heads: dict[str, int] = {}
        if self._kind.reordered:
            config = self.config()
            heads = config["num_attention_heads"]
            self._heads = {"q_proj": heads, "k_proj": config.get("num_key_value_heads", heads)}

    def field(self, key: str, default: Any = None) -> Any:
        """Give the value of one metadata field."""
        return self._fields[key].contents() if key in self._fields else default

    def own(self, key: str, default: Any = None) -> Any:
        """Give the value of one field under the architecture's name."""
        return self.field(f"{self.architecture}.{key}", default)

    def own_fields(self) -> dict[str, Any]:
        """Give every field under the architecture's name."""
        prefix = f"{self.architecture}."
        full = [key for key in self._fields if key.startswith(prefix)]
        return {key.removeprefix(prefix): self.field(key) for key in full}

    def keys(self) -> list[str]:
        """Every tensor's key."""
        return list(self._tensors)

    def shape(self, key: str) -> tuple[int, ...]:
        """A tensor's shape, in PyTorch's order of axes."""
        shape = tuple(int(size) for size in self._tensors[key].shape)
        return shape if self._is_transposed(key) else shape[::-1]

    def read(self, key: str) -> np.ndarray:
        """Read one tensor and dequantise it.

        Raises:
            ModelError: it is stored in a way that is unknown, or holds what is no number.
        """
        array = self._dequantized(self._tensors[key])
        # A damaged scale of a quantised block shows as an infinity or as no number at all.
        if not np.isfinite(array).all():
            raise ModelError(f"{self.directory}: tensor {key} holds no numbers; fetch it again")
        module = key.split(".")[-2]
        if self._kind.norm_offset and module.endswith("norm"):
            array = array - np.float32(self._kind.norm_offset)
        if module in self._heads:
            array = _halves(array, self._heads[module])
        return array.T if self._is_transposed(key) else array

    def frequency_factors(self) -> np.ndarray | None:
        """Give what stretches the rotary frequencies, where the file has it."""
        return None if self._factors is None else self._dequantized(self._factors)

    def config(self) -> dict[str, Any]:
        """Give the content of a config.json that says what the file's metadata say.

        Raises:
            ModelError: a field is missing, or holds what the models do not honour.
        """
        try:
            return config_of_file(self)
        except (ArithmeticError, TypeError, ValueError, IndexError) as error:
            if isinstance(error, ModelError):
                raise
            raise _damaged(self.directory, error) from error

    def _is_transposed(self, key: str) -> bool:
        _, module, leaf = f".{key}".rsplit(".", 2)
        return leaf == "weight" and module in self._kind.transposed

    def _dequantized(self, tensor: Any) -> np.ndarray:
        from gguf import dequantize  # pyright: ignore[reportMissingImports]

        try:
            with np.errstate(all="ignore"):  # Whatever overflows is found by its value.
                return np.asarray(dequantize(tensor.data, tensor.tensor_type), np.float32)
        except NotImplementedError as error:
            raise ModelError(
                f"{self.directory}: tensor {tensor.name} is stored as {tensor.tensor_type.name}, "
                "which the package gguf cannot dequantise"
            ) from error


@contextmanager
def open_gguf(path: Path) -> Iterator[GgufFile]:
    """Open a file while the block runs.

    Raises:
        ModelError: it is damaged, or holds what is not supported.
    """
    try:
        file = GgufFile(path)
    except (ModelError, MemoryError):
        raise
    except Exception as error:
        raise _damaged(path, error) from error
    yield file


def _reader(path: Path) -> Any:
    try:
        from gguf import GGUFReader  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise ModelError(
            f"{path}: reading GGUF needs the package gguf: pip install 'lntune-jax[gguf]'"
        ) from None
    try:
        check_header(path)
        with np.errstate(all="ignore"):  # A count that overflows does not fit what follows.
            return GGUFReader(path)
    except Exception as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> ModelError:
    """The reader trusts what it reads: damage shows as an error of any kind."""
    reason = " ".join(str(error).split())[:200]
    return ModelError(
        f"{path}: damaged or cut short ({type(error).__name__}: {reason}); fetch it again"
    )


def _module_name(path: Path, name: str, kind: names.Architecture) -> str:
    stem, _, leaf = name.rpartition(".")
    layer = re.fullmatch(r"blk\.(\d+)\.(\w+)", stem)
    if layer is not None and layer[2] in kind.layer_modules:
        return f"{kind.stack}.{layer[1]}.{kind.layer_modules[layer[2]]}.{leaf}"
    if stem in kind.modules:
        return f"{kind.modules[stem]}.{leaf}"
    raise ModelError(f"{path}: tensor {shorten(name)} is none that this architecture's models have")


def _halves(array: np.ndarray, heads: int) -> np.ndarray:
    """Undo the converter's order of rows: neighbours of a pair go back into two halves."""
    pairs = array.reshape(heads, array.shape[0] // heads // 2, 2, *array.shape[1:])
    return pairs.swapaxes(1, 2).reshape(array.shape)

"""Weights in one GGUF file, with its config, read and dequantised one tensor at a time."""

from __future__ import annotations

import re
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from lntune_jax._errors import ModelError

from . import _gguf_names as names
from ._rope import Rope, fixed_frequencies

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
        if self.architecture not in names.ARCHITECTURES:
            raise ModelError(
                f"{path}: general.architecture is {self.architecture!r}; supported: "
                f"{', '.join(sorted(names.ARCHITECTURES))}"
            )
        self._raw = {tensor.name: tensor for tensor in reader.tensors}
        self._tensors = {
            _module_name(path, name): tensor
            for name, tensor in self._raw.items()
            if name != names.FREQUENCY_FACTORS
        }
        self._heads: dict[str, int] = {}
        if names.ARCHITECTURES[self.architecture]:
            config = self.config()
            heads = config["num_attention_heads"]
            self._heads = {"q_proj": heads, "k_proj": config.get("num_key_value_heads", heads)}

    def field(self, key: str, default: Any = None) -> Any:
        """Give the value of one metadata field."""
        return self._fields[key].contents() if key in self._fields else default

    def keys(self) -> list[str]:
        """Every tensor's key."""
        return list(self._tensors)

    def shape(self, key: str) -> tuple[int, ...]:
        """A tensor's shape, in PyTorch's order of axes."""
        return tuple(int(size) for size in reversed(self._tensors[key].shape))

    def read(self, key: str) -> np.ndarray:
        """Read one tensor and dequantise it.

        Raises:
            ModelError: it is stored in a way that is unknown, or holds what is no number.
        """
        array = self._dequantized(self._tensors[key])
        # A damaged scale of a quantised block shows as an infinity or as no number at all.
        if not np.isfinite(array).all():
            raise ModelError(f"{self.directory}: tensor {key} holds no numbers; fetch it again")
        heads = self._heads.get(key.split(".")[-2])
        return array if heads is None else _halves(array, heads)

    def config(self) -> dict[str, Any]:
        """Give the content of a config.json that says what the file's metadata says.

        Raises:
            ModelError: a field is missing, or holds what the models do not honour.
        """
        config: dict[str, Any] = {"model_type": self.architecture}
        for key, name in names.FIELDS.items():
            value = self.field(f"{self.architecture}.{key}")
            if value is None and key in names.OPTIONAL_FIELDS:
                continue
            self._require(key, value, isinstance(value, int | float), "one number")
            config[name] = value
        self._refuse_others()
        width = config["hidden_size"] // config["num_attention_heads"]
        config.setdefault("head_dim", width)
        for key in ("rope.dimension_count", "attention.value_length"):
            value = self.field(f"{self.architecture}.{key}", config["head_dim"])
            self._require(key, value, value == config["head_dim"], str(config["head_dim"]))
        config["rope_parameters"] = self._rope(config["head_dim"])
        config["vocab_size"] = self.shape("embed_tokens.weight")[0]
        config["tie_word_embeddings"] = "lm_head.weight" not in self._tensors
        config["attention_bias"] = "layers.0.self_attn.q_proj.bias" in self._tensors
        for key, name in names.TOKENIZER_FIELDS.items():
            config[name] = self.field(key)
        return config

    def _rope(self, width: int) -> dict[str, Any]:
        base = float(self.field(f"{self.architecture}.{names.ROPE_BASE}", 10_000.0))
        kind = self.field(f"{self.architecture}.{names.ROPE_SCALING}type", "none")
        if names.FREQUENCY_FACTORS in self._raw:
            self._require("rope.scaling.type", kind, kind == "none", "'none', beside factors")
            return self._llama3(base, width)
        given = {
            name: self.field(f"{self.architecture}.{names.ROPE_SCALING}{key}")
            for key, name in names.ROPE_FIELDS.items()
        }
        known = kind in ("none", "linear", "yarn")
        self._require("rope.scaling.type", kind, known, "'none', 'linear' or 'yarn'")
        if kind == "none":
            return {"rope_type": "default", "rope_theta": base}
        if kind == "linear":
            given.pop("original_max_position_embeddings")
        keys = {name: value for name, value in given.items() if value is not None}
        return {"rope_type": kind, "rope_theta": base, **keys}

    def _llama3(self, base: float, width: int) -> dict[str, Any]:
        """Recognise the parameters from which the converter computed the file's factors."""
        found = self._dequantized(self._raw[names.FREQUENCY_FACTORS])
        plain = fixed_frequencies(Rope("default", base, width))
        for factor in names.LLAMA3_FACTORS:
            parameters = {**names.LLAMA3, "rope_theta": base, "factor": factor}
            scaled = fixed_frequencies(
                Rope("llama3", base, width, 8192, factor, low_factor=1.0, high_factor=4.0)
            )
            if found.shape == plain.shape and np.allclose(found, plain / scaled, rtol=1e-4):
                return parameters
        raise ModelError(
            f"{self.directory}: the factors in {names.FREQUENCY_FACTORS} are not those of the "
            f"'llama3' scaling by {' or '.join(f'{f:g}' for f in names.LLAMA3_FACTORS)}; load the "
            "model from safetensors"
        )

    def _refuse_others(self) -> None:
        known = {*names.FIELDS, *names.OTHER_KEYS}
        known |= {names.ROPE_SCALING + key for key in names.ROPE_FIELDS}
        prefix = self.architecture + "."
        for full in self._fields:
            key = full.removeprefix(prefix)
            if full.startswith(prefix) and key not in known:
                value = self.field(full)
                unused = key in names.UNUSED and value == names.UNUSED[key]
                self._require(key, value, unused, "a file without this field")

    def _require(self, key: str, value: Any, accepted: bool, supported: str) -> None:
        if not accepted:
            raise ModelError(
                f"{self.directory}: field {self.architecture}.{key} is {value!r}; "
                f"supported: {supported}"
            )

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
    yield GgufFile(path)


def _reader(path: Path) -> Any:
    try:
        from gguf import GGUFReader  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise ModelError(
            f"{path}: reading GGUF needs the package gguf: pip install 'lntune-jax[gguf]'"
        ) from None
    try:
        return GGUFReader(path)
    except Exception as error:
        # The reader trusts what it reads: damage shows as an error of any kind.
        reason = " ".join(str(error).split())[:200]
        raise ModelError(
            f"{path}: damaged or cut short ({type(error).__name__}: {reason}); fetch it again"
        ) from error


def _module_name(path: Path, name: str) -> str:
    stem, _, leaf = name.rpartition(".")
    layer = re.fullmatch(r"blk\.(\d+)\.(\w+)", stem)
    if layer is not None and layer[2] in names.LAYER_MODULES:
        return f"layers.{layer[1]}.{names.LAYER_MODULES[layer[2]]}.{leaf}"
    if stem in names.MODULES:
        return f"{names.MODULES[stem]}.{leaf}"
    raise ModelError(f"{path}: tensor {name} is none that this architecture's models have")


def _halves(array: np.ndarray, heads: int) -> np.ndarray:
    """Undo the converter's order of rows: neighbours of a pair go back into two halves."""
    pairs = array.reshape(heads, array.shape[0] // heads // 2, 2, *array.shape[1:])
    return pairs.swapaxes(1, 2).reshape(array.shape)

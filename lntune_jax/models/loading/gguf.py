"""Weights in one GGUF file, dequantised a tensor or a part of one at a time, and its config.

Every field of the metadata is honoured or refused by its name.
"""

from __future__ import annotations

import math
import re
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from lntune_jax.errors import ModelError
from lntune_jax.messages import need_package, shorten

from ..families import gguf as names
from ..families.registry import GGUF
from ..families.rope import LAYER_TYPES
from ..nn.rope import Rope, fixed_frequencies
from .gguf_header import check_header

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
        if not isinstance(self.architecture, str) or self.architecture not in GGUF:
            raise ModelError(
                f"{path}: general.architecture is {shorten(repr(self.architecture))}; supported: "
                f"{', '.join(sorted(GGUF))}"
            )
        self.kind = GGUF[self.architecture]
        self._rope_tensors = {}
        self._tensors = {}
        for tensor in reader.tensors:
            if tensor.name in self.kind.rope_tensors:
                self._rope_tensors[tensor.name] = tensor
            else:
                self._tensors[_module_name(path, tensor.name, self.kind)] = tensor
        self._heads: dict[str, int] = {}
        if self.kind.reordered:
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

    def read(self, key: str, index: tuple[slice, ...] = ()) -> np.ndarray:
        """Read one tensor, or a part of it, and dequantise it.

        Args:
            key: the tensor's.
            index: slices with a start and a stop, one for each axis in PyTorch's order; of a row
                the blocks are read that hold the part. Nothing stands for the whole.

        Raises:
            ModelError: it is stored in a way that is unknown, or holds what is no number.
        """
        turned = self._is_transposed(key)
        index = index or tuple(slice(0, size) for size in self.shape(key))
        rows, columns = (index[::-1] if turned else index)[:-1], index[0 if turned else -1]
        module = key.split(".")[-2]
        tensor = self._tensors[key]
        if module not in self._heads:
            array = self._dequantized(tensor, rows, columns)
        elif rows:
            array = self._dequantized(tensor, (self._order(key)[rows[0]],), columns)
        else:  # the bias of these rows, whose numbers are never in blocks
            array = self._dequantized(tensor)[self._order(key)[columns]]
        # A damaged scale of a quantised block shows as an infinity or as no number at all.
        if not np.isfinite(array).all():
            raise ModelError(f"{self.directory}: tensor {key} holds no numbers; fetch it again")
        if self.kind.norm_offset and module.endswith("norm"):
            array = array - np.float32(self.kind.norm_offset)
        return array.T if turned else array

    def _order(self, key: str) -> np.ndarray:
        """Where in the file each row of queries or keys is."""
        module = key.split(".")[-2]
        return _halves(np.arange(self.shape(key)[0]), self._heads[module])

    def rope_factors(self) -> dict[str, np.ndarray]:
        """Give what stretches the rotary frequencies, by the tensors' names."""
        return {name: self._dequantized(tensor) for name, tensor in self._rope_tensors.items()}

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
        return leaf == "weight" and module in self.kind.transposed

    def _dequantized(
        self, tensor: Any, rows: tuple[Any, ...] = (), columns: slice | None = None
    ) -> np.ndarray:
        """Give the numbers of some rows and columns, of which only whole blocks can be read."""
        from gguf import GGML_QUANT_SIZES, dequantize  # pyright: ignore[reportMissingImports]

        columns = columns or slice(0, int(tensor.shape[0]))
        numbers, octets = GGML_QUANT_SIZES[tensor.tensor_type]
        first, last = columns.start // numbers, -(-columns.stop // numbers)
        items = octets // tensor.data.itemsize  # of a block; a number of a plain type is one
        blocks = tensor.data[(*rows, slice(first * items, last * items))]
        try:
            with np.errstate(all="ignore"):  # Whatever overflows is found by its value.
                array = dequantize(np.ascontiguousarray(blocks), tensor.tensor_type)
        except NotImplementedError as error:
            raise ModelError(
                f"{self.directory}: tensor {tensor.name} is stored as {tensor.tensor_type.name}, "
                "which the package gguf cannot dequantise"
            ) from error
        array = np.asarray(array, np.float32)
        return array[..., columns.start - first * numbers : columns.stop - first * numbers]


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
    need_package("gguf", "gguf", f"{path}: reading GGUF", ModelError)
    from gguf import GGUFReader  # pyright: ignore[reportMissingImports]

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


def config_of_file(file: GgufFile) -> dict[str, Any]:
    """Give the content of a config.json that says what the file's metadata say.

    Raises:
        ModelError: a field is missing, or holds what the models do not honour.
    """
    kind = GGUF[file.architecture]
    config: dict[str, Any] = {"model_type": kind.model_type, **kind.constants}
    for key, name in kind.fields.items():
        value = file.own(key)
        if value is None and key in names.OPTIONAL_FIELDS:
            continue
        _require(file, key, value, _is_number(value), "one number")
        config[name] = value
    _refuse_others(file, kind)
    _read_vocabulary(file, config, kind)
    if kind.rotary:
        _read_attention(file, config, kind)
    for key, name in names.TOKENIZER_FIELDS.items():
        config[name] = file.field(key)
    return config


def _read_vocabulary(file: GgufFile, config: dict[str, Any], kind: names.Architecture) -> None:
    config["vocab_size"] = file.shape(f"{kind.modules['token_embd']}.weight")[0]
    config["tie_word_embeddings"] = "lm_head.weight" not in file.keys()  # noqa: SIM118


def _read_attention(file: GgufFile, config: dict[str, Any], kind: names.Architecture) -> None:
    heads = config["num_attention_heads"]
    share = config["hidden_size"] // heads
    width = config.setdefault("head_dim", share)
    turning = file.own("rope.dimension_count", width)
    part = kind.partial_rotary
    fits = turning in range(2, width + 1, 2) if part else turning == width
    expected = f"an even number from 2 to {width}" if part else str(width)
    _require(file, "rope.dimension_count", turning, fits, expected)
    value = file.own("attention.value_length", width)
    _require(file, "attention.value_length", value, value == width, str(width))
    config["attention_bias"] = "layers.0.self_attn.q_proj.bias" in file.keys()  # noqa: SIM118
    if kind.wide_layers:
        wide = config["num_hidden_layers"] == kind.wide_layers
        config["query_pre_attn_scalar"] = share if wide else width
    _read_windows(file, config, kind)
    rope = _rope(file, config, turning)
    if kind.partial_rotary:
        # What configs say is a share, of which transformers takes the whole part.
        share = turning / width
        exact = int(width * share) == turning
        rope["partial_rotary_factor"] = share if exact else math.nextafter(share, 1)
    if kind.local_rope:
        # llama.cpp has another default than Gemma 3 itself: a file must say.
        _require_number(file, names.ROPE_BASE)
        local = {"rope_type": "default", "rope_theta": float(file.own(names.LOCAL_ROPE_BASE, 1e4))}
        rope = dict(zip(LAYER_TYPES, (rope, local), strict=True))
    config["rope_parameters"] = rope


def _read_windows(file: GgufFile, config: dict[str, Any], kind: names.Architecture) -> None:
    window = file.own(names.WINDOW)
    if window is not None:
        _require_number(file, names.WINDOW)
        config["sliding_window"] = window or None
    window = config.get("sliding_window")
    if not kind.window_pattern:
        if window is not None:
            # The same computation, in a class that has windows, and no biases.
            biased = config["attention_bias"]
            _require(file, names.WINDOW, window, not biased, "no window, in a model with biases")
            config["model_type"] = kind.windowed or kind.model_type
            config.pop("attention_bias")
        return
    count = config["num_hidden_layers"]
    local = _pattern(file, kind, count) if window else [False] * count
    config["layer_types"] = [LAYER_TYPES[is_local] for is_local in local]


def _pattern(file: GgufFile, kind: names.Architecture, count: int) -> list[bool]:
    """Tell for each layer whether it sees a window only."""
    found = file.own(names.WINDOW_PATTERN, kind.window_pattern)
    if isinstance(found, list):
        fits = len(found) == count and all(entry in (0, 1) for entry in found)
        _require(file, names.WINDOW_PATTERN, found, fits, f"True or False for {count} layers")
        return [bool(entry) for entry in found]
    fits = _is_number(found) and not isinstance(found, bool) and found >= 0
    _require(file, names.WINDOW_PATTERN, found, fits, "a number of layers, or one value for each")
    return [found == 0 or index % found < found - 1 for index in range(count)]


def _rope(file: GgufFile, config: dict[str, Any], width: int) -> dict[str, Any]:
    base = file.own(names.ROPE_BASE, 10_000.0)
    _require(file, names.ROPE_BASE, base, _is_number(base), "one number")
    given = {
        key: file.own(names.ROPE_SCALING + key)
        for key in names.ROPE_FIELDS
        if file.own(names.ROPE_SCALING + key) is not None
    }
    # As in llama.cpp, a factor alone means this one.
    kind = file.own(names.ROPE_SCALING + "type", "linear" if "factor" in given else "none")
    factors = file.rope_factors()
    if names.FREQUENCY_FACTORS in factors:
        _require(file, "rope.scaling.type", kind, kind == "none", "'none', beside factors")
        return _llama3(file, factors[names.FREQUENCY_FACTORS], float(base), width)
    if factors:
        accepted = kind in ("none", "longrope")
        _require(file, "rope.scaling.type", kind, accepted, "'longrope', beside such factors")
        return _longrope(file, config, factors, float(base))
    one_of = ", ".join(map(repr, names.SCALINGS))
    _require(file, "rope.scaling.type", kind, kind in names.SCALINGS, one_of)
    read = {
        name: given[key]
        for key, name in names.ROPE_FIELDS.items()
        if key in names.SCALINGS[kind] and key in given
    }
    if kind == "none":
        return {"rope_type": "default", "rope_theta": float(base)}
    return {"rope_type": kind, "rope_theta": float(base), **read}


def _longrope(
    file: GgufFile, config: dict[str, Any], factors: dict[str, np.ndarray], base: float
) -> dict[str, Any]:
    """Give the scaling with one factor for each pair of a head's entries."""
    for name in names.LONGROPE_FACTORS:
        _require(file, name, sorted(factors), name in factors, "a file with both sets of factors")
    before = config.get(names.FIELD_BEFORE)
    _require(file, names.CONTEXT_BEFORE, before, _is_number(before), "one number, beside factors")
    rope = {names.LONGROPE_FACTORS[name]: array.tolist() for name, array in factors.items()}
    rope |= {"rope_type": "longrope", "rope_theta": base, names.FIELD_BEFORE: before}
    amplitude = file.own(names.ROPE_AMPLITUDE)
    if amplitude is not None:
        positive = _is_number(amplitude) and amplitude > 0
        _require(file, names.ROPE_AMPLITUDE, amplitude, positive, "a number above 0")
        rope["attention_factor"] = amplitude
    return rope


def _llama3(file: GgufFile, found: np.ndarray, base: float, width: int) -> dict[str, Any]:
    """Recognise the parameters from which the converter computed the file's factors."""
    plain = fixed_frequencies(Rope("default", base, width))
    for factor in names.LLAMA3_FACTORS:
        scaled = fixed_frequencies(
            Rope("llama3", base, width, 8192, factor, low_factor=1.0, high_factor=4.0)
        )
        if found.shape == plain.shape and np.allclose(found, plain / scaled, rtol=1e-4):
            return {**names.LLAMA3, "rope_theta": base, "factor": factor}
    raise ModelError(
        f"{file.directory}: the factors in {names.FREQUENCY_FACTORS} are not those of the "
        f"'llama3' scaling by {' or '.join(f'{f:g}' for f in names.LLAMA3_FACTORS)}; load the "
        "model from safetensors"
    )


def _refuse_others(file: GgufFile, kind: names.Architecture) -> None:
    for key, value in file.own_fields().items():
        if key not in kind.fields and key not in kind.keys:
            unused = key in names.UNUSED and value == names.UNUSED[key]
            _require(file, key, value, unused, "a file without this field")


def _require_number(file: GgufFile, key: str) -> None:
    value = file.own(key)
    _require(file, key, value, _is_number(value), "one number")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and abs(value) < 2**31  # no NaN either


def _require(file: GgufFile, key: str, value: Any, accepted: bool, supported: str) -> None:
    if not accepted:
        raise ModelError(
            f"{file.directory}: field {file.architecture}.{shorten(key)} is "
            f"{shorten(repr(value))}; "
            f"supported: {supported}"
        )

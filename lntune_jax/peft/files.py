"""The two files of a PEFT adapter: reading and writing them, and the keys inside.

The keys are those of PEFT's `get_peft_model_state_dict` (src/peft/utils/save_and_load.py, 0.21):
`base_model.model.<module>.ln_tuning_layers.<leaf>` for a module that LN tuning copied,
`base_model.model.<module>.<leaf>` for a saved one. Weights are read from safetensors alone: a
pickle can run any code.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Container, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..config import CONFIG_FILE, WEIGHTS_FILE, LNTuningConfig
from ..errors import AdapterError, ConfigError
from ..messages import list_names
from ..storage.directories import UNWRITABLE, write_directory
from ..storage.sealed import METADATA_FILE

OURS, PEFT = "lntune_jax", "PEFT"
_PICKLE = "adapter_model.bin"
_PREFIX, _COPY, _BASE = "base_model.model.", ".ln_tuning_layers.", ".base_layer."
# In the state_dict of a model around which PEFT has put its wrappers; not in its files.
_WRAPPERS = (".modules_to_save.", ".original_module.")
# How the tensors of other methods are called (src/peft/tuners, 0.21).
_METHODS = {"lora_": "LORA", "ia3_": "IA3", "hada_": "LOHA", "lokr_": "LOKR", "oft_": "OFT"} | {
    "boft_": "BOFT",
    "vera_lambda_": "VERA",
    "fourierft_": "FOURIERFT",
    "adaption_": "ADAPTION_PROMPT",
    "prompt_embeddings": "PROMPT_TUNING",
}
_FLOATING = ("F64", "F32", "F16", "BF16")


class Key(NamedTuple):
    """What a key of the file says.

    Attributes:
        parameter: the parameter's name in transformers, or None for a key of another form.
        copied: the module that LN tuning copied, or None where the parameter is a saved module's.
        is_base: whether it is the base's own value, which PEFT saves beside some copies.
    """

    parameter: str | None
    copied: str | None = None
    is_base: bool = False


def write_key(parameter: str, *, is_norm: bool) -> str:
    """The key of a parameter.

    Example:
        >>> write_key("model.norm.weight", is_norm=True)
        'base_model.model.model.norm.ln_tuning_layers.weight'
    """
    module, _, leaf = parameter.rpartition(".")
    return f"{_PREFIX}{module}{_COPY}{leaf}" if is_norm else _PREFIX + parameter


def read_key(key: str, known: Container[str] = ()) -> Key:
    """What a key says; `known` are the parameters of the model, where there is one.

    Example:
        >>> read_key("base_model.model.model.norm.ln_tuning_layers.weight")
        Key(parameter='model.norm.weight', copied='model.norm', is_base=False)
    """
    name = key.removeprefix(_PREFIX)
    if name == key:
        return Key(None)
    if name in known:  # whatever its modules are called
        return Key(name)
    # The last one, since a module of the model may have such a name too.
    module, copy, leaf = name.rpartition(_COPY)
    if copy:
        # PEFT writes its adapter's name into the keys of copied containers.
        within = f"{module}.{leaf.partition('.')[2]}"
        return Key(within if within in known else f"{module}.{leaf}", module)
    module, base, leaf = name.rpartition(_BASE)
    if base:
        return Key(f"{module}.{leaf}", module, is_base=True)
    return Key(None if any(wrapper in name for wrapper in _WRAPPERS) else name)


def find_method(keys: Iterable[str]) -> str | None:
    """The other method of PEFT to which keys belong, or None.

    Example:
        >>> find_method(["base_model.model.layers.0.q_proj.lora_A.weight"])
        'LORA'
    """
    segments = {segment for key in keys for segment in key.split(".")}
    found = (m for start, m in _METHODS.items() if any(s.startswith(start) for s in segments))
    return next(found, None)


def find_kind(directory: Path) -> str:
    """Which of the two formats an adapter directory has, told by its files: `OURS` or `PEFT`.

    Raises:
        AdapterError: it has neither, or both.
    """
    is_ours, is_peft = ((directory / name).is_file() for name in (METADATA_FILE, WEIGHTS_FILE))
    if is_ours and is_peft:
        raise AdapterError(
            f"{directory} holds {METADATA_FILE} and {WEIGHTS_FILE}, two adapters: move one of them "
            "into a directory of its own"
        )
    if not (is_ours or is_peft):
        both = f"{METADATA_FILE} (save_adapter) or {WEIGHTS_FILE} (PEFT)"
        raise AdapterError(_explain_absence(directory, both))
    return OURS if is_ours else PEFT


def read_header(directory: Path) -> tuple[dict[str, tuple[int, ...]], LNTuningConfig]:
    """The shapes of a PEFT adapter's tensors by their keys, and its config; no values yet.

    Raises:
        AdapterError: a file is absent, damaged, a pickle, or of another kind of adapter.
    """
    weights = directory / WEIGHTS_FILE
    if not weights.is_file():
        raise AdapterError(_explain_absence(directory, f"{WEIGHTS_FILE} (PEFT)"))
    if not (directory / CONFIG_FILE).is_file():
        raise AdapterError(f"{directory} has no {CONFIG_FILE}: copy it from where the weights are")
    try:
        config = LNTuningConfig.from_pretrained(directory)
    except ConfigError as error:
        raise AdapterError(
            f"{directory / CONFIG_FILE} is no config of an LN tuning adapter, and other adapters "
            f"of PEFT cannot be read here: {error}"
        ) from error
    with _open(weights) as handle:
        kinds = {key: handle.get_slice(key).get_dtype() for key in handle.keys()}  # noqa: SIM118
        wrong = [f"{key!r} is {kind}" for key, kind in kinds.items() if kind not in _FLOATING]
        if wrong:
            raise AdapterError(
                f"{weights} holds tensors of a type that an adapter cannot have: "
                f"{list_names(wrong, str)}; expected {', '.join(_FLOATING)}"
            )
        return {key: tuple(handle.get_slice(key).get_shape()) for key in kinds}, config


def read_tensors(directory: Path, keys: Iterable[str]) -> dict[str, np.ndarray]:
    """The values of some tensors of a PEFT adapter.

    Of a file that says so, such as those of `write_peft_directory`, the checksum is compared.

    Raises:
        AdapterError: the file is damaged, or larger than the memory.
    """
    file = directory / WEIGHTS_FILE
    with _open(file) as handle:
        expected = (handle.metadata() or {}).get(FIELD)
        wanted = list(keys)
        every = wanted if expected is None else list(handle.keys())
        tensors = {key: handle.get_tensor(key) for key in every}
    if expected is not None and hash_tensors(tensors) != expected:
        raise AdapterError(
            f"{file} has a wrong checksum: its weights were changed or damaged after they were "
            "saved. Copy it anew from where it came from"
        )
    return {key: tensors[key] for key in wanted}


def read_peft_directory(directory: Path) -> tuple[dict[str, np.ndarray], LNTuningConfig]:
    """All tensors of a PEFT adapter by their keys, and its config.

    Raises:
        AdapterError: as for `read_header` and `read_tensors`.
    """
    shapes, config = read_header(directory)
    return read_tensors(directory, shapes), config


def write_peft_directory(
    target: Path, tensors: Mapping[str, np.ndarray], config: LNTuningConfig, *, overwrite: bool
) -> None:
    """Writes both files, whole or not at all.

    Raises:
        AdapterError: the target exists, holds other files, or the file system refuses.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    def fill(new: Path) -> None:
        (new / CONFIG_FILE).write_text(config.to_json(), encoding="utf-8")
        # Copies in row order: the format stores the bytes of an array as they lie in memory.
        rows = {key: np.array(value, order="C", copy=True) for key, value in tensors.items()}
        about = {"format": "pt", FIELD: hash_tensors(rows)}
        try:
            save_file(rows, new / WEIGHTS_FILE, metadata=about)
        except SafetensorError as error:  # the file system's errors among them
            raise AdapterError(f"cannot write {target}: {error}. {UNWRITABLE}") from error
        sort_header(new / WEIGHTS_FILE)
        read_tensors(new, ())  # compares the checksum

    own = (CONFIG_FILE, WEIGHTS_FILE)
    write_directory(target, fill, noun="PEFT adapter", list_own=lambda _: own, overwrite=overwrite)


@contextmanager
def _open(file: Path) -> Iterator[Any]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="numpy") as handle:
            yield handle
    # Also for shapes that numpy cannot have, and for those that no memory holds.
    except (SafetensorError, OSError, ValueError, OverflowError, MemoryError) as error:
        if isinstance(error, AdapterError):
            raise
        raise AdapterError(
            f"{file} is damaged or cut short ({str(error)[:200] or type(error).__name__}): copy it "
            "anew from where it came from"
        ) from error


def _explain_absence(directory: Path, wanted: str) -> str:
    if directory.is_file():
        return f"{directory} is a file: pass the directory that holds it"
    if not directory.is_dir():
        return (
            f"there is no adapter directory {directory}: check the path (an adapter on the hub is "
            "read by lnt.hub.from_pretrained)"
        )
    if (directory / _PICKLE).is_file():
        return (
            f"{directory} holds its weights in {_PICKLE}, a pickle, which can run any code when it "
            "is read: load it with PEFT and save it again with safe_serialization=True"
        )
    if (directory / METADATA_FILE).is_file():
        return (
            f"{directory} is an adapter of save_adapter, not of PEFT: read it with "
            "restore_adapter or load_adapter"
        )
    return f"{directory} holds no adapter: expected {wanted}"


FIELD = "lntune_jax_sha256"


def hash_tensors(tensors: Mapping[str, np.ndarray]) -> str:
    """The sha256 over names, types, shapes and bytes, whatever the order.

    Example:
        >>> one, two = {"a": np.ones(1), "b": np.ones(2)}, {"b": np.ones(2), "a": np.ones(1)}
        >>> hash_tensors(one) == hash_tensors(two) != hash_tensors({"a": np.ones(1)})
        True
    """
    digest = hashlib.sha256()
    for key in sorted(tensors):
        value = np.ascontiguousarray(tensors[key])
        digest.update(f"{key!r} {value.dtype.name} {value.shape}\n".encode())
        digest.update(value.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def sort_header(file: Path) -> None:
    """Puts the texts in a header in order: safetensors writes them in another one each time."""
    with file.open("r+b") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        header = json.loads(stream.read(length))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
        if len(text) <= length:
            stream.seek(8)
            stream.write(text.ljust(length))

"""An adapter of either kind, read for the sake of the parameters of transformers that it holds."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from lntune_jax.adapters.fingerprint import QUANTIZED
from lntune_jax.adapters.format import read_metadata
from lntune_jax.adapters.store import Adapter, read_target
from lntune_jax.errors import AdapterError
from lntune_jax.messages import list_names
from lntune_jax.names.maps import get_name_map, take
from lntune_jax.peft.export import name_trainable
from lntune_jax.peft.files import OURS, PEFT, WEIGHTS_FILE, find_kind, read_key, read_peft_directory
from lntune_jax.selection.roles import NORM_ROLE
from lntune_jax.storage.directories import resolve_path
from lntune_jax.storage.sealed import METADATA_FILE

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lntune_jax.config import LNTuningConfig
    from lntune_jax.names.maps import NameMap


_RUN_ADAPTER = "adapter"


class Found(NamedTuple):
    """Where an adapter is, and of which kind.

    Attributes:
        directory: the adapter's own directory.
        kind: `OURS` or `PEFT`.
        task: what it says of its task, or None.
    """

    directory: Path
    kind: str
    task: Mapping[str, Any] | None

    @property
    def labels(self) -> tuple[str, ...] | None:
        """The names of the classes, if it says them."""
        labels = (self.task or {}).get("labels")
        return tuple(map(str, labels)) if isinstance(labels, list) else None

    @property
    def pooling(self) -> str | None:
        """How its classifier pools ("default" or "mean"), if it says so."""
        pooling = (self.task or {}).get("pooling")
        return None if pooling is None else str(pooling)


class Tuned(NamedTuple):
    """What an adapter holds, in the names of transformers.

    Attributes:
        arrays: parameters by name, in PyTorch's layout.
        norms: the names of those that belong to norms.
        config: the adapter's config.
        names: other names that a parameter may have, for some of them.
        fingerprint: of the base, or None where the file has none.
    """

    arrays: dict[str, np.ndarray]
    norms: frozenset[str]
    config: LNTuningConfig
    names: dict[str, tuple[str, ...]]
    fingerprint: Mapping[str, Any] | None


def find_adapter(path: str | os.PathLike[str]) -> Found:
    """Recognise an adapter by its files; a run of `lntune-jax train` stands for its adapter.

    Raises:
        AdapterError: there is none, it is damaged, or the directory holds one of each kind.
    """
    directory = resolve_path(path, error=AdapterError)
    if not _holds_adapter(directory) and _holds_adapter(directory / _RUN_ADAPTER):
        directory = directory / _RUN_ADAPTER
    kind = find_kind(directory)
    return Found(directory, kind, read_metadata(directory).task if kind == OURS else None)


def read_adapter(found: Found, name_map: str | NameMap | None = None) -> Tuned:
    """Read an adapter, verifying all that can be verified without its base.

    Raises:
        AdapterError: the adapter is damaged, or a leaf has no name in transformers.
    """
    if found.kind == PEFT:
        if name_map is not None:
            raise AdapterError(
                f"{found.directory} is PEFT's and has the names of transformers already: leave "
                "the name map out"
            )
        return _read_peft(found.directory)
    directory, adapter, metadata = read_target(found.directory)
    arrays, norms = _name_leaves(directory, adapter, get_name_map(name_map))
    return Tuned(arrays, norms, adapter.config, {}, metadata.base)


def read_norms(directory: Path) -> list[str] | None:
    """The modules that the caller of `save_adapter` named as norms, or None."""
    return read_metadata(directory).norms


def read_quantization(found: Found) -> str | None:
    """What the kernels of the base were kept as when the adapter was trained; None for in full.

    PEFT's adapters do not say.
    """
    return None if found.kind == PEFT else read_metadata(found.directory).base.get(QUANTIZED)


def _holds_adapter(directory: Path) -> bool:
    return any((directory / name).is_file() for name in (METADATA_FILE, WEIGHTS_FILE))


def _name_leaves(
    directory: Path, adapter: Adapter, name_map: NameMap | None
) -> tuple[dict[str, np.ndarray], frozenset[str]]:
    trainable = adapter.trainable
    tree = name_trainable(trainable, adapter.config, name_map)
    index = tree.names
    nameless = [name for name in trainable if name not in index.places]
    if nameless:
        reasons = [index.unclear.get(name, repr(name)) for name in nameless]
        raise AdapterError(
            f"leaves of {directory} have no name in transformers: {list_names(reasons, str)}. Pass "
            "the name map of the library that made the tree"
        )
    arrays = {
        name: np.asarray(take(place, trainable[place.leaf]))
        for name, place in index.parameters.items()
    }
    tuned = {name for name, role in tree.roles.items() if role == NORM_ROLE}
    names = [name for name, place in index.parameters.items() if place.leaf in tuned]
    stacked = [name for name in names if arrays[name].ndim != 1]
    if stacked:
        raise AdapterError(
            f"norms of {directory} are stacks of layers ({list_names(stacked)}), which "
            "checkpoints keep one by one: pass a name map that says along which axis they lie"
        )
    return arrays, frozenset(names)


def _read_peft(directory: Path) -> Tuned:
    """The file's own view; what fits and what not is for `load_peft` to say, with the base."""
    tensors, config = read_peft_directory(directory)
    arrays, norms, names = {}, set(), {}
    strange = [key for key in tensors if read_key(key).parameter is None]
    if strange:
        raise AdapterError(
            f"{directory / WEIGHTS_FILE} holds keys of another form than those of LN tuning: "
            f"{list_names(strange)}; expected 'base_model.model.' before a module path"
        )
    for key, tensor in tensors.items():
        read = read_key(key)
        if read.parameter is None or read.is_base:
            continue
        arrays[read.parameter] = tensor
        if read.copied is not None:
            norms.add(read.parameter)
            # PEFT writes its adapter's name into the keys of copied containers.
            rest = read.parameter.removeprefix(read.copied + ".").partition(".")[2]
            if rest:
                names[read.parameter] = (read.parameter, f"{read.copied}.{rest}")
    return Tuned(arrays, frozenset(norms), config, names, None)

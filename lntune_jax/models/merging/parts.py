"""A base and an adapter of either kind, read and compared: each of its parameters has a place."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np

from lntune_jax.adapters.fingerprint import QUANTIZED, explain_values, list_sampled
from lntune_jax.adapters.format import read_metadata
from lntune_jax.adapters.store import read_target
from lntune_jax.errors import AdapterError, ModelError, TreeError
from lntune_jax.messages import list_names
from lntune_jax.names.maps import get_name_map, take
from lntune_jax.peft.export import name_trainable
from lntune_jax.peft.files import OURS, PEFT, WEIGHTS_FILE, find_kind, read_header, read_key
from lntune_jax.peft.load import load_peft
from lntune_jax.peft.tree import find_place
from lntune_jax.selection.roles import NORM_ROLE
from lntune_jax.storage.directories import resolve_path
from lntune_jax.storage.sealed import METADATA_FILE

from ..loading.safetensors import TYPES, Tensor, Weights, map_tensor, read_weights
from ..loading.sources import read_fields
from ..loading.weights import is_buffer
from .heads import is_head, is_output
from .names import Names, match_names

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

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
        """How its classifier pools, one of `POOLINGS`, if it says so."""
        pooling = (self.task or {}).get("pooling")
        if pooling == "default":  # as it was written when that alone was the default
            return "own"
        return None if pooling is None else str(pooling)

    @property
    def own_reading(self) -> str | None:
        """What its classifier reads where no classifier of transformers reads it."""
        return {"mean": "the mean over tokens", "cls": "the first token's state"}.get(
            self.pooling or ""
        )


class Tuned(NamedTuple):
    """What an adapter holds: parameters by the names of transformers, and which are norms'.

    The fingerprint is that of the base, or None where the file has none.
    """

    arrays: dict[str, np.ndarray]
    norms: frozenset[str]
    config: LNTuningConfig
    fingerprint: Mapping[str, Any] | None = None


class Parts(NamedTuple):
    """What there is to merge.

    Attributes:
        checkpoint: the base's tensors.
        fields: its config.json.
        found: the adapter's place and kind.
        tuned: its parameters.
        names: the base's keys by the names that the adapter has.
        fresh: the parameters that the base lacks.
        compared: how many of the base's tensors were compared with those of the training.
    """

    checkpoint: Weights
    fields: dict[str, Any]
    found: Found
    tuned: Tuned
    names: Names
    fresh: tuple[str, ...]
    compared: int


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


def read_norms(directory: Path) -> list[str] | None:
    """The modules that the caller of `save_adapter` named as norms, or None."""
    return read_metadata(directory).norms


def read_quantization(found: Found) -> str | None:
    """What the kernels of the base were kept as when the adapter was trained; None for in full.

    PEFT's adapters do not say.
    """
    return None if found.kind == PEFT else read_metadata(found.directory).base.get(QUANTIZED)


def read_parts(directory: Path, adapter: Path, name_map: str | NameMap | None = None) -> Parts:
    """Read a base's headers and an adapter, and find the place of every parameter.

    Raises:
        LNTuningError: one of them cannot be read, or they do not fit.
    """
    fields = read_fields(directory)
    if fields.get("quantization_config") is not None:
        raise ModelError(
            f"{directory}: config field 'quantization_config' is set; supported: weights that are "
            "not quantised. Merge into the original checkpoint, and quantise the result"
        )
    checkpoint, found = read_weights(directory), find_adapter(adapter)
    if not checkpoint.tensors:
        raise ModelError(f"{directory}: its weight files hold no tensors; fetch it again")
    model_type = str(fields.get("model_type"))
    if found.kind == PEFT:
        if name_map is not None:
            raise AdapterError(
                f"{found.directory} is PEFT's and has the names of transformers already: leave "
                "the name map out"
            )
        wanted, saved = _list_peft(found.directory)
        names = match_names(checkpoint, found.directory, wanted, model_type)
        tuned = _read_peft(found.directory, wanted, saved, names, checkpoint)
    else:
        tuned = _read_own(found.directory, get_name_map(name_map))
        wanted = {name: (name,) for name in tuned.arrays if name in tuned.norms}
        names = match_names(checkpoint, found.directory, wanted, model_type)
    _check_shapes(found, tuned, names, checkpoint)
    fresh = tuple(name for name in tuned.arrays if name not in names.keys)
    if fresh and names.dropped:
        raise AdapterError(
            f"the adapter {found.directory} holds {list_names(fresh)}, which {directory} lacks"
        )
    compared = _compare_base(found, tuned, names, checkpoint)
    return Parts(checkpoint, fields, found, tuned, names, fresh, compared)


def map_parameters(parts: Parts) -> dict[str, np.ndarray]:
    """The parameters of the model that was tuned, as a flat dict in the names of transformers.

    The base's stay in their files until they are read; what it lacks has the adapter's values.
    """
    # A new head takes the place of another one.
    others = () if parts.fresh else parts.names.keys
    tensors = _list_tensors(parts.tuned.arrays, parts.names, parts.checkpoint, others)
    mapped = {name: map_tensor(t) for name, t in tensors.items() if not is_buffer(name)}
    return mapped | {name: parts.tuned.arrays[name] for name in parts.fresh}


def _list_tensors(
    held: Collection[str], names: Names, checkpoint: Weights, others: Collection[str]
) -> dict[str, Tensor]:
    """The base's floating-point tensors that belong to the model that was tuned.

    Of heads of which the adapter holds nothing, these are among `others`.
    """
    roots = {name.split(".")[0] for name in held}
    return {
        name: checkpoint.tensors[key]
        for name, key in names.keys.items()
        if checkpoint.tensors[key].kind in TYPES
        and key.startswith(names.dropped)
        and (name in others or not is_head(name) or name.split(".")[0] in roots)
    }


def _holds_adapter(directory: Path) -> bool:
    return any((directory / name).is_file() for name in (METADATA_FILE, WEIGHTS_FILE))


def _read_own(directory: Path, name_map: NameMap | None) -> Tuned:
    """An adapter of `save_adapter`, whose leaves may be called and lie otherwise."""
    _, adapter, metadata = read_target(directory)
    trainable = adapter.trainable
    tree = name_trainable(trainable, adapter.config, name_map)
    index = tree.names
    nameless = [name for name in trainable if name not in index.places]
    if nameless:
        raise AdapterError(
            f"leaves of {directory} have no name in transformers: ",
            index.explain(nameless),
            ". Pass the name map of the library that made the tree",
        )
    places = index.parameters
    arrays = {n: np.asarray(take(place, trainable[place.leaf])) for n, place in places.items()}
    norms = [n for n, place in places.items() if tree.roles.get(place.leaf) == NORM_ROLE]
    stacked = [name for name in norms if arrays[name].ndim != 1]
    if stacked:
        raise AdapterError(
            f"norms of {directory} are stacks of layers ({list_names(stacked)}), which "
            "checkpoints keep one by one: pass a name map that says along which axis they lie"
        )
    return Tuned(arrays, frozenset(norms), adapter.config, metadata.base)


def _list_peft(directory: Path) -> tuple[dict[str, list[str]], dict[str, tuple[int, ...]]]:
    """The names that each parameter of a copied norm may have, and the shapes of all others.

    By the file's own view; what fits and what not is for `load_peft` to say, with the base.
    """
    norms, saved = {}, {}
    for key, shape in read_header(directory)[0].items():
        read = read_key(key)
        if read.parameter is None or read.is_base:
            continue
        if read.copied is None:
            saved[read.parameter] = shape
            continue
        # PEFT writes its adapter's name into the keys of copied containers.
        rest = read.parameter.removeprefix(read.copied + ".").partition(".")[2]
        within = [f"{read.copied}.{rest}"] if rest else []
        norms[read.parameter] = [read.parameter, *within]
    return norms, saved


def _read_peft(
    directory: Path,
    norms: dict[str, list[str]],
    saved: dict[str, tuple[int, ...]],
    names: Names,
    checkpoint: Weights,
) -> Tuned:
    """PEFT's parameters as `load_peft` reads them, with all that it refuses."""
    # A head of its own takes the place of the base's. Else the base's output stays where it was,
    # untied from a saved embedding; norms in such a head are none of the tuned model's.
    is_new = any(name not in names.keys for name in saved)
    outputs = [] if is_new else [name for name in names.keys if is_output(name)]
    tensors = _list_tensors([*norms, *saved], names, checkpoint, outputs)
    known: dict[str, Any] = {
        name: jax.ShapeDtypeStruct(shape, np.float32) for name, shape in saved.items()
    }
    for name, tensor in tensors.items():
        known[name] = jax.ShapeDtypeStruct(tensor.shape, TYPES[tensor.kind])
    trainable, config = load_peft(directory, known)
    copied = {name for each in norms.values() for name in each}
    return Tuned(trainable, frozenset(copied & trainable.keys()), config)


def _check_shapes(found: Found, tuned: Tuned, names: Names, checkpoint: Weights) -> None:
    wrong = []
    for name, array in tuned.arrays.items():
        if is_head(name):
            continue  # Where the norms alone are merged, it may have other labels.
        shape = checkpoint.shape(names.keys[name]) if name in names.keys else array.shape
        if shape != array.shape:
            wrong.append(f"{name!r} has shape {array.shape}, in the checkpoint {shape}")
    if wrong:
        raise AdapterError(
            f"the adapter {found.directory} does not fit {checkpoint.directory}: "
            f"{list_names(wrong, str)}. Pass the checkpoint it was trained on"
        )


def _compare_base(found: Found, tuned: Tuned, names: Names, checkpoint: Weights) -> int:
    """Compare the values that the adapter remembers of its base; how many tensors that were."""
    if tuned.fingerprint is None:
        return 0
    every = ((p, _map_leaf(p, names, checkpoint)) for p in list_sampled(tuned.fingerprint))
    values = {path: value for path, value in every if value is not None}
    # The list of all leaves is the tree's, which a checkpoint does not have: the values count.
    difference = explain_values(tuned.fingerprint, values)
    if difference:
        raise AdapterError(
            f"the adapter {found.directory} was trained on another base than "
            f"{checkpoint.directory}: {difference}. Pass the base it was trained on"
        )
    return len(values)


def _map_leaf(path: str, names: Names, checkpoint: Weights) -> np.ndarray | None:
    """A leaf of the tree that was tuned, as it lies in the checkpoint, if its name says where."""
    try:
        key = names.keys.get(find_place(path, (1, 1), is_norm=False).parameter)
        if key is None or checkpoint.tensors[key].kind not in TYPES:
            return None
        value = map_tensor(checkpoint.tensors[key])
        axes = find_place(path, value.shape, is_norm=False).axes
    except TreeError:  # a layout that only the library which made the tree knows
        return None
    return value if axes is None else value.transpose(np.argsort(axes))

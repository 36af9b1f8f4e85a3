"""How a leaf comes from a checkpoint onto its devices, part by part.

Each process reads the parts of its own devices, each part once, and holds one of them at a time:
of a kernel that a mesh divides, and of a stack of layers too, no process ever has the whole.
"""

from __future__ import annotations

import gc
import math
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from lntune_jax.errors import ModelError, ShardingError
from lntune_jax.sharding import fit_spec

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from ..families.names import Layout, Path, Stacks
    from .gguf import GgufFile
    from .safetensors import Weights

    Index = tuple[slice, ...]


# Rows of a file that are turned at a time: they fill whole lines of the processor's caches.
_ROWS = 16
# Bytes of a part which is not to stay beside the next one: to drop it costs a third of a
# millisecond.
_LARGE = 2**20


@dataclass(frozen=True)
class Source:
    """A checkpoint, from which parts of leaves are read.

    Attributes:
        weights: the checkpoint.
        keys: the key of each leaf; of a stacked one, those of its layers.
        layout: the architecture's names.
        stacks: the leaves that hold all layers, and the paths of the layers' parts in `keys`.
        tied: the keys of output weights and of the word embeddings that they must equal.
    """

    weights: Weights | GgufFile
    keys: dict[Path, str]
    layout: Layout
    stacks: Stacks
    tied: tuple[str, str] | None = None

    def read(self, path: Path, dtype: Any, index: Index) -> np.ndarray:
        """Give the part of a leaf at an index, whose slices have a start and a stop.

        Raises:
            ModelError: it is part of tied weights that differ, or holds no floating point.
        """
        part = np.empty(tuple(each.stop - each.start for each in index), dtype)
        if path not in self.stacks:
            _copy(self._view(path, index), part)
            return part
        for place, layer in enumerate(self.stacks[path][index[0]]):
            _copy(self._view(layer, index[1:]), part[place, ...])
        return part

    def check_tied_shapes(self) -> None:
        """Compare the shapes of tied weights; their numbers are compared as they are read.

        Raises:
            ModelError: they differ.
        """
        if self.tied is not None and len(set(map(self.weights.shape, self.tied))) > 1:
            raise self._not_tied()

    def _view(self, path: Path, index: Index) -> np.ndarray:
        key = self.keys[path]
        turned = self.layout.transposed(path)
        array = self.weights.read(key, index[::-1] if turned else index)
        other = self.tied[0] if self.tied is not None and key == self.tied[1] else None
        if other is not None and not np.array_equal(self.weights.read(other, index), array):
            raise self._not_tied()
        return array.T if turned else array

    def _not_tied(self) -> ModelError:
        output, embeddings = self.tied or ("", "")
        return ModelError(
            f"{self.weights.directory}: {output} and {embeddings} differ, but config field "
            "'tie_word_embeddings' is True; set it to False in config.json if the file is right"
        )


def place(
    read: Callable[[Index], np.ndarray], shape: tuple[int, ...], dtype: Any, sharding: Any
) -> jax.Array:
    """Make an array of parts that are read one after the other.

    Args:
        read: gives the part at an index; its slices have a start and a stop.
        shape: of the whole.
        dtype: of the whole and of each part.
        sharding: where the parts lie; `None` for all on the default device.
    """
    if sharding is None:
        part = read(tuple(slice(0, size) for size in shape))
        array, size = jax.block_until_ready(jnp.asarray(part)), part.nbytes
        del part
        _let_go(size)
        return array
    places: dict[tuple[tuple[int, int], ...], list[Any]] = {}
    for device, index in sharding.addressable_devices_indices_map(shape).items():
        ends = (part.indices(size)[:2] for part, size in zip(index, shape, strict=True))
        places.setdefault(tuple(ends), []).append(device)
    arrays: list[jax.Array] = []
    for ends, devices in places.items():
        part = read(tuple(slice(*pair) for pair in ends))
        # Without waiting, reading runs ahead and the host holds every part still on its way.
        arrays += jax.block_until_ready([jax.device_put(part, device) for device in devices])
        size = part.nbytes
        del part
        _let_go(size)
    return jax.make_array_from_single_device_arrays(shape, sharding, arrays, dtype=dtype)


def _let_go(size: int) -> None:
    """Make JAX drop what it has copied: otherwise it does so when the next part is read already."""
    if size > _LARGE:
        gc.collect(0)


def _copy(source: np.ndarray, target: np.ndarray) -> None:
    """Copy an array into another one of its shape, which may have another dtype.

    A matrix whose axes lie the other way round is turned strip by strip: at once, each number
    would cost the processor a line of its caches.
    """
    if source.ndim != 2 or source.strides[0] >= source.strides[1]:
        target[...] = source
        return
    for start in range(0, source.shape[1], _ROWS):
        strip = np.ascontiguousarray(source[:, start : start + _ROWS].T, target.dtype)
        target[:, start : start + _ROWS] = strip.T


def along_rows(sharding: Any, shape: tuple[int, ...], axis: int) -> Any:
    """Divide as many times, but only the axis that is the rows of a file, if that is possible.

    A part of a file's rows is one run of bytes. A part of its columns is a piece of every row, and
    disks hand over whole pages: each process would read far more than its share.

    Args:
        sharding: how the leaf is to lie in the end.
        shape: the leaf's.
        axis: of the leaf, along which the file has its rows.
    """
    entries = [(entry,) if isinstance(entry, str) else entry or () for entry in sharding.spec]
    names = tuple(name for entry in entries for name in entry)
    parts = math.prod(sharding.mesh.shape[name] for name in names)
    if not names or shape[axis] % parts:
        return sharding
    return NamedSharding(sharding.mesh, PartitionSpec(*(None,) * axis, names))


def move(array: jax.Array, sharding: Any) -> jax.Array:
    """Bring the parts of an array, on a mesh of automatic axes, to where they are to lie."""
    if sharding is None:
        return array
    moved = jax.device_put(array, with_auto_axes(sharding))
    shards = [shard.data for shard in moved.addressable_shards]
    dtype = array.dtype
    return jax.make_array_from_single_device_arrays(array.shape, sharding, shards, dtype=dtype)


def move_part(part: jax.Array, sharding: Any) -> jax.Array:
    """Bring a part of a quantised kernel to its kernel; an axis that does not divide is whole."""
    if sharding is None:
        return part
    spec, _ = fit_spec("", part.shape, sharding.spec, sharding.mesh.shape)
    return move(part, NamedSharding(sharding.mesh, spec))


def with_auto_axes(sharding: Any) -> Any:
    """The same places, on a mesh whose axes leave programs to the compiler."""
    if sharding is None:
        return None
    mesh: Any = sharding.mesh
    kinds = (AxisType.Auto,) * len(mesh.axis_names)
    return NamedSharding(Mesh(mesh.devices, mesh.axis_names, axis_types=kinds), sharding.spec)


def own_mesh(array: jax.Array) -> AbstractContextManager[Any]:
    """An array's own mesh as the current one, whatever mesh the user has set."""
    mesh: Any = getattr(array.sharding, "mesh", None)
    return nullcontext() if mesh is None else jax.set_mesh(mesh)


def spans_all_processes(mesh: Any) -> bool:
    """Whether every process of a run of several has devices in the mesh.

    Raises:
        ShardingError: it is no mesh of devices.
    """
    if mesh is None:
        return False
    if not isinstance(mesh, Mesh):
        raise ShardingError(f"mesh must be a jax.sharding.Mesh, not {mesh!r}")
    count = jax.process_count()
    return count > 1 and len({device.process_index for device in mesh.devices.flat}) == count

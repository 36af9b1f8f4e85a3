"""From a PEFT adapter to the leaves of a tree, strictly.

Every key of the file must have its place, every leaf that its config selects must be in the file,
and the shapes must agree; otherwise nothing is read and the error lists the keys.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from ..adapters.checks import fill_placeholders
from ..adapters.place import compare_leaf, place_leaves
from ..adapters.reading import Adapter
from ..errors import AdapterError
from ..names.maps import NameMap, assemble, get_name_map
from ..paths import flatten, get_shape, join
from ..selection.norms import match_norms
from ..selection.roles import RoledTree
from ..storage.directories import resolve_path
from .contents import check_contents, check_finite
from .files import read_header, read_tensors
from .selected import make_own_config
from .tree import Index, index_tree


def import_peft(
    path: str | os.PathLike[str],
    params: Any,
    *,
    norms: Iterable[str] | None = None,
    name_map: str | NameMap | None = None,
    cast: bool = True,
) -> Any:
    """Puts an adapter that PEFT wrote into the base.

    Args:
        path: the directory with `adapter_config.json` and `adapter_model.safetensors`.
        params: the base: any pytree of arrays, numpy arrays or `jax.ShapeDtypeStruct`.
        norms: module paths that are norms, where the caller knows them (`norm_modules`); None
            finds them by type, name and shape.
        name_map: the name of a table (`lntune_jax.peft.NAME_MAPS`) or a `NameMap`, for trees
            whose module paths are not those of transformers.
        cast: whether the leaves take the dtype of the base; False keeps the file's, widened to
            float32 where it is narrower.

    Returns:
        A tree like `params`, its frozen leaves the same objects; a leaf of the adapter takes the
        sharding of the leaf it replaces.

    Raises:
        AdapterError: a file is absent, damaged, a pickle, or of another kind of adapter; keys
            belong to nothing or are missing; a shape or a value is wrong; an embedding crosses
            that the tree seems to share with its output.
        ConfigError: `name_map` is not known, or a pattern of the file is no valid expression.
        SelectionError: the file names an unknown `model_type`.
        TreeError: two leaves are one parameter, or have one path.

    Warns:
        CopiedModuleWarning: the adapter copied modules that are no norms.

    Example:
        >>> import tempfile
        >>> import jax.numpy as jnp
        >>> import lntune_jax as lnt
        >>> params = {"model": {"norm": {"scale": jnp.ones(2)}}}
        >>> config = lnt.LNTuningConfig(target_modules=["norm"])
        >>> tuned = {"model.norm.scale": jnp.array([2.0, 3.0])}
        >>> path = lnt.export_peft(tempfile.mkdtemp() + "/peft", tuned, config)
        >>> lnt.import_peft(path, params)["model"]["norm"]["scale"].tolist()
        [2.0, 3.0]
    """
    read = _read(path, params, norms, name_map)
    return place_leaves(read.selection, read.adapter.trainable, cast)


def load_peft(
    path: str | os.PathLike[str],
    params: Any,
    *,
    norms: Iterable[str] | None = None,
    name_map: str | NameMap | None = None,
) -> Adapter:
    """Reads an adapter that PEFT wrote, as leaves of `params` and a config that selects them.

    Args:
        path: the directory with `adapter_config.json` and `adapter_model.safetensors`.
        params: the base: any pytree of arrays, numpy arrays or `jax.ShapeDtypeStruct`.
        norms: module paths that are norms, where the caller knows them (`norm_modules`); None
            finds them by type, name and shape.
        name_map: the name of a table (`lntune_jax.peft.NAME_MAPS`) or a `NameMap`, for trees
            whose module paths are not those of transformers.

    Returns:
        An `Adapter(trainable, config)`: numpy arrays by leaf path, float32 where the file is
        narrower, as `partition_params(params, config)` would give them. The config is the file's
        wherever that selects the same leaves here; else its patterns are written anew. To train
        on, clear PEFT's mark: `config.replace(inference_mode=False)`.

    Raises:
        AdapterError, ConfigError, SelectionError, TreeError: as for `import_peft`.

    Warns:
        CopiedModuleWarning: the adapter copied modules that are no norms.

    Example:
        >>> import tempfile
        >>> import jax.numpy as jnp
        >>> import lntune_jax as lnt
        >>> params = {"model": {"norm": {"scale": jnp.ones(2)}}}
        >>> config = lnt.LNTuningConfig(target_modules=["norm"])
        >>> tuned = {"model.norm.scale": jnp.array([2.0, 3.0])}
        >>> path = lnt.export_peft(tempfile.mkdtemp() + "/peft", tuned, config)
        >>> lnt.load_peft(path, params).trainable
        {'model.norm.scale': array([2., 3.], dtype=float32)}
    """
    return _read(path, params, norms, name_map).adapter


class _Read(NamedTuple):
    adapter: Adapter
    selection: RoledTree  # the leaves of params and their structure


def _read(
    path: str | os.PathLike[str],
    params: Any,
    norms: Iterable[str] | None,
    name_map: str | NameMap | None,
) -> _Read:
    directory = resolve_path(path, error=AdapterError)
    known = get_name_map(name_map)
    norms = norms if norms is None or isinstance(norms, str) else list(norms)
    shapes, config = read_header(directory)
    if fill_placeholders(params)[1]:
        raise AdapterError(
            "params is the frozen half of partition_params: pass the whole tree, or "
            "merge the halves first"
        )
    leaves, treedef = flatten(params)
    given = None if norms is None else match_norms(norms, leaves).paths
    index = index_tree(params, leaves, known, norms=given)
    values = {join(leaf.path): leaf.value for leaf in leaves}
    contents = check_contents(directory, shapes, config, index, values)
    tensors = read_tensors(directory, contents.keys.values())
    check_finite(directory, tensors)
    arrays = {parameter: tensors[key] for parameter, key in contents.keys.items()}
    names = [
        name
        for name, places in index.places.items()
        if any(place.parameter in arrays for place in places)
    ]
    trainable = {
        name: _assemble(index, name, arrays, values[name], config.param_dtype) for name in names
    }
    wrong = [text for name in names for text in compare_leaf(name, trainable[name], values[name])]
    if wrong:
        raise AdapterError(f"the adapter {directory} does not fit params: {'; '.join(wrong[:5])}")
    made = make_own_config(directory, params, config, norms, index, contents, names)
    return _Read(Adapter(trainable, made), RoledTree(leaves, treedef, []))


def _assemble(
    index: Index, name: str, arrays: Mapping[str, np.ndarray], value: Any, dtype: str | None
) -> np.ndarray:
    places = index.places[name]
    kinds = {arrays[place.parameter].dtype for place in places}
    widest = np.result_type(*kinds, *([dtype] if dtype else []))
    # Wide from the start: an offset shifts the values, and would round them in a narrow dtype.
    return assemble(places, arrays, tuple(get_shape(value) or ()), widest)

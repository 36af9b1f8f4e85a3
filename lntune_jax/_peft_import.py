"""From a PEFT adapter to the leaves of a tree, strictly.

Every key of the file must have its place, every leaf that its config selects must be in the file,
and the shapes must agree; otherwise nothing is read and the error lists the keys.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ._adapter_checks import fill_holes
from ._adapter_place import place_leaves
from ._adapter_reading import Adapter
from ._errors import AdapterError
from ._name_maps import NameMap, assemble, get_name_map
from ._paths import flatten, get_shape, join
from ._peft_contents import Contents, check_contents
from ._peft_files import read_directory
from ._peft_selection import make_own_config
from ._peft_tree import Index, index_tree
from ._roles import Selection


def import_peft(
    path: str | os.PathLike[str],
    params: Any,
    *,
    name_map: str | NameMap | None = None,
    cast: bool = True,
) -> Any:
    """Puts an adapter that PEFT wrote into the base.

    Args:
        path: the directory with `adapter_config.json` and `adapter_model.safetensors`.
        params: the base: any pytree of arrays, numpy arrays or `jax.ShapeDtypeStruct`.
        name_map: the name of a table (`lntune_jax.peft.NAME_MAPS`) or a `NameMap`, for trees
            whose module paths are not those of transformers.
        cast: whether the leaves take the dtype of the base; False keeps the file's, widened to
            float32 where it is narrower.

    Returns:
        A tree like `params`, its frozen leaves the same objects; a leaf of the adapter takes the
        sharding of the leaf it replaces.

    Raises:
        AdapterError: a file is absent, damaged, a pickle, or of another kind of adapter; keys
            belong to nothing or are missing; a shape or a value is wrong.
        ConfigError: `name_map` is not known.

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
    read = _read(path, params, name_map)
    return place_leaves(read.selection, read.adapter.trainable, cast)


def load_peft(
    path: str | os.PathLike[str], params: Any, *, name_map: str | NameMap | None = None
) -> Adapter:
    """Reads an adapter that PEFT wrote, as leaves of `params` and a config that selects them.

    Args:
        path: the directory with `adapter_config.json` and `adapter_model.safetensors`.
        params: the base: any pytree of arrays, numpy arrays or `jax.ShapeDtypeStruct`.
        name_map: the name of a table (`lntune_jax.peft.NAME_MAPS`) or a `NameMap`, for trees
            whose module paths are not those of transformers.

    Returns:
        An `Adapter(trainable, config)`: numpy arrays by leaf path, float32 where the file is
        narrower, as `partition_params(params, config)` would give them. The config is the file's
        wherever that selects the same leaves here; else its patterns are written anew. To train
        on, clear PEFT's mark: `config.replace(inference_mode=False)`.

    Raises:
        AdapterError: as for `import_peft`.
        ConfigError: `name_map` is not known.

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
    return _read(path, params, name_map).adapter


class _Read(NamedTuple):
    adapter: Adapter
    selection: Selection  # the leaves of params and their structure


def _read(path: str | os.PathLike[str], params: Any, name_map: str | NameMap | None) -> _Read:
    directory = Path(path).expanduser().resolve()
    known = get_name_map(name_map)
    tensors, config = read_directory(directory)
    if fill_holes(params)[1]:
        raise AdapterError(
            "params is the frozen half of partition_params, with holes: pass the whole tree, or "
            "merge the halves first"
        )
    leaves, treedef = flatten(params)
    index = index_tree(params, leaves, known)
    values = {join(leaf.path): leaf.value for leaf in leaves}
    contents = check_contents(directory, tensors, config, index, values)
    names = [name for name in index.places if _is_touched(index, name, contents)]
    trainable = {
        name: _assemble(index, name, contents, values[name], config.param_dtype) for name in names
    }
    made = make_own_config(directory, params, config, index, contents, list(trainable))
    return _Read(Adapter(trainable, made), Selection(leaves, treedef, []))


def _is_touched(index: Index, name: str, contents: Contents) -> bool:
    return any(place.parameter in contents.arrays for place in index.places[name])


def _assemble(index: Index, name: str, contents: Contents, value: Any, dtype: str | None) -> Any:
    places = index.places[name]
    kinds = {contents.arrays[place.parameter].dtype for place in places}
    widest = np.result_type(*kinds, *([dtype] if dtype else []))
    # Wide from the start: an offset shifts the values, and would round them in a narrow dtype.
    return assemble(places, contents.arrays, tuple(get_shape(value) or ()), widest)

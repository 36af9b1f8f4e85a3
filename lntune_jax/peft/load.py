"""From a PEFT adapter to the leaves of a tree, strictly.

Every key of the file must have its place, every leaf that its config selects must be in the file,
and the shapes must agree; otherwise nothing is read and the error lists the keys.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from ..adapters.fit import fill_placeholders, place_leaves
from ..adapters.store import Adapter
from ..config import CONFIG_FILE, WEIGHTS_FILE, LNTuningConfig
from ..errors import AdapterError, CopiedModuleWarning
from ..messages import Advice, Argument, Message, explain_other_model, list_names, warn
from ..names.maps import NameMap, Place, assemble, get_name_map
from ..paths import Leaf, flatten, get_shape, join
from ..selection.norms import NORM, match_norms
from ..selection.roles import NORM_ROLE, SAVED_ROLE, RoledTree, assign_roles, match_config, unite
from ..storage.directories import read_settled, resolve_path
from ..storage.leaves import compare_leaf, compare_shapes, list_nonfinite
from ..storage.processes import spans_processes, together
from .config import check_untied, is_embedding, is_in, is_saved_by_peft, make_own_config
from .files import Key, find_method, read_header, read_key, read_tensors
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

    In a run of several processes each must call this.

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
    with together(spans_processes(params)):
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
    target = resolve_path(path, error=AdapterError)
    known = get_name_map(name_map)
    norms = norms if norms is None or isinstance(norms, str) else list(norms)

    def read(directory: Path) -> _Read:
        return _read_directory(directory, params, norms, known)

    return read_settled(lambda: target, read, (CONFIG_FILE, WEIGHTS_FILE))[1]


def _read_directory(
    directory: Path, params: Any, norms: str | list[str] | None, known: NameMap | None
) -> _Read:
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
    broken = list_nonfinite(tensors)
    if broken:
        raise AdapterError(
            f"the adapter {directory} holds values that are not finite: {list_names(broken, str)}. "
            "Its training has diverged, or the file is damaged: pass an earlier one"
        )
    arrays = {parameter: tensors[key] for parameter, key in contents.keys.items()}
    names = [
        name
        for name, places in index.places.items()
        if any(place.parameter in arrays for place in places)
    ]
    trainable = {
        name: _assemble(index, name, arrays, values[name], config.param_dtype) for name in names
    }
    wrong = [
        text
        for name in names
        for text in compare_leaf(name, values[name], trainable[name], "params")
    ]
    if wrong:
        raise AdapterError(f"the adapter {directory} does not fit params: {'; '.join(wrong[:5])}")
    if contents.copies:
        warn(
            f"the adapter {directory} holds copies of modules that are no norms: "
            f"{list_names(contents.copies)}. They are imported whole, as saved modules",
            CopiedModuleWarning,
        )
    own = {
        name: all(place.parameter in contents.norms for place in index.places[name])
        for name in names
    }
    made = make_own_config(params, config, norms, own, keep=not contents.copies)
    if made is None:
        raise AdapterError(
            f"no config selects just the leaves of the adapter {directory} in params: "
            f"{list_names(names)}"
        )
    return _Read(Adapter(trainable, made), RoledTree(leaves, treedef, []))


def _assemble(
    index: Index, name: str, arrays: Mapping[str, np.ndarray], value: Any, dtype: str | None
) -> np.ndarray:
    places = index.places[name]
    kinds = {arrays[place.parameter].dtype for place in places}
    # Of bfloat16 and float16 neither holds the other, and float32 holds both.
    start = dtype or ("float32" if len(kinds) > 1 else next(iter(kinds)))
    widest = functools.reduce(np.promote_types, kinds, np.dtype(start))
    # Wide from the start: an offset shifts the values, and would round them in a narrow dtype.
    return assemble(places, arrays, tuple(get_shape(value) or ()), widest)


class Contents(NamedTuple):
    """The parameters of an adapter, by the names that transformers has for them.

    Attributes:
        keys: the file's keys.
        norms: those that belong to copied norms.
        copies: the modules that were copied, or saved as embeddings, and are no norms.
        saved: the other parameters: of copies, and of saved modules.
    """

    keys: dict[str, str]
    norms: frozenset[str]
    copies: tuple[str, ...]
    saved: frozenset[str]


def check_contents(
    directory: Path,
    shapes: Mapping[str, tuple[int, ...]],
    config: LNTuningConfig,
    index: Index,
    values: Mapping[str, Any],
) -> Contents:
    """Sorts the keys of a file, and refuses what does not fit.

    Args:
        directory: the adapter's, for messages.
        shapes: of the file's tensors, by their keys.
        config: the file's.
        index: the tree's parameters.
        values: the tree's leaves by leaf path.

    Raises:
        AdapterError: lists the keys that belong to nothing, are missing, or are otherwise.
    """
    read = {key: read_key(key, index.parameters) for key in shapes}
    copied = {key.copied for key in read.values() if not key.is_base}
    strange = [
        key
        for key, found in read.items()
        if found.parameter not in index.parameters or (found.is_base and found.copied not in copied)
    ]
    if strange:
        raise AdapterError(_explain_strange(directory, strange, read, index, config))
    keys: dict[str, str] = {}
    wrong: list[str] = []
    for key, found in read.items():
        assert found.parameter is not None
        wrong += _check_shape(key, shapes[key], index.parameters[found.parameter], values)
        if not found.is_base and keys.setdefault(found.parameter, key) != key:
            wrong.append(f"{key!r} is {found.parameter!r}, which another key holds too")
    if wrong:
        raise AdapterError(_explain(directory, wrong))
    owners = {name: read[key].copied for name, key in keys.items()}
    norms = frozenset(name for name in keys if owners[name] and name in index.norms)
    saved = frozenset(keys) - norms
    others = dict.fromkeys(m for name, m in owners.items() if m and name in saved)
    # PEFT saves embeddings beside an adapter by itself (`save_embedding_layers`).
    entries = config.modules_to_save or ()
    unowned = [name for name in keys if is_embedding(name) and not owners[name]]
    own = [name for name in unowned if not is_saved_by_peft(name, entries)]
    others |= dict.fromkeys(name.rpartition(".")[0] for name in own)
    contents = Contents(keys, norms, tuple(others), saved)
    _check_selected(directory, config, index, contents, values, own)
    check_untied(saved, config.task_type, index.parameters)
    return contents


def _check_shape(
    key: str, found: tuple[int, ...], place: Place, values: Mapping[str, Any]
) -> list[str]:
    shape = tuple(get_shape(values[place.leaf]) or ())
    if place.layer_axis is not None:
        shape = shape[: place.layer_axis] + shape[place.layer_axis + 1 :]
    if place.axes is not None:
        shape = tuple(shape[axis] for axis in place.axes)
    return [f"{wrong} (leaf {place.leaf!r})" for wrong in compare_shapes(key, found, shape)]


def _check_selected(
    directory: Path,
    config: LNTuningConfig,
    index: Index,
    contents: Contents,
    values: Mapping[str, Any],
    embeddings: Collection[str],
) -> None:
    """Compares the file with what its config selects, in the names of transformers."""
    leaves = [
        Leaf(tuple(name.split(".")), jax.ShapeDtypeStruct((1,), values[place.leaf].dtype), True)
        for name, place in index.parameters.items()
    ]
    modules = {tuple(name.split("."))[:-1]: NORM for name in index.norms}
    matches = match_config(config, [leaf.path for leaf in leaves])
    roles = dict(zip(index.parameters, assign_roles(leaves, modules, matches), strict=True))
    selected = [name for name, role in roles.items() if role in (NORM_ROLE, SAVED_ROLE)]
    targets = unite(matches.targets)
    wrong = []
    missing = [name for name in selected if name not in contents.keys]
    if missing:
        wrong.append(f"missing keys, which its config selects: {list_names(missing)}")
    stray = [name for name in sorted(contents.norms) if roles[name] != NORM_ROLE]
    own = {name.rpartition(".")[0] for name in embeddings}
    stray += [module for module in contents.copies if module not in targets | own]
    stray += [
        name
        for name in sorted(contents.saved)
        if roles[name] != SAVED_ROLE
        and not is_saved_by_peft(name, config.modules_to_save or ())
        and not any(is_in(name, module) for module in contents.copies)
    ]
    if stray:
        wrong.append(f"unexpected keys, which its config does not select: {list_names(stray)}")
    partial = [
        place.parameter
        for places in index.places.values()
        if any(place.parameter in contents.keys for place in places)
        for place in places
        if place.parameter not in contents.keys
    ]
    if partial:
        wrong.append(
            f"missing keys of layers that are stacked in one leaf of params: {list_names(partial)}"
        )
    if wrong:
        raise AdapterError(_explain(directory, wrong))


def _explain_strange(
    directory: Path,
    strange: list[str],
    keys: Mapping[str, Key],
    index: Index,
    config: LNTuningConfig,
) -> Message:
    unclear = [text for name, text in index.unclear.items() if _holds(keys, name)]
    if unclear:
        return f"the adapter {directory} cannot be read: ", unclear[0]
    if method := find_method(strange):
        return (
            f"{directory} holds an adapter of {method} ({list_names(strange, most=1)}): load it "
            "with PEFT, since only LN tuning can be imported"
        )
    nowhere = f"{len(strange):,} of {len(keys):,} keys belong to nothing: {list_names(strange)}"
    if all(keys[key].parameter is None for key in strange):
        return (
            f"the adapter {directory} does not fit params: {nowhere}. PEFT's save_pretrained does "
            "not write such keys, which look like those of a state_dict: save the adapter with it"
        )
    norms = [name for name in index.parameters if name in index.norms]
    if not norms:
        return (
            f"the adapter {directory} does not fit params, since params holds no norm: pass the "
            "whole tree of the model that it was trained on",
            Advice((", and ", Argument("norms"), " where they are not found")),
        )
    copied = [name for key in keys.values() if key.copied and (name := key.parameter)]
    # Without its head a model has its modules one level higher.
    known, held = ({*names, *(n.partition(".")[2] for n in names)} for names in (norms, copied))
    if copied and known.isdisjoint(held):
        return explain_other_model(directory, config.base_model_name_or_path, copied, norms)
    return (
        f"the adapter {directory} does not fit params: {nowhere}. The norms of params are called "
        f"{list_names(norms[:3])}: pass the model that the adapter was trained on, with the same "
        "head (not tied, where the adapter holds it)",
        Advice(
            (
                ", and a ",
                Argument("name_map"),
                " if its module paths are not those of transformers",
            )
        ),
    )


def _holds(keys: Mapping[str, Key], leaf: str) -> bool:
    module = leaf.rpartition(".")[0]
    return any(read.parameter == f"{module}.weight" for read in keys.values())


def _explain(directory: Path, wrong: list[str]) -> str:
    return (
        f"the adapter {directory} does not fit params: {list_names(wrong, str)}. Pass the model "
        "that it was trained on, or fetch the adapter anew"
    )

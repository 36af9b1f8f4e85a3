"""Whether leaves fit a tree: those to be saved, and saved ones that are put into it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.core import Tracer

from ..arguments import check_flag, check_leaves
from ..config import LNTuningConfig
from ..errors import AdapterError, SelectionError, TreeError
from ..messages import Advice, Argument, Message, explain_other_model, list_names
from ..names.layers import list_parts, view
from ..names.maps import NameMap, get_name_map
from ..partition import Placeholder, is_placeholder
from ..paths import Leaf, flatten, get_shape, join
from ..selection.roles import RoledTree
from ..selection.select import Views, select_views
from ..storage.leaves import (
    cast_leaf,
    check_enabled,
    compare_leaf,
    list_nonfinite,
    place_leaf,
)
from ..storage.processes import meet, spans_processes

_LONGEST_PATH = 4096  # bytes; Orbax's store has a limit too


def fill_placeholders(base: Any) -> tuple[Any, dict[str, Placeholder]]:
    """The whole tree of a base that may be a frozen half, and its placeholders by leaf path.

    A placeholder becomes a `jax.ShapeDtypeStruct`, from which the config selects as from the leaf.

    Example:
        >>> fill_placeholders({"scale": Placeholder("scale", (4,), "float32")})[0]
        {'scale': ShapeDtypeStruct(shape=(4,), dtype=float32)}
    """
    leaves, treedef = jax.tree_util.tree_flatten(base, is_leaf=is_placeholder)
    placeholders = {leaf.path: leaf for leaf in leaves if is_placeholder(leaf)}
    if not placeholders:
        return base, {}
    filled = [jax.ShapeDtypeStruct(x.shape, x.dtype) if is_placeholder(x) else x for x in leaves]
    return treedef.unflatten(filled), placeholders


def check_trainable(
    trainable: Any, expected: Mapping[str, Any], placeholders: Mapping[str, Placeholder]
) -> None:
    """Compares the paths, shapes and kinds of the leaves with those selected in the base.

    Raises:
        AdapterError: lists what is missing, unexpected, or otherwise.
    """
    check_leaves(trainable, AdapterError)
    _refuse_traced("trainable", trainable)
    if placeholders and placeholders.keys() != expected.keys():
        others = sorted(placeholders.keys() ^ expected.keys())
        raise AdapterError(
            f"base is the frozen half of another config: its placeholders and what config selects "
            f"differ at {list_names(others)}. Pass the config (and norms) given to partition_params"
        )
    missing = [name for name in expected if name not in trainable]
    unexpected = [str(name) for name in trainable if name not in expected]
    wrong = [f"missing from trainable: {list_names(missing)}"] if missing else []
    wrong += [f"not selected by the config in base: {list_names(unexpected)}"] if unexpected else []
    for name in expected:
        if name in trainable:
            wrong += compare_leaf(name, trainable[name], expected[name]) or _check_storable(
                name, trainable[name]
            )
    if wrong:
        raise AdapterError(
            f"trainable does not fit base and config: {list_names(wrong, str)}. Pass the trainable "
            "half of partition_params(base, config), or that half after training"
        )


def _refuse_traced(argument: str, leaves: Mapping[str, Any]) -> None:
    traced = [name for name, leaf in leaves.items() if isinstance(leaf, Tracer)]
    if traced:
        raise AdapterError(
            f"{argument} is being traced, {list_names(traced)}: call this outside jax.jit, where "
            "leaves have values"
        )


def _check_storable(name: str, value: Any) -> list[str]:
    if 0 in value.shape:
        return [f"{name!r} has shape {tuple(value.shape)}, with no elements to save"]
    try:
        is_short = len(name.encode("utf-8")) <= _LONGEST_PATH
    except UnicodeEncodeError:
        is_short = False
    if not is_short:
        return [f"{name[:80]!r} is no path that can be stored (over 4096 bytes, or not Unicode)"]
    return []


def check_values(arrays: Mapping[str, np.ndarray]) -> None:
    """Refuses values that are not finite.

    Raises:
        AdapterError: lists the leaves.
    """
    broken = list_nonfinite(arrays)
    if broken:
        raise AdapterError(
            f"trainable holds values that are not finite, in {list_names(broken, str)}: training "
            "has diverged. Save an earlier state; numpy.isfinite shows which values"
        )


def check_place(
    directory: Path,
    params: Any,
    trainable: Mapping[str, Any],
    config: LNTuningConfig,
    norms: Iterable[str] | None,
    name_map: str | NameMap | None = None,
    trained_on: str = "",
) -> Views:
    """Compares the leaves of an adapter with those that its config selects in `params`.

    Args:
        directory: the adapter's, for messages.
        params: the tree it is to fit.
        trainable: its leaves.
        config: its config.
        norms: the norms that trained, by the names under which they were saved.
        name_map: as in `restore_adapter`.
        trained_on: what the base was called, for messages; empty where nothing is known.

    Raises:
        AdapterError: lists what is missing, unexpected, or of another shape or kind.
    """
    if fill_placeholders(params)[1]:
        raise AdapterError(
            "params is the frozen half of partition_params: pass the whole tree, or "
            "call merge_params(load_adapter(path).trainable, frozen)"
        )
    leaves = _list_named(directory, params, name_map)
    present = {join(leaf.path): leaf.value for leaf in leaves}
    _refuse_traced("params", {name: present[name] for name in trainable if name in present})
    absent = [name for name in trainable if name not in present]
    kinds = set(map(_drop_numbers, present))  # of leaves, whatever their layer
    if 2 * sum(_drop_numbers(name) not in kinds for name in absent) > len(trainable):
        vectors = [name for name, value in present.items() if len(get_shape(value) or ()) == 1]
        raise AdapterError(explain_other_model(directory, trained_on, absent, vectors))
    wrong = [f"params lacks {list_names(absent)}"] if absent else []
    for name, value in trainable.items():
        wrong += compare_leaf(name, present[name], value, "params") if name in present else []
    if wrong:
        raise _explain(directory, wrong)
    # By their segments, since a key may have dots.
    paths = {join(path): path for leaf in leaves for path in (leaf.path, leaf.path[:-1])}
    known = None if norms is None else [paths[name] for name in norms if name in paths]
    views = _select(directory, params, config, known, name_map)
    selected = list(views.named.list_trainable())
    missing = [name for name in selected if name not in trainable]
    if missing:
        raise _explain(
            directory, [f"the config selects {list_names(missing)}, which the adapter lacks"]
        )
    unexpected = [name for name in trainable if name not in set(selected)]
    if unexpected:
        raise _explain(
            directory, [f"the adapter holds {list_names(unexpected)}, not selected by its config"]
        )
    return views


def place_leaves(selection: RoledTree, trainable: Mapping[str, np.ndarray], cast: bool) -> Any:
    """The tree of `selection`, with the leaves of `trainable` in place of its own.

    Raises:
        AdapterError: a value is too large for the base's dtype, or JAX has the dtype turned off.
    """
    check_flag("cast", cast)
    values = []
    for leaf in selection.leaves:
        name = join(leaf.path)
        value = trainable.get(name) if leaf.is_parameter else None
        values.append(None if value is None else _convert(name, value, leaf.value, cast))
    if spans_processes([leaf.value for leaf in selection.leaves]):
        meet()  # to put a value there is a collective
    leaves = [
        leaf.value if value is None else place_leaf(join(leaf.path), value, leaf.value)
        for leaf, value in zip(selection.leaves, values, strict=True)
    ]
    return selection.treedef.unflatten(leaves)


def _drop_numbers(name: str) -> str:
    return ".".join(part for part in name.split(".") if not part.isdecimal())


def _list_named(directory: Path, params: Any, name_map: str | NameMap | None) -> list[Leaf]:
    """The leaves by the names under which an adapter keeps them."""
    leaves, known = flatten(params)[0], get_name_map(name_map)
    if known is not None:
        try:
            parts = list_parts(leaves, known)
        except TreeError as error:
            raise _explain(directory, error.args) from error
        leaves = [part for leaf in leaves for part in view(leaf, parts[join(leaf.path)])]
    return leaves


def _select(
    directory: Path,
    params: Any,
    config: LNTuningConfig,
    norms: Any,
    name_map: str | NameMap | None,
) -> Views:
    try:
        return select_views(params, config, None, name_map, named_norms=norms, warn=False)
    except SelectionError as error:
        raise _explain(directory, error.args) from error


def _explain(directory: Path, wrong: list[str] | Message) -> AdapterError:
    why = list_names(wrong, str) if isinstance(wrong, list) else wrong
    return AdapterError(
        f"the adapter {directory} does not fit params: ",
        why,
        ". Pass the tree of the base it was trained on, with the same names of modules",
        Advice(
            (
                "; where one leaf of params holds all layers, pass ",
                Argument("name_map"),
                " too (model.name_map of a scanned model)",
            )
        ),
    )


def _convert(name: str, value: np.ndarray, place: Any, cast: bool) -> np.ndarray:
    value = cast_leaf(value, place.dtype) if cast else value
    if list_nonfinite({name: value}):
        raise AdapterError(
            f"the leaf {name!r} holds values too large for {value.dtype}, the dtype of params: "
            "pass ",
            Advice((Argument("cast", False), ", or ")),
            "params in a wider dtype",
        )
    check_enabled(name, value, place)
    return value

"""What a bank is made from: its base, and adapters, and whether these fit its rows.

An adapter is an `Adapter`, a dict of leaves, or a directory, ours or PEFT's, told by its files and
read strictly against the base.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from ..adapters.fingerprint import holds_values
from ..adapters.store import Adapter, read_fitting
from ..config import LNTuningConfig
from ..errors import AdapterError, ConfigError
from ..messages import list_names, shorten
from ..names.layers import join_arrays
from ..names.maps import NameMap
from ..paths import flatten, get_shape, join
from ..peft.files import PEFT, find_kind
from ..peft.load import load_peft
from ..selection.norms import find_norms
from ..selection.select import select_leaves
from ..selection.selection import Selection, get_config
from ..storage.directories import resolve_path
from ..storage.leaves import cast_leaf, compare_leaf, list_nonfinite, to_numpy
from .core import BASE, AdapterBank

Source: TypeAlias = "Adapter | Mapping[str, Any] | str | os.PathLike[str]"


def read_source(
    source: Source,
    params: Any,
    norms: Iterable[str] | None = None,
    name_map: str | NameMap | None = None,
) -> Adapter | Mapping[str, Any]:
    """Reads a directory; anything else is returned as it is.

    Raises:
        AdapterError: the directory is no adapter, does not fit `params`, or `params` is None.

    Example:
        >>> read_source({"ln.scale": 1.0}, None)
        {'ln.scale': 1.0}
    """
    if not isinstance(source, str | os.PathLike):
        return source
    if params is None:
        raise AdapterError(
            f"{str(source)!r} is the path of an adapter, which is checked against its base: pass "
            "params=, the base's tree"
        )
    directory = resolve_path(source, error=AdapterError)
    # A directory that is missing may have left an older version beside it, which ours reads.
    if directory.is_dir() and find_kind(directory) == PEFT:
        adapter = load_peft(directory, params, norms=norms, name_map=name_map)
        if name_map is None:
            return adapter
        # Its patterns are for the tree's own paths; these are for the names of layers too.
        both = select_paths(adapter.trainable, adapter.trainable)
        targets, saved = both.target_modules, both.modules_to_save
        config = adapter.config.replace(
            target_modules=targets, modules_to_save=saved, exclude_modules=None
        )
        return replace(adapter, config=config)
    adapter, views = read_fitting(directory, params, name_map)
    if views.parts is None:
        return adapter
    return replace(adapter, trainable=join_arrays(adapter.trainable, views.parts))


def describe_source(adapter: Adapter | Mapping[str, Any], leaves: Mapping[str, Any]) -> Adapter:
    """The adapter, in the base's order, with its config; a dict gets one that selects its leaves.

    Args:
        adapter: what `read_source` gave.
        leaves: for each leaf path, an array of the shape that the base has there.
    """
    if isinstance(adapter, Adapter):
        trainable, config = _sort_like(adapter.trainable, leaves), get_config(adapter.config)
        return replace(adapter, trainable=trainable, config=config)
    if not isinstance(adapter, Mapping):
        raise AdapterError(
            "an adapter must be an Adapter, a dict of leaf paths or a path, not "
            f"{type(adapter).__name__}"
        )
    in_order = _sort_like(adapter, leaves)
    return Adapter(in_order, select_paths(in_order, leaves))


def _sort_like(adapter: Mapping[str, Any], leaves: Mapping[str, Any]) -> dict[str, Any]:
    """In the base's order: what is written must not depend on the order of a caller's dict."""
    return {path: adapter[path] for path in leaves if path in adapter}


def select_paths(paths: Iterable[str], leaves: Mapping[str, Any]) -> LNTuningConfig:
    r"""A config that selects exactly these leaves: vectors and norms as norms, other modules whole.

    What may hold several layers is written so that its parts, which have the layer's number
    within their names, match too: the leaves can be saved with the name map of a scanned model.

    Args:
        paths: of the leaves.
        leaves: for each leaf path, an array of the base's shape; together they tell the norms.

    Example:
        >>> import numpy as np
        >>> select_paths(["scale"], {"scale": np.ones(2)}).target_modules
        ('scale',)
        >>> stacked = {"norm.scale": np.ones((3, 2))}
        >>> print(*select_paths(stacked, stacked).target_modules)
        norm(\.\d+)?\.scale
    """
    listed = list(paths)
    norms = {join(module) for module in find_norms(dict(leaves))}
    axes_of = {path: leaf.ndim for path in listed if (leaf := leaves.get(path)) is not None}
    saved: dict[str, int] = {}
    for path, axes in axes_of.items():
        module = path.rpartition(".")[0]
        if axes > 1 and module not in norms:
            saved[module] = max(axes, saved.get(module, 0))
    others = [path for path in listed if path.rpartition(".")[0] not in saved]
    targets = [_with_layers(path) if axes_of.get(path, 1) > 1 else path for path in others]
    modules = [_with_layers(name) if axes > 2 else name for name, axes in saved.items()]
    return LNTuningConfig(
        target_modules=tuple(targets),  # paths of leaves: each matches itself alone
        modules_to_save=tuple(modules) or None,
    )


def _with_layers(path: str) -> str:
    """An expression for a path and for the same one with a number after any of its segments."""
    return r"(\.\d+)?\.".join(map(re.escape, path.split(".")))


def check_name(name: Any) -> str:
    """Gives a name that an adapter may have.

    Raises:
        AdapterError: it is no string, empty, or the base's.

    Example:
        >>> check_name("french")
        'french'
    """
    if not isinstance(name, str) or not name:
        raise AdapterError(
            f"an adapter's name must be a string with letters, not {shorten(repr(name))}"
        )
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        raise AdapterError(f"an adapter's name must be text, not {shorten(repr(name))}") from None
    if name == BASE:
        raise AdapterError(f"the name {BASE!r} is that of row 0, the base itself: use another one")
    return name


def get_trainable(adapter: Any) -> Mapping[str, Any]:
    """The leaves of an `Adapter`, or of a dict of leaves.

    Raises:
        AdapterError: it is neither, or holds none.
    """
    trainable = getattr(adapter, "trainable", adapter)
    if not isinstance(trainable, Mapping) or not trainable:
        raise AdapterError(
            "an adapter must be an Adapter, a dict of leaf paths or a path, and hold a leaf; found "
            f"{trainable!r:.80}"
        )
    for path, value in trainable.items():
        if not isinstance(path, str) or isinstance(value, Mapping):
            raise AdapterError(
                f"an adapter is a flat dict {{leaf path: array}}; found {shorten(repr(path))} with "
                f"a {type(value).__name__}: pass partition_params(tuned, config).trainable"
            )
    return trainable


def get_row_shapes(bank: AdapterBank) -> dict[str, jax.ShapeDtypeStruct]:
    """The shape and dtype of one row of each leaf."""
    return {
        path: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype) for path, leaf in bank.leaves.items()
    }


def fit_values(name: str, adapter: Any, leaves: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """An adapter's values in the dtypes of a bank.

    Args:
        name: for messages.
        adapter: an `Adapter`, or `{leaf path: array}`.
        leaves: for each leaf path, an array of the row's shape and dtype.

    Raises:
        AdapterError: a leaf has no place, another shape, no floating dtype, or a value that is
            not finite or too large for the bank's dtype; the message lists them.
    """
    trainable = get_trainable(adapter)
    absent = [path for path in trainable if path not in leaves]
    if absent:
        raise AdapterError(
            f"the adapter {name!r} tunes {list_names(absent)}, for which the bank has no rows: "
            "pass params=, the base's tree, whose values then stand in the other rows"
        )
    wrong = [
        text for path in trainable for text in compare_leaf(path, trainable[path], leaves[path])
    ]
    if wrong:
        raise AdapterError(f"the adapter {name!r} does not fit the bank: {list_names(wrong, str)}")
    values = {
        path: cast_leaf(to_numpy(path, value), leaves[path].dtype)
        for path, value in trainable.items()
    }
    broken = list_nonfinite(values)
    if broken:
        raise AdapterError(
            f"the adapter {name!r} holds values that are not finite in the bank's dtype, in "
            f"{list_names(broken, str)}: a training that diverged, or a dtype that is too narrow"
        )
    return values


def get_own(
    params: Any,
    paths: Iterable[str],
    why: str = "the bank has rows for: pass the tree that the bank was made over",
) -> dict[str, Any]:
    """Some leaves of a base, in its order: by default those that a bank has rows for.

    Raises:
        AdapterError: `params` lacks one of these; `why` ends the message.

    Example:
        >>> list(get_own({"ln": {"scale": np.ones(2)}, "fc": np.ones((2, 2))}, ["ln.scale"]))
        ['ln.scale']
    """
    values = {join(leaf.path): leaf.value for leaf in flatten(params)[0]}
    wanted = set(paths)
    absent = sorted(wanted - values.keys())
    if absent:
        raise AdapterError(f"the base lacks {list_names(absent)}, which {why}")
    return {path: value for path, value in values.items() if path in wanted}


def check_base(
    argument: str, arrays: Mapping[str, np.ndarray], own: Mapping[str, Any], *, has_values: bool
) -> None:
    """Compares shapes with the base's, and row 0 with its values, as closely as dtypes can tell.

    Raises:
        AdapterError: lists what differs.
    """
    wrong = []
    for path, array in arrays.items():
        shape = get_shape(own[path])
        if shape is None or tuple(shape) != array.shape[1:]:
            wrong.append(f"{path!r} has shape {shape}, in the bank {array.shape[1:]}")
        elif has_values and holds_values(own[path]) and not _is_same(array[0], own[path], path):
            wrong.append(f"{path!r} has other values than row 0 of the bank")
    if wrong:
        raise AdapterError(
            f"{argument} is another base than the bank's: {list_names(wrong, str)}. Pass the tree "
            "that the bank was made over, without an adapter in place"
        )


def _is_same(row: np.ndarray, value: Any, path: str) -> bool:
    """Equal in the narrower of the two dtypes."""
    found = to_numpy(path, value)
    narrow = min(row.dtype, found.dtype, key=lambda dtype: dtype.itemsize)
    return bool(np.array_equal(row.astype(narrow), found.astype(narrow)))


def read_base(
    params: Any,
    config: LNTuningConfig | Selection | None,
    norms: Iterable[str] | None,
    name_map: str | NameMap | None,
    adapters: Iterable[Any],
) -> dict[str, np.ndarray]:
    """The base's values of all leaves that a row has, in the tree's order."""
    selected = _select(params, config, norms, name_map, warn=config is not None)
    return read_leaves(params, set(selected).union(*map(get_trainable, adapters)))


def _select(
    params: Any,
    config: LNTuningConfig | Selection | None,
    norms: Iterable[str] | None,
    name_map: str | NameMap | None,
    *,
    warn: bool,
) -> dict[str, Any]:
    """The leaves of a base that a config selects; without one, every norm."""
    known = LNTuningConfig() if config is None else config
    return select_leaves(params, known, norms, name_map, warn=warn).list_trainable()


def read_leaves(params: Any, paths: Iterable[str]) -> dict[str, np.ndarray]:
    """The values of some leaves of a base, in the tree's order, on the host.

    Raises:
        AdapterError: `params` lacks one, or has no values there.
    """
    wanted = set(paths)
    own = get_own(params, wanted, "an adapter tunes: pass the whole tree of the base")
    return {path: to_numpy(path, value) for path, value in own.items()}


def choose_dtype(leaf: Any, dtype: str | None) -> np.dtype:
    """The dtype of a leaf's rows: the one asked for, else float32, or the leaf's own if wider.

    Raises:
        ConfigError: it is no floating dtype.
    """
    if dtype is None:
        wide = jnp.dtype(leaf.dtype).itemsize > 4
        return np.dtype(leaf.dtype) if wide else np.dtype("float32")
    try:
        chosen = jnp.dtype(dtype)
    except TypeError:
        raise ConfigError(f"dtype is {dtype!r}, which is no dtype") from None
    if not jnp.issubdtype(chosen, jnp.floating):
        raise ConfigError(f"dtype is {dtype!r}; expected a floating one, such as 'float32'")
    return chosen


def bank_bytes(
    params: Any,
    adapters: int,
    *,
    config: LNTuningConfig | Selection | None = None,
    norms: Iterable[str] | None = None,
    name_map: str | NameMap | None = None,
    dtype: str | None = None,
    devices: int = 1,
) -> int:
    """The memory of a bank on each device: (adapters + 1) x values x bytes of one / devices.

    Args:
        params: the base; `jax.ShapeDtypeStruct` leaves will do.
        adapters: how many the bank is to hold, beside the base.
        config: as in `make_bank`.
        norms: as in `make_bank`.
        name_map: as in `make_bank`.
        dtype: as in `make_bank`.
        devices: over how many devices the rows are laid.

    Raises:
        ConfigError: `dtype` is no floating one, or a number is below its bound.
        SelectionError: `config` selects nothing.

    Example:
        >>> import jax
        >>> import lntune_jax as lnt
        >>> norm = jax.ShapeDtypeStruct((65 * 4096,), "bfloat16")  # as many as Llama-2-7B has
        >>> lnt.bank.bank_bytes({"norm": {"scale": norm}}, 10_000) / 1e9
        10.65066496
        >>> lnt.bank.bank_bytes({"norm": {"scale": norm}}, 10_000, dtype="bfloat16") / 1e9
        5.32533248
    """
    for name, value, least in (("adapters", adapters, 0), ("devices", devices, 1)):
        is_whole = hasattr(value, "__index__") and not isinstance(value, bool)
        if not is_whole or value < least:
            raise ConfigError(f"{name} is {value!r:.80}; expected a whole number, at least {least}")
    trained = _select(params, config, norms, name_map, warn=False).values()
    row = sum(int(np.prod(leaf.shape)) * choose_dtype(leaf, dtype).itemsize for leaf in trained)
    return -(-(adapters + 1) // devices) * row

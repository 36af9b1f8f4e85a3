"""What an optimizer is told about each leaf: whether it trains, and what kind of leaf it is.

Labels go by paths, so that updates get the labels of the leaves that they are for.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import jax

from ..config import LNTuningConfig
from ..errors import SelectionError
from ..names.layers import list_parts
from ..names.maps import NameMap, get_name_map
from ..paths import Leaf, flatten, join
from .norm_names import BIAS_NAMES
from .norms import find_norms
from .patterns import match_patterns
from .roles import (
    NORM_ROLE,
    SAVED_ROLE,
    RoledTree,
    get_modules_to_save,
    is_below,
    list_modules,
    unite,
)
from .select import select_leaves
from .selection import FROZEN, TRAINABLE, Selection, get_config

SCALE, BIAS, NORM, HEAD = "scale", "bias", "norm", "head"


def label_params(
    params: Any,
    config: LNTuningConfig | Selection,
    *,
    norms: Iterable[str] | None = None,
    name_map: str | NameMap | None = None,
) -> Any:
    """The tree of `params` with "trainable" or "frozen" at each leaf, for `optax.multi_transform`.

    The arguments are those of `partition_params`. The stand-in for parameters that
    `optax.tree_map_params` passes is returned as it is.

    Raises:
        SelectionError: as in `select`.
        TreeError: two leaves have the same path.

    Example:
        >>> import jax.numpy as jnp
        >>> import lntune_jax as lnt
        >>> params = {"norm": {"scale": jnp.ones(4)}, "bias": jnp.ones(4)}
        >>> lnt.label_params(params, lnt.LNTuningConfig())
        {'bias': 'frozen', 'norm': {'scale': 'trainable'}}
    """
    if is_stand_in(params):
        return params
    return label_roles(select_leaves(params, config, norms, name_map))


def label_groups(
    trainable: Any,
    config: LNTuningConfig | Selection,
    *,
    name_map: str | NameMap | None = None,
) -> Any:
    """Says of each trainable leaf whether it is a norm's "scale" or "bias", or of the "head".

    For `optax.multi_transform`, as a function: `lambda t: label_groups(t, selection)`.

    Args:
        trainable: `{leaf path: array}`, or any tree of trainable leaves.
        config: the `Selection` or the config that they were selected with. A leaf of its
            `modules_to_save` is of the head, and all others are of norms.
        name_map: as in `partition_params`, where the layers are stacked and `config` is a config.

    A leaf counts as a bias by its last name (`bias`, `beta`, `b`, ...), and else as a scale: label
    leaves of other names yourself.

    Returns:
        The same tree with a label at each leaf.

    Raises:
        SelectionError: a leaf is not one that the selection trains.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> import lntune_jax as lnt
        >>> config = lnt.LNTuningConfig(modules_to_save=["head"])
        >>> trainable = {
        ...     "ln.scale": jnp.ones(4), "ln.bias": jnp.ones(4), "head.kernel": jnp.ones((4, 2))
        ... }
        >>> lnt.label_groups(trainable, config)
        {'head.kernel': 'head', 'ln.bias': 'bias', 'ln.scale': 'scale'}
        >>> tx = optax.multi_transform(
        ...     {"scale": optax.sgd(1e-2), "bias": optax.sgd(1e-3), "head": optax.sgd(1e-1)},
        ...     lambda trainable: lnt.label_groups(trainable, config),
        ... )
        >>> updates, _ = tx.update(trainable, tx.init(trainable))
        >>> [round(updates[path].min().item(), 4) for path in trainable]
        [-0.01, -0.001, -0.1]
    """
    leaves, treedef = flatten(trainable)
    kinds = treedef.flatten_up_to(label_kinds(trainable, config, name_map))
    groups = [
        HEAD if kind == HEAD else BIAS if leaf.path[-1] in BIAS_NAMES else SCALE
        for leaf, kind in zip(leaves, kinds, strict=True)
    ]
    return treedef.unflatten(groups)


def label_kinds(
    trainable: Any,
    config: LNTuningConfig | Selection,
    name_map: str | NameMap | None = None,
) -> Any:
    """Says of each trainable leaf whether it is of a "norm" or of the "head" (a saved module).

    The arguments are those of `label_groups`.

    Example:
        >>> import jax.numpy as jnp
        >>> config = LNTuningConfig(modules_to_save=["head"])
        >>> label_kinds({"ln_1.scale": jnp.ones(4), "head.kernel": jnp.ones((4, 2))}, config)
        {'head.kernel': 'head', 'ln_1.scale': 'norm'}
    """
    leaves, treedef = flatten(trainable)
    if isinstance(config, Selection):
        return treedef.unflatten([_get_kind(config, leaf) for leaf in leaves])
    known = get_name_map(name_map)
    parts = None if known is None else list_parts(leaves, known)
    # A stack has one role: its first part tells.
    names = [
        leaf.path if parts is None else tuple(parts[join(leaf.path)][0].name.split("."))
        for leaf in leaves
    ]
    entries = get_modules_to_save(get_config(config))
    paths = [join(name) for name in names]
    saved = unite(match_patterns(entries, list_modules(names), paths, is_inside=True))
    return treedef.unflatten([HEAD if is_below(name, saved) else NORM for name in names])


def label_kernels(tree: Any, config: LNTuningConfig | Selection) -> Any:
    """Says of each leaf of saved modules whether weight decay is for it: True for kernels.

    Those are leaves of two axes or more that are no biases and no norms', as in stacked layers.
    """
    leaves, treedef = flatten(tree)
    if isinstance(config, Selection):
        norms = {leaf.path for leaf in config.leaves if leaf.is_norm}
    else:
        modules = find_norms(tree, leaves)
        norms = {join(leaf.path) for leaf in leaves if leaf.path[:-1] in modules}
    return treedef.unflatten(
        [
            len(leaf.value.shape) >= 2
            and leaf.path[-1] not in BIAS_NAMES
            and join(leaf.path) not in norms
            for leaf in leaves
        ]
    )


def label_roles(tree: RoledTree) -> Any:
    """The tree with "trainable" or "frozen" at each leaf, from roles that are known."""
    trains = map(tree.is_trainable, range(len(tree.leaves)))
    return tree.treedef.unflatten([TRAINABLE if own else FROZEN for own in trains])


def is_stand_in(params: Any) -> bool:
    """Whether this is the node without leaves that `optax.tree_map_params` puts for parameters."""
    containers = (dict, list, tuple, type(None))
    return not isinstance(params, containers) and not jax.tree.leaves(params)


def _get_kind(selection: Selection, leaf: Leaf) -> str:
    known = selection.trainable.get(join(leaf.path))
    if known is None:
        raise SelectionError(
            f"the leaf {join(leaf.path)!r} is not one that the selection trains: pass the "
            "trainable half, and the selection that it was made with"
        )
    return {NORM_ROLE: NORM, SAVED_ROLE: HEAD}[known.role]

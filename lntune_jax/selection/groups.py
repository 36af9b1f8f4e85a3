"""Scales, biases and the head as three groups, for Optax transformations that treat them apart."""

from __future__ import annotations

from typing import Any

from ..config import LNTuningConfig
from ..names.rules import NameMap
from ..paths import flatten
from ..training.optimizer import HEAD, label_kinds
from .norm_names import BIAS_NAMES

SCALE, BIAS = "scale", "bias"


def label_groups(
    trainable: Any,
    config: LNTuningConfig | None = None,
    *,
    name_map: str | NameMap | None = None,
) -> Any:
    """Says of each trainable leaf whether it is a norm's "scale" or "bias", or of the "head".

    For `optax.multi_transform`, as a function: `lambda t: label_groups(t, config)`. It goes by
    paths alone, so that updates get the labels of the leaves that they are for.

    Args:
        trainable: `{leaf path: array}`, or any tree of trainable leaves.
        config: the head is its `modules_to_save`, and all else is of norms; None goes by names.
        name_map: as in `partition_params`, where the layers are stacked.

    A leaf counts as a bias by its last name (`bias`, `beta`, `b`, ...), and else as a scale: label
    leaves of other names yourself.

    Returns:
        The same tree with a label at each leaf.

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

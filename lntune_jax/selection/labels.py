"""Which leaves train, said by a label at each leaf, for optimizers that go over whole trees."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ..config import LNTuningConfig
from ..names.rules import NameMap
from .roles import Selection
from .select import select_leaves

TRAINABLE, FROZEN = "trainable", "frozen"


def label_params(
    params: Any,
    config: LNTuningConfig,
    *,
    norms: Iterable[str] | None = None,
    name_map: str | NameMap | None = None,
) -> Any:
    """The tree of `params` with "trainable" or "frozen" at each leaf, for `optax.multi_transform`.

    The arguments are those of `partition_params`.

    Raises:
        SelectionError: nothing trains, a target holds no norm, or `model_type` is unknown.
        TreeError: two leaves have the same path.

    Example:
        >>> import jax.numpy as jnp
        >>> import lntune_jax as lnt
        >>> params = {"norm": {"scale": jnp.ones(4)}, "bias": jnp.ones(4)}
        >>> lnt.label_params(params, lnt.LNTuningConfig())
        {'bias': 'frozen', 'norm': {'scale': 'trainable'}}
    """
    return label_selection(select_leaves(params, config, norms, name_map))


def label_selection(selection: Selection) -> Any:
    """The tree of a selection with "trainable" or "frozen" at each leaf."""
    trains = map(selection.is_trainable, range(len(selection.leaves)))
    return selection.treedef.unflatten([TRAINABLE if t else FROZEN for t in trains])

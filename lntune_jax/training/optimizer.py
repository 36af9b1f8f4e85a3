"""Optax transformations for LayerNorm tuning: a whole-tree form, and AdamW with norms in mind.

Everything acts on the trainable leaves alone: no state, no decay and no clipping ever sees a
frozen leaf.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from ..config import LNTuningConfig
from ..errors import ConfigError, LNTuningError
from ..names.layers import list_parts
from ..names.maps import NameMap, get_name_map
from ..paths import flatten, join
from ..precision import keep_masters
from ..selection.labels import label_selection
from ..selection.norm_names import BIAS_NAMES
from ..selection.norms import find_norms
from ..selection.patterns import match_saved
from ..selection.roles import get_modules_to_save, is_below, list_modules, unite
from ..selection.select import select_leaves

NORM, HEAD = "norm", "head"


def make_optimizer(
    tx: optax.GradientTransformation,
    config: LNTuningConfig,
    *,
    norms: Iterable[str] | None = None,
    name_map: str | NameMap | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Wraps `tx` for a training loop that keeps the whole parameter tree.

    An `optax.multi_transform`: `tx` sees the trainable leaves only, and its state holds nothing
    else; a frozen leaf receives an update of -0.0, which leaves every value as it is (+0.0 would
    turn -0.0 into +0.0). Leaves of lower precision than `config.param_dtype` are updated through
    float32 masters (`keep_masters`), so that small steps on a bfloat16 tree are not lost.

    Put clipping, accumulation, decay and EMA into `tx`, not around the result: outside they act
    on the gradients of all leaves.

    Args:
        tx: the optimizer of the trainable leaves.
        config: which leaves train.
        norms: module paths that are norms, as in `partition_params`.
        name_map: as in `partition_params`, for trees with stacked layers.

    Raises:
        ConfigError: the config is meant for inference.
        SelectionError: on `init`, nothing trains or a target holds no norm.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> import lntune_jax as lnt
        >>> params = {"norm": {"scale": jnp.ones(4)}, "fc": {"kernel": jnp.ones((4, 4))}}
        >>> tx = lnt.make_optimizer(optax.sgd(1.0), lnt.LNTuningConfig())
        >>> updates, _ = tx.update(params, tx.init(params), params)  # a gradient of ones
        >>> new = optax.apply_updates(params, updates)
        >>> new["norm"]["scale"][0].item(), new["fc"]["kernel"][0, 0].item()
        (0.0, 1.0)
    """
    refuse_inference(config)
    norms = None if norms is None else tuple(norms)

    def label(tree: Any) -> Any:
        # Quietly: Optax asks for labels on every update, and `init` has warned.
        return label_selection(select_leaves(tree, config, norms, name_map, warn=False))

    transforms: dict[Hashable, optax.GradientTransformation] = {
        "trainable": keep_masters(tx, config.param_dtype),
        "frozen": _set_to_negative_zero(),
    }
    wrapped = optax.with_extra_args_support(optax.multi_transform(transforms, label))

    def init(params: Any) -> optax.OptState:
        select_leaves(params, config, norms, name_map)  # warns of patterns that match nothing, once
        return wrapped.init(params)

    return optax.GradientTransformationExtraArgs(init, wrapped.update)


def adamw(
    learning_rate: optax.ScalarOrSchedule,
    *,
    head_learning_rate: optax.ScalarOrSchedule | None = None,
    weight_decay: float = 0.0,
    norm_weight_decay: float = 0.0,
    clip_norm: float | None = None,
    config: LNTuningConfig | None = None,
    name_map: str | NameMap | None = None,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
) -> optax.GradientTransformation:
    """AdamW for the trainable leaves: norms and head apart, and no decay on norms by default.

    Weight decay pulls a scale of 1 towards 0, so it acts on the kernels of saved modules only.
    The gradient is clipped over the trainable leaves together.

    Args:
        learning_rate: a number or an Optax schedule, for norm leaves.
        head_learning_rate: the same for the leaves of `modules_to_save`; None is `learning_rate`.
        weight_decay: decoupled decay of saved kernels (leaves of two axes and more which are no
            biases and no norms, as those of stacked layers).
        norm_weight_decay: decoupled decay of norm leaves.
        clip_norm: largest global norm of the gradient; None does not clip.
        config: tells norms from saved modules exactly; None tells them by their names.
        name_map: as in `partition_params`, where the layers are stacked.
        b1: decay of the first moment.
        b2: decay of the second moment.
        eps: added to the denominator.

    Raises:
        LNTuningError: `clip_norm` is not positive.

    Example:
        >>> import jax.numpy as jnp
        >>> import lntune_jax as lnt
        >>> trainable = {"norm.scale": jnp.ones(4), "head.kernel": jnp.ones((4, 2))}
        >>> tx = lnt.adamw(1e-3, head_learning_rate=1e-2)
        >>> updates, _ = tx.update(trainable, tx.init(trainable), trainable)
        >>> {path: round(float(u.ravel()[0]), 6) for path, u in updates.items()}
        {'head.kernel': -0.01, 'norm.scale': -0.001}
    """
    if clip_norm is not None and not clip_norm > 0:
        raise LNTuningError(f"clip_norm must be more than 0, not {clip_norm}")
    head_rate = learning_rate if head_learning_rate is None else head_learning_rate
    adam: dict[str, Any] = {"b1": b1, "b2": b2, "eps": eps}
    tx = optax.multi_transform(
        {
            NORM: optax.adamw(learning_rate, weight_decay=norm_weight_decay, **adam),
            HEAD: optax.adamw(head_rate, weight_decay=weight_decay, mask=_find_kernels, **adam),
        },
        lambda trainable: label_kinds(trainable, config, name_map),
    )
    return tx if clip_norm is None else optax.chain(optax.clip_by_global_norm(clip_norm), tx)


def label_kinds(
    trainable: Any,
    config: LNTuningConfig | None = None,
    name_map: str | NameMap | None = None,
) -> Any:
    """Says of each trainable leaf whether it is of a "norm" or of the "head" (a saved module).

    Args:
        trainable: `{leaf path: array}`, or any tree of trainable leaves.
        config: tells the two apart by its `modules_to_save`; None goes by names and shapes.
        name_map: the names, layer by layer, that the patterns of `config` are for.

    Returns:
        The same tree with a label at each leaf.

    Example:
        >>> import jax.numpy as jnp
        >>> label_kinds({"ln_1.scale": jnp.ones(4), "head.kernel": jnp.ones((4, 2))})
        {'head.kernel': 'head', 'ln_1.scale': 'norm'}
    """
    leaves, treedef = flatten(trainable)
    paths = [leaf.path for leaf in leaves]
    if config is None:
        norms = find_norms(trainable, leaves)
        kinds = [NORM if path[:-1] in norms else HEAD for path in paths]
    else:
        known = get_name_map(name_map)
        parts = None if known is None else list_parts(leaves, known)
        names = [
            [tuple(part.name.split(".")) for part in parts[join(path)]] if parts else [path]
            for path in paths
        ]
        every = [name for own in names for name in own]
        saved = unite(
            match_saved(
                get_modules_to_save(config), list_modules(every), [join(name) for name in every]
            )
        )
        # A stack has one role: its first part tells.
        kinds = [HEAD if is_below(own[0], saved) else NORM for own in names]
    return treedef.unflatten(kinds)


def refuse_inference(config: LNTuningConfig | None) -> None:
    """Raises a `ConfigError` for a config that was saved for inference."""
    if config is not None and config.inference_mode:
        raise ConfigError(
            "the config says inference_mode=True, as PEFT writes into saved adapters; to train "
            "with it pass config.replace(inference_mode=False)"
        )


def _set_to_negative_zero() -> optax.GradientTransformation:
    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        del params
        return jax.tree.map(_negative_zero, updates), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def _negative_zero(update: Any) -> Any:
    if update.dtype == jax.dtypes.float0:
        return update
    return jnp.full_like(update, -0.0 if jnp.issubdtype(update.dtype, jnp.inexact) else 0)


def _find_kernels(tree: Any) -> Any:
    """Which leaves weight decay is for: not the biases and norms of stacked layers either."""
    leaves, treedef = flatten(tree)
    norms = find_norms(tree, leaves)
    return treedef.unflatten(
        [
            jnp.ndim(leaf.value) >= 2
            and leaf.path[-1] not in BIAS_NAMES
            and leaf.path[:-1] not in norms
            for leaf in leaves
        ]
    )

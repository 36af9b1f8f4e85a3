"""Optax transformations for LayerNorm tuning: a whole-tree form, and AdamW with norms in mind.

Everything acts on the trainable leaves alone: no state, no decay and no clipping ever sees a
frozen leaf.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from ..arguments import check_number, check_optimizer
from ..config import LNTuningConfig
from ..errors import ConfigError
from ..names.maps import NameMap
from ..precision import keep_masters
from ..selection.labels import (
    HEAD,
    NORM,
    is_stand_in,
    label_kernels,
    label_kinds,
    label_params,
    label_roles,
)
from ..selection.select import select_leaves
from ..selection.selection import Selection, get_config


def make_optimizer(
    tx: optax.GradientTransformation,
    config: LNTuningConfig | Selection,
    *,
    norms: Iterable[str] | None = None,
    name_map: str | NameMap | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Wraps `tx` for a training loop that keeps the whole parameter tree.

    An `optax.multi_transform`: `tx` sees the trainable leaves only, and its state holds nothing
    else; a frozen leaf receives an update of -0.0, which leaves every value as it is (+0.0 would
    turn -0.0 into +0.0). Leaves of lower precision than `config.param_dtype` are updated through
    float32 masters (`keep_masters`), so that small steps on a bfloat16 tree are not lost.

    Frozen leaves stay bitwise the same under `jax.jit`. Outside it, a CPU adds the -0.0 with
    subnormal numbers (below 1.2e-38 in float32) taken for 0: call the update under `jax.jit`.

    Put clipping, accumulation, decay and EMA into `tx`, not around the result: outside they act
    on the gradients of all leaves.

    Args:
        tx: the optimizer of the trainable leaves.
        config: which leaves train; or the `Selection` that says so.
        norms: as in `partition_params`.
        name_map: as in `partition_params`, for trees with stacked layers.

    Raises:
        ConfigError: the config is meant for inference.
        ArgumentError: `tx` is no Optax transformation.
        SelectionError: on `init`, no norm trains or a target holds no norm.

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
    check_optimizer(tx)
    norms = None if norms is None else tuple([norms] if isinstance(norms, str) else norms)
    label = _remember(lambda tree: label_roles(_select_quietly(tree, config, norms, name_map)))
    transforms: dict[Hashable, optax.GradientTransformation] = {
        "trainable": keep_masters(tx, get_config(config).param_dtype),
        "frozen": _set_to_negative_zero(),
    }
    wrapped = optax.with_extra_args_support(optax.multi_transform(transforms, label))

    def init(params: Any) -> optax.OptState:
        # Optax asks for labels on every update; only `init` warns, of patterns without effect.
        label_params(params, config, norms=norms, name_map=name_map)
        return wrapped.init(params)

    return optax.GradientTransformationExtraArgs(init, wrapped.update)


def adamw(
    config: LNTuningConfig | Selection,
    learning_rate: optax.ScalarOrSchedule,
    *,
    head_learning_rate: optax.ScalarOrSchedule | None = None,
    weight_decay: float = 0.0,
    norm_weight_decay: float = 0.0,
    clip_norm: float | None = None,
    name_map: str | NameMap | None = None,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
) -> optax.GradientTransformation:
    """AdamW for the trainable leaves: norms and head apart, and no decay on norms by default.

    Weight decay pulls a scale of 1 towards 0, so it acts on the kernels of saved modules only.
    The gradient is clipped over the trainable leaves together.

    Args:
        config: the `Selection` or the config that the leaves were selected with: it tells norms
            from saved modules.
        learning_rate: a number or an Optax schedule, for norm leaves.
        head_learning_rate: the same for the leaves of `modules_to_save`; None is `learning_rate`.
        weight_decay: decoupled decay of saved kernels (leaves of two axes and more which are no
            biases and no norms, as those of stacked layers).
        norm_weight_decay: decoupled decay of norm leaves.
        clip_norm: largest global norm of the gradient; None does not clip.
        name_map: as in `partition_params`, where the layers are stacked and `config` is a config.
        b1: decay of the first moment.
        b2: decay of the second moment.
        eps: added to the denominator.

    Raises:
        ConfigError: `config` is neither a config nor a selection, or is meant for inference.
        ArgumentError: a rate is no number or schedule, or `clip_norm` is not positive.

    Example:
        >>> import jax.numpy as jnp
        >>> import lntune_jax as lnt
        >>> trainable = {"norm.scale": jnp.ones(4), "head.kernel": jnp.ones((4, 2))}
        >>> config = lnt.LNTuningConfig(modules_to_save=["head"])
        >>> tx = lnt.adamw(config, learning_rate=1e-3, head_learning_rate=1e-2)
        >>> updates, _ = tx.update(trainable, tx.init(trainable), trainable)
        >>> {path: round(float(u.ravel()[0]), 6) for path, u in updates.items()}
        {'head.kernel': -0.01, 'norm.scale': -0.001}
    """
    refuse_inference(config)
    head_rate = learning_rate if head_learning_rate is None else head_learning_rate
    rates = {"learning_rate": learning_rate, "head_learning_rate": head_rate}
    for name, rate in rates.items():
        if not callable(rate):
            check_number(name, rate, least=0)
    for name, value in (("weight_decay", weight_decay), ("norm_weight_decay", norm_weight_decay)):
        check_number(name, value, least=0)
    if clip_norm is not None:
        check_number("clip_norm", clip_norm, above=0)
    adam: dict[str, Any] = {"b1": b1, "b2": b2, "eps": eps}
    tx = optax.multi_transform(
        {
            NORM: optax.adamw(learning_rate, weight_decay=norm_weight_decay, **adam),
            HEAD: optax.adamw(
                head_rate,
                weight_decay=weight_decay,
                mask=_remember(lambda tree: label_kernels(tree, config)),
                **adam,
            ),
        },
        _remember(lambda tree: label_kinds(tree, config, name_map)),
    )
    return tx if clip_norm is None else optax.chain(optax.clip_by_global_norm(clip_norm), tx)


def refuse_inference(config: LNTuningConfig | Selection | None) -> None:
    """Raises a `ConfigError` for a config that was saved for inference, or for what is none."""
    if config is not None and get_config(config).inference_mode:
        raise ConfigError(
            "the config says inference_mode=True, as PEFT writes into saved adapters; to train "
            "with it pass config.replace(inference_mode=False)"
        )


def _select_quietly(
    tree: Any, config: LNTuningConfig | Selection, norms: Any, name_map: str | NameMap | None
) -> Any:
    return select_leaves(tree, config, norms, name_map, warn=False)


def _remember(make_labels: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Labels of the tree that was seen last, made anew where structure, shapes or dtypes change.

    An eager update would else match patterns against the whole tree at every step.
    """
    last: tuple[Any, Any] = (None, None)

    def label(tree: Any) -> Any:
        nonlocal last
        if is_stand_in(tree):
            return tree
        leaves, treedef = jax.tree.flatten(tree)
        kinds = [(getattr(x, "shape", ()), getattr(x, "dtype", None)) for x in leaves]
        key = (treedef, kinds)
        known, labels = last
        if known != key:
            labels = make_labels(tree)
            last = (key, labels)
        return labels

    return label


def _set_to_negative_zero() -> optax.GradientTransformation:
    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        del params
        return jax.tree.map(_negative_zero, updates), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def _negative_zero(update: Any) -> Any:
    if update.dtype == jax.dtypes.float0:
        return update
    # Of lax, since jnp's takes a third longer outside jit.
    return jax.lax.full_like(update, -0.0 if jnp.issubdtype(update.dtype, jnp.inexact) else 0)

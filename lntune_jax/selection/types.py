"""Norm modules by type: exact, where the model object is at hand and names say nothing."""

from __future__ import annotations

import sys
from typing import Any

import jax

from ..errors import TreeError
from ..paths import join
from .norms import NORM, find_by_type
from .quantized import refuse_activations


def norm_modules(model: Any, *args: Any, **kwargs: Any) -> frozenset[str]:
    """The paths of all LayerNorm and RMSNorm modules of a model, by their type.

    For `partition_params(params, config, norms=...)`. Flax NNX modules and Equinox modules are
    walked; a Flax Linen module is traced without computing, so it needs an example input.

    Args:
        model: a Linen, NNX or Equinox module.
        *args: for Linen, what `model.apply` takes after the variables.
        **kwargs: the same, by keyword.

    Returns:
        Module paths, segments joined by dots, as in the keys of `trainable`.

    Raises:
        TreeError: the model is of none of these kinds.
        ModelError: qwix quantises its activations, through which norms get wrong gradients.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import linen as nn
        >>> model = nn.Sequential([nn.Dense(4), nn.LayerNorm()])
        >>> sorted(norm_modules(model, jnp.ones((1, 4))))
        ['layers_1']
    """
    refuse_activations(model)
    linen, nnx = sys.modules.get("flax.linen"), sys.modules.get("flax.nnx")
    if linen is not None and isinstance(model, linen.Module):
        return _trace_linen(model, args, kwargs)
    if nnx is not None and isinstance(model, nnx.Module):
        types = (nnx.LayerNorm, nnx.RMSNorm)
        found = nnx.iter_modules(model)
        return frozenset(join(tuple(map(str, path))) for path, m in found if isinstance(m, types))
    typed = find_by_type(model)
    if not typed:
        raise TreeError(
            f"norm_modules found no module object in a {type(model).__name__}: pass a Flax Linen, "
            "Flax NNX or Equinox module, not its parameters"
        )
    return frozenset(join(path) for path, kind in typed.items() if kind == NORM)


def _trace_linen(model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> frozenset[str]:
    from flax import linen as nn

    found: set[str] = set()

    def record(call: Any, call_args: Any, call_kwargs: Any, context: Any) -> Any:
        if isinstance(context.module, nn.LayerNorm | nn.RMSNorm):
            found.add(join(tuple(context.module.path)))
        return call(*call_args, **call_kwargs)

    with nn.intercept_methods(record):
        jax.eval_shape(lambda: model.init(jax.random.key(0), *args, **kwargs))
    return frozenset(found)

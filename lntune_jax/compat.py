"""What is read of other libraries' private parts, where they offer nothing public; all in one file.

Each function names the version it was read in, and what would let it go.
"""

from __future__ import annotations

import sys
from typing import Any


def count_programs(jitted: Any) -> int:
    """How many programs a `jax.jit` has compiled.

    jax 0.12: `_cache_size` of what `jax.jit` returns. It can go when that has a public one.

    Example:
        >>> import jax
        >>> count_programs(jax.jit(abs))
        0
    """
    return jitted._cache_size()


def list_activation_types(model: Any) -> list[str]:
    """The types to which qwix's `PtqProvider` rounds the activations of a Flax module.

    qwix 0.1.8: `quantize_model` makes a class with `_unquantized_type`, whose methods hold the
    provider in closures; the provider keeps its rules in `_rules`. It can go when a quantised
    model, or a public function of qwix, gives the rules that were applied.

    Example:
        >>> list_activation_types(object())
        []
    """
    qwix = sys.modules.get("qwix")
    if qwix is None or not hasattr(type(model), "_unquantized_type"):
        return []
    kinds = {
        str(rule.act_qtype)
        for method in vars(type(model)).values()
        for provider in find_held(method, qwix.PtqProvider)
        for rule in getattr(provider, "_rules", ())
        if rule.act_qtype is not None
    }
    return sorted(kinds)


def list_keras_layers(layer: Any) -> list[Any]:
    """A Keras layer or model, and all layers below it.

    Keras 3.15: `_flatten_layers` is the only walk that also enters layers kept in attributes. It
    can go when Keras has a public one: `Model.layers` lists the first floor alone.

    Example:
        >>> class Layer:
        ...     def _flatten_layers(self):
        ...         yield self
        >>> len(list_keras_layers(Layer()))
        1
    """
    return list(layer._flatten_layers())


def find_held(function: Any, kind: type, seen: frozenset[int] = frozenset()) -> list[Any]:
    """The objects of a kind that the wrappers around a function hold, however many there are.

    Example:
        >>> def wrap(held):
        ...     return lambda: held
        >>> find_held(wrap(wrap(3)), int)
        [3]
    """
    found = []
    if id(function) in seen:  # it holds itself
        return found
    for cell in getattr(function, "__closure__", None) or ():
        try:
            held = cell.cell_contents
        except ValueError:  # not set yet
            continue
        for value in (held, *getattr(held, "args", ()), getattr(held, "__self__", None)):
            if isinstance(value, kind):
                found.append(value)
        if callable(held):
            found += find_held(held, kind, seen | {id(function)})
    return found


def assume_cudnn(version: int) -> None:
    """Let this process trace attention by cuDNN with no GPU to ask for cuDNN's version.

    jax 0.12: `jax._src.cudnn.fused_attention_stablehlo` asks the plugin in `check_cudnn_version`
    and `check_compute_capability`. It can go when JAX asks the device that is compiled for. For a
    process that only compiles: whatever runs later there would go unchecked.
    """
    from jax._src.cudnn import fused_attention_stablehlo as cudnn

    setattr(cudnn, "check_cudnn_version", lambda: version)  # noqa: B010
    setattr(cudnn, "check_compute_capability", lambda _: True)  # noqa: B010

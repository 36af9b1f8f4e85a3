"""Norm modules by type: exact, where the model object is at hand and names say nothing."""

from __future__ import annotations

import functools
import sys
from typing import Any

import jax

from ..errors import TreeError
from ..paths import flatten, get_shape, join, split_keys, split_name
from .norms import NORM, find_by_type
from .quantized import refuse_activations


def norm_modules(model: Any, *args: Any, **kwargs: Any) -> frozenset[str]:
    """The paths of all LayerNorm and RMSNorm modules of a model, by their type.

    For `partition_params(params, config, norms=...)`. Flax NNX modules and Equinox modules are
    walked; a Flax Linen module is traced without computing, so it needs an example input. Norms
    that lifted transforms made (`nn.remat(nn.LayerNorm)`, `nn.scan`) are found too; those without
    a scale and a bias are left out.

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
        modules = {
            tuple(part for key in path for part in split_name(str(key))): module
            for path, module in nnx.iter_modules(model)
        }
        norms = {p for p, m in modules.items() if isinstance(m, nnx.LayerNorm | nnx.RMSNorm)}
        leaves, _ = flatten(nnx.state(model))
    else:
        typed = find_by_type(model)
        if not typed:
            raise TreeError(
                f"norm_modules found no module object in a {type(model).__name__}: pass a Flax "
                "Linen, Flax NNX or Equinox module, not its parameters"
            )
        norms = {path for path, kind in typed.items() if kind == NORM}
        leaves, _ = flatten(model)
    # A norm without scale and bias has no path in the parameters.
    held = {leaf.path[:-1] for leaf in leaves if get_shape(leaf.value) is not None}
    return frozenset(join(path) for path in norms & held)


def _trace_linen(model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> frozenset[str]:
    """Marks the parameters of each norm when it is called, and looks where the marks end up.

    The module's own path would not do: a lifted transform (`nn.remat(nn.LayerNorm)`, `nn.vmap`)
    runs the class as a root of its own, with the empty path.
    """
    from flax import linen as nn

    mark_type, found = _make_mark_type(), set[str]()

    def mark(call: Any, call_args: Any, call_kwargs: Any, context: Any) -> Any:
        output, module = call(*call_args, **call_kwargs), context.module
        if isinstance(module, nn.LayerNorm | nn.RMSNorm) and module.scope is not None:
            own = {
                name: value
                for name, value in module.variables.get("params", {}).items()
                if get_shape(nn.meta.unbox(value)) is not None
            }
            if own and module.is_mutable_collection("params"):
                for name, value in own.items():
                    if not isinstance(value, mark_type):
                        module.put_variable("params", name, mark_type(value))
            elif own and module.path:  # its parameters were made elsewhere
                found.add(join(tuple(module.path)))
        return output

    given, treedef = jax.tree.flatten((args, kwargs))
    arrays = {i: value for i, value in enumerate(given) if get_shape(value) is not None}

    def init(arrays: dict[int, Any]) -> Any:  # abstract arrays will do; flags stay as they are
        values = [arrays.get(i, value) for i, value in enumerate(given)]
        own_args, own_kwargs = treedef.unflatten(values)
        return model.init(jax.random.key(0), *own_args, **own_kwargs)

    # Without jit, whose cache would pass over parts traced before, and would keep the marks.
    with nn.intercept_methods(mark), jax.disable_jit():
        variables = jax.eval_shape(init, arrays)
    leaves = jax.tree_util.tree_flatten_with_path(
        dict(variables.get("params", {})), is_leaf=lambda x: isinstance(x, mark_type)
    )[0]
    marked = (keys for keys, value in leaves if isinstance(value, mark_type))
    return frozenset(found.union(join(split_keys(keys)[:-1]) for keys in marked))


@functools.cache
def _make_mark_type() -> type:
    """A box around a parameter, as Flax has them for partitioning, that says: this is a norm's."""
    from flax.linen import meta

    @jax.tree_util.register_pytree_node_class
    class Mark(meta.AxisMetadata[Any]):
        def __init__(self, value: Any) -> None:
            self.value = value

        def unbox(self) -> Any:
            return self.value

        def replace_boxed(self, val: Any) -> Mark:
            return Mark(val)

        def add_axis(self, index: int, params: dict[Any, Any]) -> Mark:
            return Mark(meta.add_axis(self.value, index, params))

        def remove_axis(self, index: int, params: dict[Any, Any]) -> Mark:
            return Mark(meta.remove_axis(self.value, index, params))

        def tree_flatten(self) -> tuple[tuple[Any], None]:
            return (self.value,), None

        @classmethod
        def tree_unflatten(cls, _: None, values: tuple[Any]) -> Mark:
            return cls(*values)

    return Mark

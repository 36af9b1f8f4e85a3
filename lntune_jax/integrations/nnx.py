"""Flax NNX: a filter of the leaves that a config trains, and an optimizer for them alone.

A filter goes wherever NNX takes one: `nnx.split`, `nnx.state`, `nnx.DiffState`, `wrt=`. It holds
the paths of what `partition_params` selects in the same model, so the two cannot disagree.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import jax
import optax
from flax import nnx

from ..config import LNTuningConfig
from ..errors import TreeError
from ..names.rules import NameMap
from ..precision import keep_masters
from ..selection.labels import label_params
from ..selection.quantized import refuse_activations
from ..selection.selection import TRAINABLE, Selection, get_config
from ..training.optimizer import refuse_inference


def make_filter(
    config: LNTuningConfig | Selection,
    model: Any,
    *,
    norms: Iterable[str] | None = None,
    name_map: str | NameMap | None = None,
) -> nnx.filterlib.Predicate:
    """Makes the NNX filter of the leaves that `config` trains in `model`.

    Two filters of the same selection are equal and have one hash, so that making one anew compiles
    nothing anew.

    Args:
        config: which leaves train; or the `Selection` that says so.
        model: a module, whose norms are known by their types (those of other classes than Flax's
            by names and shapes); or its `nnx.State`, by names and shapes. Abstract ones will do
            (`nnx.eval_shape`, `nnx.abstract_state`): no value is looked at.
        norms: module paths that are norms, as in `partition_params`.
        name_map: as in `partition_params`, where the layers are stacked.

    Returns:
        An `nnx.filterlib.PathIn` of the paths of the selected variables, from the root of `model`.

    Raises:
        SelectionError: nothing trains, a target holds no norm, or `model_type` is unknown.
        TreeError: `model` is neither a module nor a state.
        ModelError: qwix quantises its activations, through which norms get wrong gradients.

    Example:
        >>> import jax
        >>> from flax import nnx
        >>> import lntune_jax as lnt
        >>> class Model(nnx.Module):
        ...     def __init__(self, rngs):
        ...         self.first = nnx.LayerNorm(2, rngs=rngs)  # a name that says nothing
        ...         self.norm = nnx.BatchNorm(2, rngs=rngs)  # a name that misleads
        >>> model = Model(nnx.Rngs(0))
        >>> graphdef, norms, rest = nnx.split(model, make_filter(lnt.LNTuningConfig(), model), ...)
        >>> sorted(".".join(map(str, path)) for path, _ in nnx.to_flat_state(norms))
        ['first.bias', 'first.scale']
    """
    if not isinstance(model, nnx.Module | nnx.State):
        raise TreeError(
            f"make_filter needs an nnx.Module or its nnx.State, not {type(model).__name__}: pass "
            "the model itself; plain trees go to partition_params"
        )
    refuse_activations(model)
    labels = label_params(model, config, norms=norms, name_map=name_map)
    # A variable may hold a whole tree of arrays; its leaves are of one module and have one label.
    found = zip(list_variables(model), list_variables(labels), strict=True)
    chosen = {id(leaf) for leaf, label in found if _get_label(leaf, label) == TRAINABLE}
    # NNX's own walk gives a variable that several modules share the path that a filter will see.
    paths = nnx.iter_graph(model) if isinstance(model, nnx.Module) else nnx.to_flat_state(model)
    return nnx.filterlib.PathIn(*(path for path, leaf in paths if id(leaf) in chosen))


def make_optimizer(
    model: nnx.Module,
    tx: optax.GradientTransformation,
    config: LNTuningConfig | Selection,
    *,
    norms: Iterable[str] | None = None,
    name_map: str | NameMap | None = None,
) -> nnx.Optimizer:
    """Makes the `nnx.Optimizer` of the leaves that `config` trains; its `wrt` is their filter.

    Its state holds nothing of the rest. Leaves of lower precision than `config.param_dtype` are
    updated through float32 masters, so that small steps on a bfloat16 model are not lost.

    Args:
        model: the module to tune.
        tx: the optimizer of the trainable leaves.
        config: which leaves train, and in which precision; or a `Selection`.
        norms: module paths that are norms, as in `partition_params`.
        name_map: as in `partition_params`, where the layers are stacked.

    Raises:
        ConfigError: the config is meant for inference.
        SelectionError: nothing trains, a target holds no norm, or `model_type` is unknown.
        TreeError: `model` is no module.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> from flax import nnx
        >>> import lntune_jax as lnt
        >>> rngs = nnx.Rngs(0)
        >>> model = nnx.Sequential(nnx.Linear(2, 2, rngs=rngs), nnx.RMSNorm(2, rngs=rngs))
        >>> optimizer = make_optimizer(model, optax.sgd(1.0), lnt.LNTuningConfig())
        >>> def loss_fn(model):
        ...     return model.layers[1].scale.sum() + model.layers[0].kernel.sum()
        >>> grads = nnx.grad(loss_fn, argnums=nnx.DiffState(0, optimizer.wrt))(model)
        >>> _ = optimizer.update(model, grads)
        >>> model.layers[1].scale[...].tolist(), bool((model.layers[0].kernel[...] == 0).any())
        ([0.0, 0.0], False)
    """
    refuse_inference(config)
    if not isinstance(model, nnx.Module):
        raise TreeError(
            f"make_optimizer needs an nnx.Module, not {type(model).__name__}: a plain tree goes to "
            "lntune_jax.make_optimizer or partition_params"
        )
    wrt = make_filter(config, model, norms=norms, name_map=name_map)
    return nnx.Optimizer(model, keep_masters(tx, get_config(config).param_dtype), wrt=wrt)


def _get_label(leaf: Any, labels: Any) -> str | None:
    """The label of a variable, from those of the leaves that it holds.

    Raises:
        TreeError: some of them train and others do not.
    """
    own = set(jax.tree.leaves(read_variable(labels)))
    if len(own) > 1:
        raise TreeError(
            f"an nnx.{type(leaf).__name__} holds several leaves of which the config trains some "
            "only, and a filter takes a variable whole: name its module in modules_to_save, or "
            "keep each array in a variable of its own"
        )
    return next(iter(own), None)


def list_variables(tree: Any) -> list[Any]:
    """The variables of a module or of a tree like it, in JAX's order of leaves.

    Example:
        >>> from flax import nnx
        >>> [type(leaf).__name__ for leaf in list_variables(nnx.RMSNorm(2, rngs=nnx.Rngs(0)))]
        ['Param']
    """
    return jax.tree.leaves(tree, is_leaf=lambda x: isinstance(x, nnx.Variable))


def read_variable(leaf: Any) -> Any:
    """The value of a variable; anything else as it is.

    Example:
        >>> read_variable(1)
        1
    """
    return leaf.get_value() if isinstance(leaf, nnx.Variable) else leaf

"""Keras 3 models on the JAX backend: their variables as a tree, and their norms by layer type.

Keras names each variable by a path (`encoder/layer_normalization/gamma`), and `stateless_call`
takes lists without names; these functions go from one to the other. Nothing here imports Keras.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ..compat import list_keras_layers
from ..config import LNTuningConfig
from ..errors import TreeError
from ..selection.labels import TRAINABLE, label_params
from ..selection.norms import NORM, judge_name
from ..selection.selection import Selection
from ..training.optimizer import refuse_inference


def get_params(model: Any) -> dict[str, Any]:
    """The trainable variables of a Keras model, `{variable.path: array}`, in Keras' order.

    Running statistics and seeds are `model.non_trainable_variables` and not among them.

    Raises:
        TreeError: two variables have one path, or the model is not built.

    Example:
        >>> import keras
        >>> model = keras.Sequential([keras.layers.LayerNormalization(name="norm")], name="m")
        >>> _ = model.build((None, 4))
        >>> [(path, array.shape) for path, array in get_params(model).items()]
        [('m/norm/gamma', (4,)), ('m/norm/beta', (4,))]
    """
    params: dict[str, Any] = {}
    for variable in model.trainable_variables:
        if variable.path in params:
            raise TreeError(
                f"two variables of the Keras model have the path {variable.path!r}: give their "
                "layers names of their own (name=...)"
            )
        params[variable.path] = variable.value
    if not params:
        raise TreeError(
            "the Keras model has no trainable variables: build it first (model.build(shape), or "
            "call it once), and pass it before freezing any of it"
        )
    return params


def list_values(model: Any, params: Mapping[str, Any]) -> list[Any]:
    """The values of `params` in the order that `model.stateless_call` takes them.

    Args:
        model: the Keras model.
        params: `{variable.path: array}`, as `get_params` gave it, or what `merge_params` or
            `restore_adapter` made of it.

    Raises:
        TreeError: a variable of the model has no value in `params`, or a value no variable.

    Example:
        >>> import jax.numpy as jnp, keras
        >>> model = keras.Sequential([keras.layers.LayerNormalization(name="norm")], name="m")
        >>> _ = model.build((None, 4))
        >>> params = get_params(model) | {"m/norm/beta": jnp.ones(4)}
        >>> y, state = model.stateless_call(list_values(model, params), [], jnp.zeros((1, 4)))
        >>> y.tolist()
        [[1.0, 1.0, 1.0, 1.0]]
    """
    paths = [variable.path for variable in model.trainable_variables]
    missing = [path for path in paths if path not in params]
    extra = sorted(params.keys() - {variable.path for variable in model.variables})
    if missing or extra:
        found = (
            f"no values for {missing[:5]}" if missing else f"values for {extra[:5]} which it lacks"
        )
        raise TreeError(
            f"params does not fit the variables of the Keras model: {found}. Pass what get_params "
            "made from this model, or from one whose layers, and itself, have the same names"
        )
    return [params[path] for path in paths]


def assign_params(model: Any, params: Mapping[str, Any]) -> None:
    """Writes the values of `params` into the trainable variables of the model.

    Raises:
        TreeError: a variable of the model has no value in `params`.

    Example:
        >>> import jax.numpy as jnp, keras
        >>> model = keras.Sequential([keras.layers.LayerNormalization(name="norm")], name="m")
        >>> _ = model.build((None, 2))
        >>> assign_params(model, get_params(model) | {"m/norm/gamma": jnp.zeros(2)})
        >>> model.layers[0].gamma.value.tolist()
        [0.0, 0.0]
    """
    values = list_values(model, params)
    for variable, value in zip(model.trainable_variables, values, strict=True):
        variable.assign(value)


def norm_modules(model: Any) -> frozenset[str]:
    """The paths of all LayerNorm and RMSNorm layers of a Keras model, by their type.

    A layer is one if it has no layers below it and its class, or a class it derives from, is called
    one: `LayerNormalization` and `RMSNormalization` of Keras, `LlamaLayerNorm` of KerasHub, but not
    `BatchNormalization` or `GroupNormalization`, whatever name the layer itself was given.

    Returns:
        Module paths for `partition_params(params, config, norms=...)`.

    Example:
        >>> import keras
        >>> batch = keras.layers.BatchNormalization(name="norm_1")
        >>> layer = keras.layers.LayerNormalization(name="second")
        >>> model = keras.Sequential([batch, layer], name="m")
        >>> _ = model.build((None, 4))
        >>> sorted(norm_modules(model))
        ['m.second']
    """
    return frozenset(
        ".".join(variable.path.split("/")[:-1])
        for layer in list_keras_layers(model)
        if _is_norm(layer)
        for variable in layer.weights
    )


def train_only(
    model: Any, config: LNTuningConfig | Selection, *, norms: Iterable[str] | None = None
) -> int:
    """Freezes a Keras model but for what the config trains, so that `model.fit` tunes its norms.

    Sets `trainable` of each variable; compile the model after it, not before.

    Args:
        model: a built Keras model. It is changed.
        config: which variables train.
        norms: module paths that are norms, as in `partition_params`; None asks `norm_modules`.

    Returns:
        How many variables train.

    Raises:
        SelectionError: nothing trains, or a target holds no norm.
        ConfigError: the config is meant for inference.

    Example:
        >>> import keras
        >>> import lntune_jax as lnt
        >>> layers = [keras.layers.Dense(4), keras.layers.LayerNormalization(name="norm")]
        >>> model = keras.Sequential(layers, name="m")
        >>> _ = model.build((None, 4))
        >>> train_only(model, lnt.LNTuningConfig())
        2
        >>> [variable.path for variable in model.trainable_variables]
        ['m/norm/gamma', 'm/norm/beta']
    """
    refuse_inference(config)
    if norms is None and not isinstance(config, Selection):
        norms = norm_modules(model)
    labels = label_params(get_params(model), config, norms=norms)
    for variable in model.trainable_variables:
        variable.trainable = labels[variable.path] == TRAINABLE
    return sum(label == TRAINABLE for label in labels.values())


def _is_norm(layer: Any) -> bool:
    is_single = len(list_keras_layers(layer)) == 1
    return is_single and any(judge_name(kind.__name__) == NORM for kind in type(layer).__mro__)

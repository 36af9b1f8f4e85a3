"""LayerNorm tuning in Tunix: its `PeftTrainer` trains and saves `nnx.LoRAParam` variables only.

So the norms that a config selects become variables of that kind; nothing else is needed, and
nothing here imports Tunix. Any trainer that goes by the type of NNX variables takes such a model.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any

from flax import nnx

from ._config import LNTuningConfig
from ._optimizer import refuse_inference
from ._partition import partition_params
from ._paths import join


def mark_trainable(
    model: nnx.Module, config: LNTuningConfig, *, norms: Iterable[str] | None = None
) -> list[str]:
    """Turns the parameters that the config trains into `nnx.LoRAParam`; the model is changed.

    A leaf of lower precision than `config.param_dtype` becomes a float32 one, since small steps on
    a bfloat16 norm round to nothing; with `param_dtype=None` it keeps its own. Sharding and other
    metadata are kept. With LoRA of qwix too, apply that first: both then train together.

    Args:
        model: an NNX module. Its LoRA parameters, if it has some, stay as they are.
        config: which parameters train.
        norms: module paths that are norms, as in `partition_params`.

    Returns:
        The leaf paths of the parameters that were turned.

    Raises:
        ConfigError: the config is meant for inference.
        SelectionError: nothing trains, or a target holds no norm.

    Example:
        >>> import lntune_jax as lnt
        >>> from flax import nnx
        >>> rngs = nnx.Rngs(0)
        >>> model = nnx.Sequential(nnx.Linear(4, 4, rngs=rngs), nnx.RMSNorm(4, rngs=rngs))
        >>> mark_trainable(model, lnt.LNTuningConfig(), norms=lnt.norm_modules(model))
        ['layers.1.scale']
        >>> [path for path, _ in nnx.to_flat_state(nnx.state(model, nnx.LoRAParam))]
        [('layers', 1, 'scale')]
    """
    refuse_inference(config)
    base = nnx.state(model, nnx.All(nnx.Param, nnx.Not(nnx.LoRAParam)))
    trainable = partition_params(base, config, norms=norms).trainable
    for path, variable in nnx.to_flat_state(base):
        name = join(tuple(str(key) for key in path))
        if name in trainable:
            *parents, attribute = path
            module = functools.reduce(_get_child, parents, model)
            marked = nnx.LoRAParam(trainable[name], **variable.get_metadata())
            setattr(module, str(attribute), marked)
    return list(trainable)


def _get_child(node: Any, key: Any) -> Any:
    return getattr(node, key) if isinstance(key, str) and hasattr(node, key) else node[key]

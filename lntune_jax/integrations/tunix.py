"""LayerNorm tuning in Tunix: its `PeftTrainer` trains and saves `nnx.LoRAParam` variables only.

So the norms that a config selects become variables of that kind; nothing else is needed, and
nothing here imports Tunix. Any trainer that goes by the type of NNX variables takes such a model.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from flax import nnx

from ..config import LNTuningConfig
from ..errors import TreeError
from ..precision import widen
from ..selection.roles import TRAINABLE_ROLES
from ..selection.select import select
from ..selection.selection import TRAINABLE, Selection
from ..training.optimizer import refuse_inference
from .nnx import list_variables, read_variable


def mark_trainable(
    model: nnx.Module, config: LNTuningConfig | Selection, *, norms: Iterable[str] | None = None
) -> list[str]:
    """Turns the parameters that the config trains into `nnx.LoRAParam`; the model is changed.

    A leaf of lower precision than `config.param_dtype` becomes a float32 one, since small steps on
    a bfloat16 norm round to nothing; with `param_dtype=None` it keeps its own. Sharding and other
    metadata are kept. With LoRA of qwix too, apply that first: both then train together.

    Args:
        model: an NNX module, whose norms are known by their types (those of other classes than
            Flax's by names and shapes). Its LoRA parameters, if it has some, stay as they are.
        config: which parameters train.
        norms: module paths that are norms, as in `partition_params`.

    Returns:
        The leaf paths of the parameters that were turned.

    Raises:
        ConfigError: the config is meant for inference.
        SelectionError: nothing trains, or a target holds no norm.
        TreeError: a selected variable is no attribute of a module; nothing has been turned then.

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
    selection = select(model, config, norms=norms)
    names = [leaf.path for leaf in selection.leaves if leaf.role in TRAINABLE_ROLES]
    pairs = zip(list_variables(model), list_variables(selection.labels()), strict=True)
    variables = [leaf for leaf, label in pairs if read_variable(label) == TRAINABLE]
    turned: dict[str, Any] = {}
    marked: dict[int, nnx.LoRAParam] = {}
    for name, variable in zip(names, variables, strict=True):
        if not isinstance(variable, nnx.LoRAParam):
            turned[name] = variable
            value = widen(read_variable(variable), selection.config.param_dtype)
            marked[id(variable)] = nnx.LoRAParam(value, **variable.get_metadata())
    # Wherever a variable is used, or the second use of a shared one would stay as it was.
    modules = [node for _, node in nnx.iter_graph(model) if isinstance(node, nnx.Module)]
    places = [
        (module, attribute, value)
        for module in modules
        for attribute, value in vars(module).items()
        if id(value) in marked
    ]
    found = {id(value) for *_, value in places}
    for name, variable in turned.items():
        if id(variable) not in found:
            raise TreeError(
                f"{name!r} is no attribute of a module, where alone a variable can be replaced: "
                "keep it in nnx.List or nnx.Dict, or leave it out with exclude_modules"
            )
    for module, attribute, value in places:
        setattr(module, attribute, marked[id(value)])
    return list(turned)

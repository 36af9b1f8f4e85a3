"""LoRA on the library's own models by qwix, which wraps their Flax NNX modules."""

from dataclasses import replace
from typing import Any

import jax
import qwix
from flax import nnx

from lntune_jax.models.families import decoders, encoders
from lntune_jax.models.families.bert import prepare_inputs
from lntune_jax.models.families.registry import FAMILIES
from lntune_jax.models.inputs import prepare_decoder_inputs
from lntune_jax.models.types import Options
from tests.support.step_problems import Problem, make_loss, make_params

# What PEFT adapts by default: queries and values, or GPT-2's one product for all three.
TARGETS = r".*/(query|value|q_proj|v_proj|c_attn)"


def make_lora(problem: Problem, rank: int) -> tuple[Any, Any, Any]:
    """A loss `loss(trainable, frozen, batch)`, the factors with a classifier's head, the rest."""
    model = problem.model
    provider = qwix.LoraProvider(module_path=TARGETS, rank=rank, alpha=rank)

    def make() -> Any:
        family = FAMILIES[model.settings.model_type]
        given = family, model.settings, model.task, Options()
        if model.task == "CAUSAL_LM":
            module = decoders.make_module(*given)
        else:
            module = encoders.make_module(*given, pooler=True)
        inputs = _read(model, problem.batch["ids"])
        options: dict[str, Any] = {"methods": ("outputs",), "rngs": nnx.Rngs(0)}
        return qwix.apply_lora_to_model(module, provider, *inputs, **options)

    graph, factors, head, rest = nnx.split(
        nnx.eval_shape(make), nnx.LoRAParam, lambda path, _: path[0] == "classifier", ...
    )
    own = {"factors": nnx.to_pure_dict(factors), "head": nnx.to_pure_dict(head)}

    def loss(trainable: Any, frozen: Any, batch: Any) -> jax.Array:
        def apply(params: Any, ids: jax.Array, *_: Any, **__: Any) -> Any:
            module = nnx.merge(graph, trainable["factors"], trainable["head"], params)
            return module.outputs(*_read(model, ids))

        return make_loss(replace(model, apply=apply))(frozen, batch)

    return loss, make_params(own), _take(problem.params, nnx.to_pure_dict(rest))


def _read(model: Any, ids: jax.Array) -> tuple[Any, ...]:
    """The arguments of a module's `outputs`."""
    if model.task == "CAUSAL_LM":
        return prepare_decoder_inputs(ids, None, None, None, None, None), None, False
    return prepare_inputs(model.settings, ids, None, None, None), None


def _take(params: Any, shapes: Any) -> Any:
    """The weights in the module's own tree, whose layers have numbers for names."""
    if not isinstance(shapes, dict):
        return params
    return {key: _take(params[str(key)], below) for key, below in shapes.items()}

"""The Flax classes of transformers 4, the last version that has them: two functions to copy.

They run on today's JAX and Flax, but read less of a config than their PyTorch siblings, without a
word. `check_model` refuses a model whose logits would be wrong; `mend_clip` lets T5 run. Both were
held against transformers 4.57.6. For Llama, Mistral and Gemma in all their forms there is
`lntune_jax.models`.
"""

from __future__ import annotations

import importlib
import types
from typing import Any

import jax
import jax.numpy as jnp

from lntune_jax.errors import ModelError

ROPE_THETA = 10000.0  # written into create_sinusoidal_positions of all three
_ROTARY = ("llama", "mistral", "gemma")
_MENDED = ("t5", "longt5")


def check_model(model: Any, *, length: int | None = None) -> None:
    """Refuses a Flax model of transformers 4 that does not compute what its config says.

    Call it on what `FlaxAuto...from_pretrained` returned. A model of another architecture than
    Llama, Mistral and Gemma passes.

    Args:
        model: a Flax model of transformers, or its config.
        length: the most tokens in a sequence that it will be given; None is
            `max_position_embeddings`. It matters to Mistral's sliding window.

    Raises:
        ModelError: the config asks for what the Flax class leaves out; the message has its name.

    Example:
        >>> import lntune_jax as lnt
        >>> from transformers import LlamaConfig
        >>> check_model(LlamaConfig())
        >>> try:
        ...     check_model(LlamaConfig(rope_theta=500000.0))
        ... except lnt.errors.ModelError as error:
        ...     print(str(error).split(":")[0])
        FlaxLlama ignores rope_theta=500000.0 and computes with 10000.0
    """
    config = getattr(model, "config", model)
    kind = getattr(config, "model_type", None)
    if kind is None:
        raise ModelError(f"model must be a Flax model of transformers, not {type(model).__name__}")
    if kind not in _ROTARY:
        return
    fault = _find_fault(kind, config, length)
    if fault:
        raise ModelError(
            f"Flax{kind.capitalize()} ignores {fault}: its logits would be wrong, and norms tuned "
            "against them too. Load the checkpoint with lntune_jax.models.from_pretrained"
        )


def mend_clip() -> list[str]:
    """Lets the T5 and LongT5 of transformers 4 call `jnp.clip` by its old argument names.

    They pass `a_max=`, which JAX has since renamed. The two modules of transformers get a copy of
    the `jax.numpy` namespace with a `clip` that knows both; `jax.numpy` itself is not touched.
    Calling it again changes nothing.

    Returns:
        The modules that were mended.

    Raises:
        ModelError: there is no transformers with Flax classes.

    Example:
        >>> [name.rpartition(".")[2] for name in mend_clip()]
        ['modeling_flax_t5', 'modeling_flax_longt5']
    """
    names = [f"transformers.models.{kind}.modeling_flax_{kind}" for kind in _MENDED]
    numpy = types.SimpleNamespace(**vars(jnp) | {"clip": _clip})
    for name in names:
        try:
            module: Any = importlib.import_module(name)
        except ImportError as error:
            raise ModelError(
                f"{name} cannot be imported ({error}): transformers 5 has no Flax classes, install "
                "transformers==4.57.6"
            ) from error
        module.jnp = numpy
    return names


def _find_fault(kind: str, config: Any, length: int | None) -> str | None:
    """The first entry of a config that the Flax class does not honour, and what it does."""
    theta = getattr(config, "rope_theta", ROPE_THETA)
    if theta != ROPE_THETA:
        return f"rope_theta={theta} and computes with {ROPE_THETA}"
    if getattr(config, "rope_scaling", None):
        return f"rope_scaling={config.rope_scaling}"
    if kind != "gemma" and config.tie_word_embeddings:
        return "tie_word_embeddings=True and makes a head of its own, drawn at random"
    if getattr(config, "mlp_bias", False):
        return "mlp_bias=True and drops the biases"
    if kind == "mistral":
        if config.sliding_window is None:
            return "sliding_window=None and lets each token see itself only"
        length = config.max_position_embeddings if length is None else length
        if config.sliding_window < length:
            return (
                f"the last place of sliding_window={config.sliding_window} in sequences longer "
                f"than that, and length is {length}: pass length= if they are shorter"
            )
    return None


def _clip(
    x: Any, min: Any = None, max: Any = None, *, a_min: Any = None, a_max: Any = None
) -> jax.Array:
    return jnp.clip(x, a_min if min is None else min, a_max if max is None else max)

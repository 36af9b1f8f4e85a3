"""One LayerNorm-tuning run, done twice: by PEFT with torch, and by us with JAX.

Both start from the same weights and read the same batches in the same order; both use AdamW with
torch's defaults (betas 0.9 and 0.999, eps 1e-8, decoupled decay on every trainable tensor).
"""

import functools
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
import peft
import torch

import lntune_jax as lnt
from lntune_jax.integrations.torchax import TorchModel, from_torch
from tests.support.parity.exchange import wrap
from tests.support.parity.small_models import as_tensors, make, make_batch
from tests.support.small import relax

STEPS, BATCHES, LEARNING_RATE = 50, 4, 3e-2
DECAYS = (0.0, 0.1)  # torch's default, 0.01, is too small to be seen in 50 steps

# What PEFT is asked for; all but `target_modules` is its default for the architecture.
PEFT_FIELDS: dict[str, dict[str, Any]] = {
    "llama": {"task_type": "CAUSAL_LM"},
    "bert": {"task_type": "SEQ_CLS", "target_modules": ["LayerNorm"]},  # which has no default
    "gpt2": {"task_type": "CAUSAL_LM"},
    "t5": {"task_type": "SEQ_2_SEQ_LM"},
    "gemma2": {"task_type": "CAUSAL_LM"},
    "bart": {"task_type": "SEQ_2_SEQ_LM"},
}

# T5's own ReLU has kinks: where two runs fall on different sides of one, a step makes them part.
CHANGES = {"t5": {"feed_forward_proj": "gated-gelu"}}  # as in T5 v1.1 and Flan-T5


class Run(NamedTuple):
    """What a training run left.

    Attributes:
        losses: one for each step, before the step.
        values: what trained, by the names that the module itself has for its parameters.
    """

    losses: np.ndarray
    values: dict[str, np.ndarray]


class Ours(NamedTuple):
    """A module on our side."""

    model: TorchModel
    config: lnt.LNTuningConfig
    trainable: dict[str, Any]
    frozen: Any


def make_config(name: str) -> lnt.LNTuningConfig:
    """Our config for the same modules."""
    fields = PEFT_FIELDS[name]
    heads = ["classifier"] if fields["task_type"] == "SEQ_CLS" else None
    return lnt.LNTuningConfig(**fields, model_type=name, modules_to_save=heads)


def make_module(name: str) -> torch.nn.Module:
    """The small model of a family, a new one on each call."""
    return make(name, **CHANGES.get(name, {}))


@functools.cache
def make_ours(name: str) -> Ours:
    """The small model of a family, taken over to JAX and partitioned."""
    model, config = from_torch(make_module(name)), make_config(name)
    return Ours(model, config, *lnt.partition_params(model.params, config, norms=model.norms))


@functools.cache
def make_batches(name: str) -> tuple[dict[str, np.ndarray], ...]:
    """A few batches; a run goes over them again and again."""
    return tuple(make_batch(name, seed) for seed in range(BATCHES))


@functools.cache
def train_with_peft(name: str, decay: float) -> tuple[Run, peft.PeftModel]:
    """PEFT's run on the small model of a family. Callers must not change the model."""
    wrapped = wrap(make_module(name), **PEFT_FIELDS[name])
    losses = run_peft(wrapped, make_batches(name), STEPS, LEARNING_RATE, decay)
    return Run(losses, get_values(wrapped)), wrapped


def run_peft(
    wrapped: peft.PeftModel, batches: Any, steps: int, learning_rate: float, decay: float
) -> np.ndarray:
    """Trains in place; returns the losses. Dropout is off: the model stays in eval mode."""
    wrapped.eval()
    parameters = [p for p in wrapped.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, learning_rate, eps=1e-8, weight_decay=decay)
    losses = []
    for step in range(steps):
        loss = wrapped(**as_tensors(batches[step % len(batches)])).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return np.array(losses)


def get_values(wrapped: peft.PeftModel) -> dict[str, np.ndarray]:
    """What trains in a PEFT model, by the names in the module that it wraps."""
    return {
        clean(name): parameter.detach().float().numpy().copy()
        for name, parameter in wrapped.base_model.model.named_parameters()
        if parameter.requires_grad
    }


def clean(name: str) -> str:
    """A parameter's own name, without the marks of PEFT's two kinds of copies."""
    return name.replace(".ln_tuning_layers.default", "").replace(".modules_to_save.default", "")


@functools.cache
def make_step(name: str) -> Any:
    """Our step, compiled once for all decays: the decay is an argument."""
    model = make_ours(name).model

    def make_tx(decay: Any) -> optax.GradientTransformationExtraArgs:
        return relax(optax.adamw(LEARNING_RATE, eps=1e-8, weight_decay=decay))

    def step(trainable: Any, state: Any, frozen: Any, batch: Any, decay: Any) -> Any:
        def loss_fn(params: Any, batch: Any) -> Any:
            return model.apply(params, **batch).loss

        loss, grads = lnt.value_and_grad(loss_fn)(trainable, frozen, batch)
        updates, state = make_tx(decay).update(grads, state, trainable)
        return optax.apply_updates(trainable, updates), state, loss

    return jax.jit(step), make_tx(0.0).init


@functools.cache
def train_with_ours(name: str, decay: float) -> Run:
    """Our run on the small model of a family."""
    ours = make_ours(name)
    step, init = make_step(name)
    batches, trainable, losses = make_batches(name), ours.trainable, []
    state = init(trainable)
    for index in range(STEPS):
        batch = batches[index % len(batches)]
        trainable, state, loss = step(trainable, state, ours.frozen, batch, np.float32(decay))
        losses.append(float(loss))
    return Run(np.array(losses), {name: np.asarray(value) for name, value in trainable.items()})


def find_deviation(found: Any, expected: Any) -> float:
    """The largest difference, relative to the largest entry of what was expected."""
    return float(np.abs(found - expected).max() / np.abs(expected).max())

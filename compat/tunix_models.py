"""Small models of Tunix's families with random weights, and its trainer around them."""

import dataclasses
import functools
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from tunix.sft import peft_trainer
from tunix.sft.utils import build_positions_from_mask, make_causal_attn_mask

SIZES = {"num_layers": 2, "embed_dim": 32, "hidden_dim": 48, "num_heads": 4, "head_dim": 8}
SIZES |= {"num_kv_heads": 2, "vocab_size": 64, "num_embed": 64, "rope_theta": 10_000}
SIZES |= {"sliding_window_size": 8, "param_dtype": jnp.float32}
FAMILIES = {
    "llama3": ("llama3", "Llama3", "llama3p1_8b"),
    "qwen2": ("qwen2", "Qwen2", "qwen2p5_7b"),
    "qwen3": ("qwen3", "Qwen3", "qwen3_8b"),
    "gemma": ("gemma", "Gemma", "gemma_2b"),
    "gemma2": ("gemma", "Gemma", "gemma2_2b"),
    "gemma3": ("gemma3", "Gemma3", "gemma3_1b_it"),
}


def make_model(family, **changes):
    """The same random weights each time, in every leaf: Tunix begins with zeros in some."""
    name, kind, size = FAMILIES[family]
    module = importlib.import_module(f"tunix.models.{name}.model")
    config = getattr(module.ModelConfig, size)()
    fields = {field.name for field in dataclasses.fields(config)}
    sizes = {key: value for key, value in (SIZES | changes).items() if key in fields}
    if "attention_types" in fields:
        sizes["attention_types"] = tuple(config.attention_types)[: SIZES["num_layers"]]
    config = dataclasses.replace(config, **sizes)
    model = getattr(module, kind)(config, rngs=nnx.Rngs(0))
    keys = iter(jax.random.split(jax.random.key(0), 100))

    def add_noise(leaf):
        return leaf + 0.1 * jax.random.normal(next(keys), leaf.shape, leaf.dtype)

    nnx.update(model, jax.tree.map(add_noise, nnx.state(model, nnx.Param)))
    return model


def list_norms(model):
    """The paths of the modules of Tunix's own norm class."""
    found = nnx.iter_modules(model)
    return {".".join(map(str, path)) for path, module in found if _is_norm(type(module))}


def _is_norm(kind):
    return kind.__name__ == "RMSNorm" and kind.__module__.startswith("tunix.models.")


def copy_params(model):
    """A copy of the parameters: the trainer updates them in place."""
    return jax.tree.map(jnp.copy, nnx.state(model, nnx.Param))


def make_inputs(batch):
    mask = batch.input_mask
    return {
        "input_tokens": batch.input_tokens,
        "input_mask": mask,
        "positions": build_positions_from_mask(mask),
        "attention_mask": make_causal_attn_mask(mask),
    }


@functools.cache
def make_batch():
    tokens = np.random.default_rng(0).integers(0, 16, (4, 12)).astype("int32")
    return peft_trainer.TrainingInput(input_tokens=tokens, input_mask=np.ones((4, 12), bool))


def train(model, directory, steps, learning_rate=1e-2):
    """Runs Tunix's `PeftTrainer` up to `steps`, from its checkpoint where there is one."""
    settings = peft_trainer.TrainingConfig(
        eval_every_n_steps=1000, max_steps=steps, checkpoint_root_directory=str(directory)
    )
    trainer = peft_trainer.PeftTrainer(model, optax.adamw(learning_rate), settings)
    trainer = trainer.with_gen_model_input_fn(make_inputs)
    trainer.train([make_batch()] * steps)
    return trainer


def run(model):
    """The logits for the batch."""
    inputs = make_inputs(make_batch())
    return model(inputs["input_tokens"], inputs["positions"], None, inputs["attention_mask"])[0]


def measure_loss(model):
    """Tunix's own loss."""
    return float(peft_trainer._default_loss_fn(model, **make_inputs(make_batch())))

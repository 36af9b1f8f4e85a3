"""LayerNorm tuning with Tunix's own trainer, which trains and checkpoints the norms only.

Run: python examples/packages/tunix_trainer.py
"""

import tempfile

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from tunix.models.llama3.model import Llama3, ModelConfig
from tunix.sft.peft_trainer import PeftTrainer, TrainingConfig, TrainingInput
from tunix.sft.utils import build_positions_from_mask, make_causal_attn_mask

import lntune_jax as lnt

SIZES = ModelConfig(
    num_layers=2,
    vocab_size=64,
    embed_dim=32,
    hidden_dim=48,
    num_heads=4,
    head_dim=8,
    num_kv_heads=2,
    rope_theta=10_000,
    norm_eps=1e-5,
)


def make_model():
    """Stands for a pretrained model: random weights, the same ones each time."""
    model = Llama3(SIZES, rngs=nnx.Rngs(0))
    keys = iter(jax.random.split(jax.random.key(0), 100))

    def add_noise(leaf):
        return leaf + 0.1 * jax.random.normal(next(keys), leaf.shape)

    nnx.update(model, jax.tree.map(add_noise, nnx.state(model, nnx.Param)))
    return model


def make_inputs(batch):
    mask = batch.input_mask
    return {
        "input_tokens": batch.input_tokens,
        "input_mask": mask,
        "positions": build_positions_from_mask(mask),
        "attention_mask": make_causal_attn_mask(mask),
    }


def make_batches(count):
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 16, (4, 12)).astype("int32")
    return [TrainingInput(input_tokens=tokens, input_mask=np.ones((4, 12), bool))] * count


def train(model, folder, steps):
    """What you have today; the model's marked norms are all that it trains and saves."""
    settings = TrainingConfig(
        eval_every_n_steps=1000, max_steps=steps, checkpoint_root_directory=f"{folder}/run"
    )
    trainer = PeftTrainer(model, optax.adamw(1e-2), settings).with_gen_model_input_fn(make_inputs)
    trainer.train(make_batches(steps))
    return trainer


def measure_loss(model):
    from tunix.sft.peft_trainer import _default_loss_fn

    return float(_default_loss_fn(model, **make_inputs(make_batches(1)[0])))


def main():
    model = make_model()
    params = jax.tree.map(jnp.copy, nnx.state(model, nnx.Param))  # the base, before training
    config = lnt.LNTuningConfig()  # or target_modules=["final_norm"], ...
    marked = lnt.integrations.tunix.mark_trainable(model, config)
    print("trains:", *marked)

    with tempfile.TemporaryDirectory() as folder:
        print(f"loss {measure_loss(model):.3f}")
        train(model, folder, 10)
        print(f"loss {measure_loss(model):.3f} after 10 steps")

        resumed = make_model()  # another process: mark it, and PeftTrainer finds its checkpoint
        lnt.integrations.tunix.mark_trainable(resumed, config)
        trainer = train(resumed, folder, 30)
        print(f"loss {measure_loss(resumed):.3f} after {trainer.train_steps}")

        trainable = lnt.partition_params(nnx.state(resumed, nnx.Param), config).trainable
        lnt.save_adapter(f"{folder}/adapter", trainable, config, base=params)

        fresh = make_model()
        restored = lnt.restore_adapter(f"{folder}/adapter", nnx.state(fresh, nnx.Param))
        nnx.update(fresh, restored)
        print(f"restored: identical {measure_loss(fresh) == measure_loss(resumed)}")


if __name__ == "__main__":
    main()

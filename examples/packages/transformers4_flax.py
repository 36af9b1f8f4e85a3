"""LayerNorm tuning of a Flax model of transformers 4, the last version that has them.

Run: python examples/packages/transformers4_flax.py
"""

import tempfile

import numpy as np
import optax
from transformers import FlaxGPT2LMHeadModel, GPT2Config, LlamaConfig
from transformers4_checks import check_model  # beside this file

import lntune_jax as lnt


def make_model():
    """Stands for `FlaxGPT2LMHeadModel.from_pretrained(...)`."""
    sizes = GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=64)
    return FlaxGPT2LMHeadModel(sizes, seed=0)


def main():
    model = make_model()
    check_model(model)  # an error where the Flax class is silently wrong
    try:
        check_model(LlamaConfig(rope_theta=500_000.0))
    except lnt.errors.ModelError as error:
        print(f"refused: {error}")

    config = lnt.LNTuningConfig(model_type="gpt2")  # ln_1, ln_2, ln_f
    trainable, frozen = lnt.partition_params(model.params, config)
    print(f"trains {len(trainable)} leaves")

    def loss_fn(params, tokens):
        logits = model(tokens, params=params, train=False).logits[:, :-1]
        return optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:]).mean()

    tx = lnt.adamw(config, 1e-2)
    step = lnt.make_train_step(loss_fn, tx, config)
    state = lnt.TrainState.create(trainable, tx)
    tokens = np.random.default_rng(0).integers(0, 16, (4, 12))
    for index in range(50):
        state, metrics = step(state, frozen, tokens)
        if index in (0, 49):
            print(f"step {index:3d}  loss {metrics['loss']:.3f}")
    tuned = lnt.merge_params(state.trainable, frozen)

    with tempfile.TemporaryDirectory() as folder:
        lnt.save_adapter(f"{folder}/adapter", state.trainable, config, base=model.params)
        fresh = make_model()
        fresh.params = lnt.restore_adapter(f"{folder}/adapter", fresh.params)
    same = np.array_equal(fresh(tokens).logits, model(tokens, params=tuned).logits)
    print(f"restored into a fresh model: identical {same}")


if __name__ == "__main__":
    main()

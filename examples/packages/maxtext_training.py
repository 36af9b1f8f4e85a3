"""LayerNorm tuning with MaxText's own optimizer: our config writes its `trainable_parameters_mask`.

Run: python examples/packages/maxtext_training.py
"""

import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import maxtext
import numpy as np
import optax
from flax import nnx
from maxtext.configs import pyconfig
from maxtext.optimizers import optimizers
from maxtext.utils import maxtext_utils, model_creation_utils

import lntune_jax as lnt

SIZES = {
    "base_num_decoder_layers": 3,
    "base_emb_dim": 32,
    "base_mlp_dim": 48,
    "base_num_query_heads": 4,
    "base_num_kv_heads": 2,
    "head_dim": 8,
    "vocab_size": 64,
    "max_target_length": 12,
    "per_device_batch_size": 4,
    "dtype": "float32",
}


def read_settings(**changes):
    """What stands on MaxText's command line, here for a tiny Llama."""
    base = Path(maxtext.__file__).parent / "configs" / "base.yml"
    fixed = {"model_name": "llama3.1-8b", "override_model_config": True, "run_name": "norms"}
    fixed |= {"enable_checkpointing": False, "skip_jax_distributed_system": True}
    fixed |= {"attention": "dot_product", "hardware": "cpu", "base_output_directory": "/tmp"}
    settings = fixed | SIZES | changes
    return pyconfig.initialize(["", str(base), *(f"{k}={v}" for k, v in settings.items())])


def make_model(settings):
    """Stands for a model from a MaxText checkpoint: scanned layers, random weights."""
    mesh = jax.sharding.Mesh(maxtext_utils.create_device_mesh(settings), settings.mesh_axes)
    with jax.set_mesh(mesh):
        return model_creation_utils.from_config(
            settings, mesh=mesh, rngs=nnx.Rngs(params=0, dropout=1)
        )


def main():
    config = lnt.LNTuningConfig()
    mask = lnt.select(nnx.state(make_model(read_settings()), nnx.Param), config).patterns()
    print("trainable_parameters_mask:", *mask, sep="\n  ")

    settings = read_settings(trainable_parameters_mask=mask)  # also on the command line
    tx = optimizers.get_optimizer(settings, lambda step: 1e-2)
    graphdef, params, rest = nnx.split(make_model(settings), nnx.Param, ...)
    base = params
    opt_state = tx.init(params)
    print("optimizer state:", sum(leaf.size for leaf in jax.tree.leaves(opt_state)), "numbers")

    tokens = np.random.default_rng(0).integers(0, 16, (4, 12)).astype("int32")
    positions = jnp.broadcast_to(jnp.arange(12), (4, 12))

    def apply(params, tokens):
        model = nnx.merge(graphdef, params, rest)
        segments = jnp.ones_like(tokens)
        return model(tokens, positions, decoder_segment_ids=segments, enable_dropout=False)

    def loss_fn(params, tokens):
        logits = apply(params, tokens)[:, :-1]
        return optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:]).mean()

    @jax.jit
    def step(params, opt_state, tokens):
        loss, grads = jax.value_and_grad(loss_fn)(params, tokens)
        updates, opt_state = tx.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, loss

    for index in range(50):
        params, opt_state, loss = step(params, opt_state, tokens)
        if index in (0, 49):
            print(f"step {index:3d}  loss {loss:.3f}")

    trainable = lnt.partition_params(params, config).trainable
    with tempfile.TemporaryDirectory() as folder:
        lnt.save_adapter(f"{folder}/adapter", trainable, config, base=base)
        fresh = nnx.state(make_model(settings), nnx.Param)
        restored = lnt.restore_adapter(f"{folder}/adapter", fresh)
    same = np.array_equal(jax.jit(apply)(restored, tokens), jax.jit(apply)(params, tokens))
    print(f"restored into a fresh model: identical {same}")


if __name__ == "__main__":
    main()

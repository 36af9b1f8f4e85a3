"""AdamW where the layers are stacked: what decays, and which learning rate a leaf has."""

import jax
import jax.numpy as jnp
import pytest

import lntune_jax as lnt
from lntune_jax.models import from_config
from lntune_jax.training.optimizer import label_kinds
from tests.support.checkpoints import REFERENCE


def test_stacked_biases_and_norms_of_saved_modules_are_no_kernels():
    trainable = {
        "layers.attn.q_norm.scale": jnp.ones((3, 8)),
        "layers.attn.q_proj.bias": jnp.ones((3, 8)),
        "layers.attn.q_proj.kernel": jnp.ones((3, 8, 8)),
    }
    config = lnt.LNTuningConfig(modules_to_save=["attn"])
    tx = lnt.adamw(config, 1.0, weight_decay=0.1)
    with jax.numpy_dtype_promotion("standard"):
        zeros = jax.tree.map(jnp.zeros_like, trainable)
        updates, _ = tx.update(zeros, tx.init(trainable), trainable)
    moved = {path: float(jnp.abs(update).max()) for path, update in updates.items()}
    assert moved.pop("layers.attn.q_proj.kernel") == pytest.approx(0.1)
    assert set(moved.values()) == {0.0}


def test_patterns_of_layers_tell_the_head_of_a_scanned_model():
    model = from_config(REFERENCE / "decoders" / "llama", "CAUSAL_LM", scan_layers=True)
    config = lnt.LNTuningConfig(modules_to_save=[r".*layers\.\d+\.self_attn\.q_proj"])
    names = {"name_map": model.name_map}
    trainable, _ = lnt.partition_params(model.params, config, **names)
    kinds = label_kinds(trainable, config, **names)
    head = [path for path, kind in kinds.items() if kind == "head"]
    assert head
    assert all("q_proj" in path for path in head)
    tx = lnt.adamw(config, 1.0, head_learning_rate=0.5, **names)
    jax.eval_shape(tx.init, trainable)

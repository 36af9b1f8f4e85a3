"""A tuned adapter for a reference checkpoint, and the tensors of a directory."""

import warnings

import numpy as np
import pytest
from safetensors.numpy import load_file

import lntune_jax as lnt
from lntune_jax.errors import FreshWeightsWarning
from lntune_jax.models import from_pretrained, merge_checkpoint
from tests.support.checkpoints import REFERENCE

TOKENS = np.arange(8).reshape(2, 4) + 5


def tune(
    name,
    directory,
    task="SEQ_CLS",
    saved=("classifier",),
    scale=0.1,
    base=None,
    said=None,
    **options,
):
    """Save an adapter of moved leaves; the model with the adapter in place."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FreshWeightsWarning)
        model = from_pretrained(base or REFERENCE / name, task=task, **options)
    config = lnt.LNTuningConfig(task_type=task, modules_to_save=saved or None)
    trainable, _ = lnt.partition_params(model.params, config)
    random = np.random.default_rng(0)
    moved = {
        key: np.float32(value) + scale * random.normal(size=value.shape).astype(np.float32)
        for key, value in trainable.items()
    }
    lnt.save_adapter(directory, moved, config, base=model.params, task=said)
    return model, lnt.restore_adapter(directory, model.params)


def load_all(directory):
    tensors = {}
    for file in sorted(directory.glob("*.safetensors")):
        tensors |= load_file(file)
    return tensors


def is_norm(key):
    return "LayerNorm" in key


def refuse(error, match, base, adapter, target, **options):
    with pytest.raises(error, match=match):
        merge_checkpoint(base, adapter, target, **options)
    assert not target.exists()

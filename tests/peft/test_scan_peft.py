"""Stacked layers cross to PEFT by the numbers of their layers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lntune_jax as lnt
from lntune_jax.models import from_config
from tests.support.checkpoints import assert_same

TINY = {
    "model_type": "llama",
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}


@pytest.mark.parametrize(
    ("frozen", "pattern"), [(0, r".*\.\d+\..*norm"), (1, r"model\.norm|model\.layers\.1\..*norm")]
)
def test_numbered_layers_of_a_stack_cross_to_peft(frozen, pattern, tmp_path):
    options = {"scan_layers": True, "frozen_layers": frozen}
    model = from_config(TINY, "CAUSAL_LM", **options)
    generator = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: jnp.asarray(generator.normal(size=leaf.shape), leaf.dtype), model.params
    )
    config = lnt.LNTuningConfig(target_modules=pattern)
    trainable, rest = lnt.partition_params(params, config, name_map=model.name_map)
    moved = {path: leaf + 1 for path, leaf in trainable.items()}
    path = tmp_path / "peft"
    lnt.export_peft(path, moved, config, base=params, name_map=model.name_map)
    found = lnt.import_peft(path, params, name_map=model.name_map)
    assert_same(found, lnt.merge_params(moved, rest))

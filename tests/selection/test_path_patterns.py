"""Patterns for programs that freeze by regular expressions; MaxText itself is in `make compat`."""

import re

import jax
import jax.numpy as jnp
import pytest

import lntune_jax as lnt
from lntune_jax.errors import SelectionError

SCALE = jnp.ones(4)
TREE = {
    "norm": {"scale": SCALE},
    "decoder": {
        "norm": {"scale": SCALE},
        "norm_2": {"scale": SCALE},
        "layers": {"pre_norm": {"scale": jnp.ones((4, 3))}},
        "a+b": {"norm": {"scale": SCALE}},
        "mlp": {"kernel": jnp.ones((4, 4))},
    },
}


def find(patterns, tree, separator="/"):
    """The leaves that a program would train, by the paths that JAX writes."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    paths = [jax.tree_util.keystr(path, simple=True, separator=separator) for path, _ in leaves]
    return [path for path in paths if any(re.search(pattern, path) for pattern in patterns)]


@pytest.mark.parametrize("separator", ["/", "."])
@pytest.mark.parametrize("prefix", ["", "params"])
def test_each_pattern_finds_its_leaf_and_no_other(separator, prefix):
    patterns = lnt.select(TREE, lnt.LNTuningConfig()).patterns(separator=separator)
    trainable = list(lnt.partition_params(TREE, lnt.LNTuningConfig()).trainable)
    tree = {prefix: TREE} if prefix else TREE
    found = [find([pattern], tree, separator) for pattern in patterns]
    start = f"{prefix}{separator}" if prefix else ""
    assert found == [[start + path.replace(".", separator)] for path in trainable]


def test_the_config_decides():
    config = lnt.LNTuningConfig(target_modules=["pre_norm"], modules_to_save=["mlp"])
    patterns = lnt.select(TREE, config).patterns()
    assert find(patterns, TREE) == ["decoder/layers/pre_norm/scale", "decoder/mlp/kernel"]


def test_values_of_boxes():
    patterns = lnt.select(TREE, lnt.LNTuningConfig(target_modules=["norm_2"])).patterns()
    boxed = {"decoder": {"norm_2": {"scale": {"value": SCALE}, "scale_2": {"value": SCALE}}}}
    assert find(patterns, boxed) == ["decoder/norm_2/scale/value"]


def test_stacked_layers_by_their_names():
    tree = {"decoder": {"layers": {"pre_self_attention_layer_norm": {"scale": jnp.ones((4, 2))}}}}
    some = lnt.LNTuningConfig(target_modules=[r".*layers\.0\.input_layernorm"])
    with pytest.raises(SelectionError, match="input_layernorm"):
        lnt.select(tree, some, name_map="maxtext_llama").patterns()
    config = lnt.LNTuningConfig(target_modules=["input_layernorm"])
    assert lnt.select(tree, config, name_map="maxtext_llama").patterns() == [
        "^(params/)*decoder/layers/pre_self_attention_layer_norm/scale(/value)?$"
    ]

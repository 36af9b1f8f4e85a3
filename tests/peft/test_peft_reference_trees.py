"""One adapter of a llama, made by PEFT, in the trees of several libraries, without PyTorch."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

import lntune_jax as lnt
from tests.support.paths import REFERENCE

LLAMA = REFERENCE / "peft" / "llama"
WEIGHTS = "adapter_model.safetensors"
SHAPES = json.loads((LLAMA / "parameters.json").read_text())
LAYERS = 3


def make_flat(get):
    """A torch-style dict."""
    return {name: get(name) for name in SHAPES}


def make_nested(get):
    """Nested dicts with Flax's leaves."""
    tree = {}
    for name in SHAPES:
        *parents, _ = name.split(".")
        place = tree
        for parent in parents:
            place = place.setdefault(parent, {})
        if "norm" in name:
            place["scale"] = get(name)
        elif "embed" in name:
            place["embedding"] = get(name)
        else:
            place["kernel"] = get(name).T
    return tree


def make_tunix(get):
    """Tunix's Llama 3, with leaves that no rule is for."""
    layers = {
        str(i): {
            "input_layernorm": {"w": get(f"model.layers.{i}.input_layernorm.weight")},
            "post_attention_layernorm": {
                "w": get(f"model.layers.{i}.post_attention_layernorm.weight")
            },
            "attn": {"q_proj": {"w": jnp.zeros((16, 2, 8))}},
        }
        for i in range(LAYERS)
    }
    embedder = {"input_embedding": get("model.embed_tokens.weight")}
    return {"layers": layers, "final_norm": {"w": get("model.norm.weight")}, "embedder": embedder}


def make_maxtext(get, axis):
    """MaxText's decoder with its layers stacked along an axis."""

    def stack(name):
        each = [get(f"model.layers.{i}.{name}.weight") for i in range(LAYERS)]
        return {"scale": np.stack(each, axis)}

    layers = {
        "pre_self_attention_layer_norm": stack("input_layernorm"),
        "post_self_attention_layer_norm": stack("post_attention_layernorm"),
        "mlp": {"wi_0": {"kernel": jnp.zeros((16, LAYERS, 24))}},
    }
    norm = {"scale": get("model.norm.weight")}
    return {"params": {"decoder": {"layers": layers, "decoder_norm": norm}}}


def make_unscanned(get):
    """The same with a leaf for each layer."""
    names = {
        "pre_self_attention_layer_norm": "input_layernorm",
        "post_self_attention_layer_norm": "post_attention_layernorm",
    }
    layers = {
        f"layers_{i}": {
            ours: {"scale": get(f"model.layers.{i}.{theirs}.weight")}
            for ours, theirs in names.items()
        }
        for i in range(LAYERS)
    }
    norm = {"scale": get("model.norm.weight")}
    return {"params": {"decoder": {**layers, "decoder_norm": norm}}}


TREES = {
    "torch-style dict": (make_flat, None),
    "Flax dict": (make_nested, None),
    "Tunix": (make_tunix, "tunix_llama3"),
    "MaxText": (lambda get: make_maxtext(get, 1), "maxtext_llama"),
    "MaxText, layers first": (lambda get: make_maxtext(get, 0), "maxtext_llama_axis0"),
    "MaxText, unscanned": (make_unscanned, "maxtext_llama_unscanned"),
}


def get_zeros(name):
    return np.zeros(SHAPES[name], np.float32)


def get_tuned(name):
    module, _, leaf = name.rpartition(".")
    tensors = load_file(LLAMA / WEIGHTS)
    key = f"base_model.model.{module}.ln_tuning_layers.{leaf}"
    return tensors[key] if key in tensors else get_zeros(name)


@pytest.mark.parametrize("tree", TREES)
def test_an_adapter_of_peft_goes_into_any_tree(tree):
    make, name_map = TREES[tree]
    found = lnt.import_peft(LLAMA, make(get_zeros), name_map=name_map)
    expected = make(get_tuned)
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    assert sum(float(np.abs(leaf).sum()) for leaf in jax.tree.leaves(found)) > 50


@pytest.mark.parametrize("tree", TREES)
def test_any_tree_gives_the_file_of_peft(tree, tmp_path):
    make, name_map = TREES[tree]
    config = lnt.LNTuningConfig(task_type="CAUSAL_LM")
    trainable = lnt.partition_params(make(get_tuned), config).trainable
    ours = lnt.export_peft(tmp_path / "ours", trainable, config, name_map=name_map)
    tensors, expected = load_file(ours / WEIGHTS), load_file(LLAMA / WEIGHTS)
    assert tensors.keys() == expected.keys()
    assert all(tensors[key].tobytes() == expected[key].tobytes() for key in expected)

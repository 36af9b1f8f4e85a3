"""Decoders from files: prefixes, tied and extra keys, shards, meshes, progress."""

from __future__ import annotations

import json
import shutil
import tracemalloc

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from lntune_jax.errors import ModelError
from lntune_jax.models import from_config, from_pretrained
from tests.support.checkpoints import REFERENCE as ROOT
from tests.support.checkpoints import assert_same
from tests.support.devices import run_on_devices

REFERENCE = ROOT / "decoders"


ON_A_MESH = """
import sys
import jax, numpy as np
from jax.sharding import AxisType, PartitionSpec as P
from lntune_jax.models import from_config, from_pretrained

mesh = jax.make_mesh((2, 2), ("data", "model"), axis_types=(AxisType.Auto,) * 2)

def specs(path, leaf):
    return P(None, "model") if path.endswith("gate_proj.kernel") else P()

apart = from_pretrained(sys.argv[1], "CAUSAL_LM", mesh=mesh, specs=specs)
whole = from_pretrained(sys.argv[1], "CAUSAL_LM")
layer = apart.params["model"]["layers"]["0"]["mlp"]
assert layer["gate_proj"]["kernel"].addressable_shards[0].data.shape == (24, 18)
assert layer["down_proj"]["kernel"].sharding.is_fully_replicated
tokens = np.arange(4, 12, dtype=np.int32).reshape(2, 4)
found = jax.jit(apart.apply)(apart.params, tokens).logits
np.testing.assert_allclose(found, whole.apply(whole.params, tokens).logits, atol=1e-5)
print("done")
"""


ONE_KEY_HEAD = """
import sys
import jax, numpy as np, pytest
from jax.sharding import AxisType
import lntune_jax as lnt
from lntune_jax.models import from_pretrained

mesh = jax.make_mesh((2, 2), ("fsdp", "tensor"), axis_types=(AxisType.Auto,) * 2)
with pytest.warns(lnt.errors.ShardingWarning, match=r"k_proj.kernel in heads .1 over tensor = 2"):
    apart = from_pretrained(sys.argv[1], "CAUSAL_LM", mesh=mesh)
whole = from_pretrained(sys.argv[1], "CAUSAL_LM")
attention = apart.params["model"]["layers"]["0"]["self_attn"]
specs = {name: tuple(attention[name]["kernel"].sharding.spec) for name in attention}
assert specs["q_proj"] == ("fsdp", "tensor"), specs
assert specs["k_proj"] in {("fsdp",), ("fsdp", None)} and specs["k_proj"] == specs["v_proj"]
assert specs["o_proj"] == ("tensor", "fsdp")
tokens = np.arange(4, 12, dtype=np.int32).reshape(2, 4)
found = jax.jit(apart.apply)(apart.params, tokens).logits
np.testing.assert_allclose(found, whole.apply(whole.params, tokens).logits, atol=1e-5)
print("done")
"""


FAMILY_ON_A_MESH = """
import sys, warnings
warnings.simplefilter("error")
import jax, numpy as np
from jax.sharding import AxisType
import lntune_jax as lnt
from lntune_jax.models import causal_lm_loss, from_pretrained

kernels = {"olmo2": ("q_proj", ("fsdp", "tensor")), "phi3": ("qkv_proj", ("fsdp", None))}
whole = from_pretrained(sys.argv[1], "CAUSAL_LM")
tokens = np.arange(4, 20, dtype=np.int32).reshape(4, 4)

def step(model, tokens):
    halves = lnt.partition_params(model.params, lnt.LNTuningConfig())
    loss = lambda params, tokens: causal_lm_loss(model, params, tokens)
    return jax.jit(lnt.value_and_grad(loss))(*halves, tokens)

expected, gradients = step(whole, tokens)
for kind in (AxisType.Auto, AxisType.Explicit):
    mesh = jax.make_mesh((2, 2), ("fsdp", "tensor"), axis_types=(kind,) * 2)
    apart = from_pretrained(sys.argv[1], "CAUSAL_LM", mesh=mesh)
    attention = apart.params["model"]["layers"]["0"]["self_attn"]
    module, spec = kernels[apart.settings.model_type]
    assert tuple(attention[module]["kernel"].sharding.spec) in (spec, spec[:1]), attention[module]
    assert tuple(attention["o_proj"]["kernel"].sharding.spec) == ("tensor", "fsdp")
    with jax.set_mesh(mesh):
        found = jax.jit(apart.apply)(apart.params, tokens).logits
        loss, grads = step(apart, tokens)
    np.testing.assert_allclose(found, whole.apply(whole.params, tokens).logits, atol=2e-5)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    for path, leaf in gradients.items():
        np.testing.assert_allclose(grads[path], leaf, atol=1e-5, err_msg=path)
print("done")
"""


def rewritten(tmp_path, name, change):
    directory = shutil.copytree(REFERENCE / name, tmp_path / "model")
    path = directory / "model.safetensors"
    save_file(change(load_file(path)), path)
    return directory


@pytest.mark.parametrize(("name", "prefix"), [("qwen3", "model."), ("gpt2", "transformer.")])
def test_keys_without_the_prefix(tmp_path, name, prefix):
    expected = from_pretrained(REFERENCE / name, "CAUSAL_LM").params
    strip = lambda tensors: {key.removeprefix(prefix): t for key, t in tensors.items()}  # noqa: E731
    directory = rewritten(tmp_path, name, strip)
    assert_same(from_pretrained(directory, "CAUSAL_LM").params, expected)


def test_buffers_of_older_versions(tmp_path):
    extra = {
        "model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(4, np.float32),
        "model.rotary_emb.inv_freq": np.ones(4, np.float32),
    }
    directory = rewritten(tmp_path, "llama", lambda tensors: tensors | extra)
    for task in (None, "CAUSAL_LM"):
        from_pretrained(directory, task)
    extra = {
        "transformer.h.0.attn.bias": np.ones((1, 1, 4, 4), np.uint8),
        "transformer.h.1.attn.masked_bias": np.array(-1e4, np.float32),
    }
    shutil.rmtree(directory)
    from_pretrained(rewritten(tmp_path, "gpt2", lambda tensors: tensors | extra), "CAUSAL_LM")


def test_a_tied_head_may_be_there_but_must_be_the_embeddings(tmp_path):
    embeddings = "model.embed_tokens.weight"

    def with_head(tensors, factor):
        return tensors | {"lm_head.weight": tensors[embeddings] * factor}

    directory = rewritten(tmp_path, "llama_tied", lambda t: with_head(t, 1))
    expected = from_pretrained(REFERENCE / "llama_tied", "CAUSAL_LM").params
    assert_same(from_pretrained(directory, "CAUSAL_LM").params, expected)
    shutil.rmtree(directory)
    directory = rewritten(tmp_path, "llama_tied", lambda t: with_head(t, 2))
    with pytest.raises(ModelError, match=r"lm_head\.weight and .* differ"):
        from_pretrained(directory, "CAUSAL_LM")
    from_pretrained(directory)


def test_a_missing_head_is_no_fresh_one(tmp_path):
    def drop(tensors):
        return {key: tensor for key, tensor in tensors.items() if key != "lm_head.weight"}

    with pytest.raises(ModelError, match=r"missing keys: lm_head\.weight"):
        from_pretrained(rewritten(tmp_path, "llama", drop), "CAUSAL_LM")


def test_a_classifier_gets_a_fresh_score():
    model = from_pretrained(REFERENCE / "llama", "SEQ_CLS", num_labels=5)
    assert model.fresh == ("score.kernel",)
    assert model.params["score"]["kernel"].shape == (24, 5)


def test_biases_that_the_config_denies_are_unexpected(tmp_path):
    directory = shutil.copytree(REFERENCE / "llama", tmp_path / "model")
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"attention_bias": False}))
    with pytest.raises(ModelError, match=r"unexpected keys: .*k_proj\.bias"):
        from_pretrained(directory, "CAUSAL_LM")


def test_shards_with_an_index_and_progress(tmp_path):
    directory = shutil.copytree(REFERENCE / "gemma2", tmp_path / "model")
    tensors = load_file(directory / "model.safetensors")
    (directory / "model.safetensors").unlink()
    shards, index = {0: {}, 1: {}, 2: {}}, {}
    for number, (key, tensor) in enumerate(sorted(tensors.items())):
        shards[number % 3][key] = tensor
        index[key] = f"model-{number % 3}.safetensors"
    for number, part in shards.items():
        save_file(part, directory / f"model-{number}.safetensors")
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    calls = []
    model = from_pretrained(
        directory, "CAUSAL_LM", progress=lambda done, total: calls.append((done, total))
    )
    assert_same(model.params, from_pretrained(REFERENCE / "gemma2", "CAUSAL_LM").params)
    sizes = [leaf.nbytes for leaf in jax.tree.leaves(model.params)]
    assert calls[-1] == (sum(sizes), sum(sizes))
    assert len(calls) == len(sizes)
    assert [done for done, _ in calls] == sorted(done for done, _ in calls)
    damaged = directory / "model-1.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-10])
    with pytest.raises(ModelError, match=r"model-1\.safetensors: damaged or cut short"):
        from_pretrained(directory, "CAUSAL_LM")


def test_leaves_laid_out_over_a_mesh():
    run_on_devices(ON_A_MESH, 4, REFERENCE / "llama")


@pytest.mark.parametrize("name", ["olmo2", "phi3"])
def test_norms_of_whole_widths_and_fused_products_over_a_mesh(name):
    run_on_devices(FAMILY_ON_A_MESH, 4, REFERENCE / name)


def test_no_head_is_cut_in_two():
    run_on_devices(ONE_KEY_HEAD, 4, REFERENCE / "gemma")


def test_peak_memory_is_the_model_s_and_one_tensor_s(tmp_path):
    """Not the file beside the model, and not the model twice."""
    fields = {"model_type": "llama", "vocab_size": 64, "hidden_size": 256, "num_hidden_layers": 8}
    fields |= {"intermediate_size": 1024, "num_attention_heads": 4, "tie_word_embeddings": True}
    (tmp_path / "config.json").write_text(json.dumps(fields))
    tensors = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(from_config(fields).params):
        *module, last = (key.key for key in path)
        shape = leaf.shape[::-1] if last == "kernel" else leaf.shape
        tensors[".".join([*module, "weight"])] = np.ones(shape, np.float16)
    save_file(tensors, tmp_path / "model.safetensors")
    del tensors
    tracemalloc.start()  # It sees numpy's memory, which is all that is on the way to the arrays.
    model = from_pretrained(tmp_path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    sizes = [leaf.nbytes for leaf in jax.tree.leaves(model.params)]
    assert max(sizes) < sum(sizes) / 20
    # A tensor as it is in the file (half the size) and as it is in the model.
    assert peak < sum(sizes) + 2 * max(sizes) + 2**20

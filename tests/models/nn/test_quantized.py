"""Kernels in few bits: what is kept, that it computes what its numbers say, and what is refused."""

from __future__ import annotations

import sys
import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import qwix

import lntune_jax as lnt
from lntune_jax.errors import ModelError, SelectionError
from lntune_jax.models import from_config, from_pretrained
from lntune_jax.models.families.registry import FAMILIES
from lntune_jax.models.nn.quantized import (
    KINDS,
    STORED,
    dequantize,
    is_quantized,
    multiply,
    quantize_kernel,
)
from lntune_jax.models.nn.skeleton import by_path
from tests.support.devices import run_on_devices
from tests.support.quantizing import MODELS, TOKENS, dequantized, gradients

WIDE = {
    "model_type": "llama",
    "vocab_size": 64,
    "hidden_size": 128,
    "intermediate_size": 192,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "tie_word_embeddings": False,
}
ON_A_MESH = """
import sys
import jax, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from lntune_jax.models import causal_lm_loss, from_pretrained
import lntune_jax as lnt

AXES = {"gate_proj": P(None, "model"), "down_proj": P("model", None)}

def specs(path, leaf):
    return AXES.get(path.split(".")[-2], P()) if path.endswith("kernel") else P()

tokens = np.arange(4, 20, dtype=np.int32).reshape(4, 4)
whole = from_pretrained(sys.argv[1], "CAUSAL_LM", quantize="int8")
config = lnt.LNTuningConfig()
gradient = lnt.value_and_grad(lambda params, x: causal_lm_loss(whole, params, x))
expected = jax.jit(gradient)(*lnt.partition_params(whole.params, config), tokens)
for kind in (AxisType.Auto, AxisType.Explicit):
    mesh = jax.make_mesh((2, 2), ("data", "model"), axis_types=(kind,) * 2)
    apart = from_pretrained(
        sys.argv[1], "CAUSAL_LM", mesh=mesh, quantize="int8",
        specs=specs if kind == AxisType.Auto else None,
    )
    if kind == AxisType.Auto:
        layer = apart.params["model"]["layers"]["0"]["mlp"]
        up, down = (layer[name]["kernel"]["array"] for name in AXES)
        assert up["qvalue"].addressable_shards[0].data.shape == (24, 18)
        assert up["scale"].addressable_shards[0].data.shape == (1, 18)
        assert down["qvalue"].addressable_shards[0].data.shape == (18, 24)
        assert down["scale"].sharding.is_fully_replicated
    halves = lnt.partition_params(apart.params, config)
    rows = jax.device_put(tokens, NamedSharding(mesh, P("data")))
    with jax.set_mesh(mesh):
        if kind == AxisType.Auto:
            found = jax.jit(gradient)(*halves, rows)
            jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5), found, expected)
        logits = jax.jit(apart.apply)(apart.params, rows).logits
    other = whole.apply(whole.params, tokens).logits
    np.testing.assert_allclose(np.asarray(logits), other, atol=1e-5)
print("done")
"""


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(128, 24), (48, 8), (20, 8), (3, 64, 8)])
def test_the_numbers_are_qwix_s(kind, shape):
    array = jax.random.normal(jax.random.key(0), shape)
    kernel = quantize_kernel(array, kind)
    runs = {128: 2, 48: 3, 20: 1, 64: 1}[shape[-2]] if kind in ("int4", "nf4") else 1
    assert kernel.qvalue.dtype == STORED[kind]
    assert (kernel.scale.dtype, kernel.scale.shape[-2:]) == ("float32", (runs, shape[-1]))
    own = qwix.QArray(kernel.qvalue, kernel.scale, None, "nf4" if kind == "nf4" else STORED[kind])
    with jax.numpy_dtype_promotion("standard"):
        expected = qwix.dequantize(own)
    found = dequantize(kernel, jnp.float32)
    np.testing.assert_array_equal(found, expected)
    error = float(jnp.abs(found - array).max() / jnp.abs(array).max())
    assert error < {"int8": 0.005, "int4": 0.08, "nf4": 0.16, "fp8": 0.04}[kind]
    assert kernel.scale.min() > 0


@pytest.mark.parametrize("name", MODELS)
def test_what_is_quantised_and_what_is_not(name):
    directory, task = MODELS[name]
    model = from_pretrained(directory, task, quantize="int8")
    whole = by_path(from_pretrained(directory, task).params)
    kept = by_path(model.params)
    layers = FAMILIES[model.config.model_type].checkpoint_names.layers
    kernels = [path for path in whole if is_quantized(path, layers)]
    parts = [(*path, "array", part) for path in kernels for part in ("qvalue", "scale")]
    several = {"llama": 14, "gemma2": 14, "olmo2": 14, "gpt2": 8, "phi3": 8, "modernbert": 16}
    assert len(kernels) == several.get(name, 12)
    assert kept.keys() == whole.keys() - set(kernels) | set(parts)
    for path in whole.keys() - set(kernels):
        np.testing.assert_array_equal(kept[path], whole[path])
    # The same norms train, whatever lies beside them; no scale of a kernel passes for one.
    config = lnt.LNTuningConfig()
    trainable, _ = lnt.partition_params(model.params, config)
    floats = from_pretrained(directory, task).params
    assert trainable.keys() == lnt.partition_params(floats, config).trainable.keys()
    assert not any("array" in path for path in trainable)
    report, expected = (lnt.report_params(tree, config) for tree in (model.params, floats))
    assert report[:3] == expected[:3]
    shapes = by_path(from_config(directory, task, quantize="int8").params)
    fields = {path: (leaf.shape, leaf.dtype) for path, leaf in shapes.items() if path in kept}
    assert fields == {p: (x.shape, x.dtype) for p, x in kept.items() if p in shapes}
    assert set(parts) <= shapes.keys()


@pytest.mark.parametrize("kind", ["int8", "nf4"])
@pytest.mark.parametrize("name", MODELS)
def test_gradients_are_those_of_the_float_model_with_these_kernels(name, kind):
    model = from_pretrained(*MODELS[name], quantize=kind)
    loss, found = gradients(model, model.params)
    other, expected = gradients(model, dequantized(model.params))
    assert float(loss) == pytest.approx(float(other), rel=1e-6)
    for path, gradient in expected.items():
        largest = float(jnp.abs(gradient).max())
        assert largest > 0, path
        assert float(jnp.abs(found[path] - gradient).max()) <= 1e-5 * largest, path


@pytest.mark.parametrize("remat", ["dots_with_no_batch_dims_saveable", "full"])
def test_recomputed_layers_give_the_same(remat):
    once = from_pretrained(*MODELS["llama"], quantize="int4")
    again = from_pretrained(*MODELS["llama"], quantize="int4", remat=remat)
    expected, found = gradients(once, once.params), gradients(again, again.params)
    for own, other in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        np.testing.assert_allclose(own, other, rtol=1e-5, atol=1e-6)


def test_bfloat16_has_the_same_few_bits():
    """Quantised from what the file holds, not from what bfloat16 leaves of it."""
    exact = from_pretrained(*MODELS["llama"], quantize="fp8")
    half = from_pretrained(*MODELS["llama"], quantize="fp8", dtype="bfloat16")
    kept = by_path(exact.params)
    for path, leaf in by_path(half.params).items():
        if "array" in path:
            np.testing.assert_array_equal(leaf, kept[path])
        else:
            assert leaf.dtype == jnp.bfloat16
    found = jax.jit(half.apply)(half.params, TOKENS).logits
    other = jax.jit(half.apply)(dequantized(half.params, "bfloat16"), TOKENS).logits
    assert found.dtype == jnp.bfloat16
    np.testing.assert_array_equal(np.asarray(found), np.asarray(other))


def test_rows_in_a_vmap_share_one_kernel():
    """A product for each row of a vmap over activations would cost as many dequantised kernels."""
    kernel = quantize_kernel(jax.random.normal(jax.random.key(0), (64, 32)), "nf4")
    rows = jax.random.normal(jax.random.key(1), (5, 3, 64))
    gradient = jax.grad(lambda x: jnp.sin(multiply(x, kernel)).sum())
    together = jax.jit(jax.vmap(gradient))
    text = together.lower(rows).as_text()
    assert "tensor<5x64x32xf32>" not in text
    np.testing.assert_allclose(together(rows), gradient(rows), rtol=1e-5, atol=1e-5)
    stacked = jax.tree.map(lambda x: jnp.stack([x, x]), kernel)
    apart = jax.jit(jax.vmap(multiply))(rows[:2], stacked)
    np.testing.assert_allclose(apart, multiply(rows[:2], kernel), rtol=1e-5, atol=1e-5)


def test_kernels_laid_out_over_a_mesh():
    run_on_devices(ON_A_MESH, 4, MODELS["llama"][0])


def test_peak_memory_on_the_host(tmp_path):
    """One tensor at a time: neither the float model nor its largest tensors all at once."""
    import json

    from safetensors.numpy import save_file

    fields = {**WIDE, "hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 6}
    (tmp_path / "config.json").write_text(json.dumps(fields))
    draw = np.random.default_rng(0)
    tensors = {}
    for path, leaf in by_path(from_config(fields, "CAUSAL_LM").params).items():
        shape = leaf.shape[::-1] if path[-1] == "kernel" else leaf.shape
        tensors[".".join((*path[:-1], "weight"))] = draw.normal(size=shape).astype(np.float32)
    save_file(tensors, tmp_path / "model.safetensors")
    sizes = [tensor.nbytes for tensor in tensors.values()]
    del tensors
    from_pretrained(tmp_path, "CAUSAL_LM", quantize="int8")  # compiles
    tracemalloc.start()
    model = from_pretrained(tmp_path, "CAUSAL_LM", quantize="int8")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    kept = sum(leaf.nbytes for leaf in jax.tree.leaves(model.params))
    assert kept < sum(sizes) / 3
    assert peak < kept + 2 * max(sizes) < sum(sizes) / 2


class Rule:
    """As qwix's QuantizationRule: what a person might pass."""

    def __init__(self, act_qtype):
        self.weight_qtype, self.act_qtype = "int8", act_qtype


@pytest.mark.parametrize(
    ("quantize", "message"),
    [
        ("w8a8", "'w8a8', which quantises activations too.*gradient of zero.*Pass a kind.*'int8'"),
        (qwix.QuantizationRule(weight_qtype="int8", act_qtype="int8"), "activations too"),
        (qwix.QuantizationRule(weight_qtype="int8"), "expected a name: 'int8', 'int4'"),
        ("int7", "quantize is 'int7'; supported: None, 'int8', 'int4', 'nf4', 'fp8'"),
        ("w4a16", "quantize is 'w4a16'; supported"),
    ],
)
def test_what_is_refused(quantize, message):
    for load in (from_config, from_pretrained):
        with pytest.raises(ModelError, match=message):
            load(MODELS["llama"][0], "CAUSAL_LM", quantize=quantize)


def test_without_qwix_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "qwix", None)  # as if it were not installed
    with pytest.raises(ModelError, match=r"needs the package qwix: pip install .*\[quant\]"):
        from_config(WIDE, "CAUSAL_LM", quantize="int8")
    from_config(WIDE, "CAUSAL_LM")


@pytest.mark.parametrize("kind", ["int8", "fp8"])
def test_a_quantised_module_cannot_be_saved(kind):
    directory, task = MODELS["llama"]
    model = from_pretrained(directory, task, quantize=kind)
    config = lnt.LNTuningConfig(modules_to_save=["q_proj"])
    with pytest.raises(SelectionError, match=r"modules_to_save 'q_proj' holds .* is quantised"):
        lnt.partition_params(model.params, config)
    # A head is kept in full, and may.
    saved = lnt.LNTuningConfig(modules_to_save=["lm_head"])
    assert "lm_head.kernel" in lnt.partition_params(model.params, saved).trainable

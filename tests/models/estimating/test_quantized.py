"""What a step over a quantised base holds: by the compiler's own analysis, and by the estimate."""

from __future__ import annotations

import functools
from dataclasses import replace

import jax
import jax.numpy as jnp
import optax
import pytest

import lntune_jax as lnt
from lntune_jax.errors import ConfigError
from lntune_jax.models import causal_lm_loss, estimate_memory, from_config
from lntune_jax.models.estimating.memory import largest_leaf, total_bytes
from lntune_jax.models.nn.quantized import count_both, count_bytes
from lntune_jax.models.nn.skeleton import by_path
from tests.support.small import relax
from tests.support.step_memory import TINY, compile_step

# Enough layers that all kernels together are much more than one, and few tokens, so that
# activations are little.
DEEP = {**TINY, "vocab_size": 256, "num_hidden_layers": 6}
TOKENS = jax.ShapeDtypeStruct((4, 32), "int32")
LARGEST = 4 * 128 * 352


def lower(model, accumulate=1):
    tx = relax(optax.adamw(1e-3))
    trainable, frozen = lnt.partition_params(model.params, lnt.LNTuningConfig())
    zeros = {path: jnp.zeros(leaf.shape, leaf.dtype) for path, leaf in trainable.items()}

    def loss(params, tokens):
        return causal_lm_loss(model, params, tokens)

    step = lnt.make_train_step(loss, tx, accumulate=accumulate)
    return step.lower(lnt.TrainState.create(zeros, tx), frozen, TOKENS)


@pytest.mark.parametrize(("kind", "bits"), [("int8", 8), ("fp8", 8), ("int4", 4.5), ("nf4", 4.5)])
def test_bytes_of_the_kernels(kind, bits):
    whole, few = (from_config(TINY, "CAUSAL_LM", quantize=each) for each in (None, kind))
    kernels = 5 * (128 * (128 + 64) * 2 + 3 * 128 * 352)
    scales = 0 if bits == 4.5 else 5 * 4 * (128 * 2 + 64 * 2 + 352 * 2 + 128)
    # 352 is no multiple of 64 but of 32: its kernels have twice as many scales.
    more = 5 * 4 * (352 // 32 - 352 / 64) * 128 if bits == 4.5 else 0
    rest = total_bytes(whole.params) - 4 * kernels
    assert total_bytes(few.params) == rest + kernels * bits / 8 + scales + more
    assert count_both(few.params, "float32") == (total_bytes(few.params), total_bytes(whole.params))
    flat = by_path(few.params)
    path = ("model", "layers", "0", "mlp", "up_proj", "kernel", "array", "qvalue")
    assert count_bytes(flat[path]) == 128 * 352 * int(bits) // 8


@functools.cache
def compiled(kind, remat, accumulate):
    model = from_config(DEEP, "CAUSAL_LM", quantize=kind, remat=remat)
    program = lower(model, accumulate)
    products = program.as_text().count("stablehlo.dot_general")
    return total_bytes(model.params), program.compile().memory_analysis(), products


@pytest.mark.parametrize(
    ("kind", "remat", "accumulate"),
    [
        ("int8", "none", 1),
        ("nf4", "none", 1),
        ("int8", "dots_with_no_batch_dims_saveable", 1),
        ("int8", "none", 4),
    ],
)
def test_no_pass_keeps_the_kernels_in_full(kind, remat, accumulate):
    """Arguments fall by what the kernels lose; what is held besides grows by a kernel or two."""
    whole, before, products = compiled(None, remat, accumulate)
    few, after, same_products = compiled(kind, remat, accumulate)
    less = before.argument_size_in_bytes - after.argument_size_in_bytes
    assert less == whole - few
    more = after.temp_size_in_bytes - before.temp_size_in_bytes
    kernels = 6 * 4 * (128 * (128 + 64) * 2 + 3 * 128 * 352)
    print(f"{kind} {remat}: arguments -{less:,}, temporaries {more:+,} of {kernels:,}")
    assert more < 3 * LARGEST < kernels / 8
    # None for the gradient of a kernel, and none computed again that was not before.
    assert same_products == products


def test_only_activations_get_gradients():
    """Forward and backward products of each kernel, and those of attention and the head."""
    model = from_config(DEEP, "CAUSAL_LM", quantize="int8")
    text = lower(model).as_text()
    kernels = [line for line in text.splitlines() if "dot_general" in line]
    # The result of a product that is a kernel's gradient would have its shape.
    for shape in ("128x128", "128x64", "128x352", "352x128"):
        assert not [line for line in kernels if f"-> tensor<{shape}xf32>" in line]


@pytest.mark.parametrize(
    ("method", "kind", "remat"),
    [("ln", "int8", "none"), ("ln", "nf4", "full"), ("lora", "int8", "none")],
)
def test_the_estimate_is_near_the_compiler_s(method, kind, remat):
    model = from_config(TINY, "CAUSAL_LM", remat=remat, quantize=kind)
    found = compile_step(model, method, jax.ShapeDtypeStruct((4, 128), "int32"))
    estimate = estimate_memory(model, method, batch_size=4, length=128, remat=remat)
    print(f"{kind} {remat}: compiler {found:,}, estimate {estimate.total / found - 1:+.1%}")
    assert abs(estimate.total / found - 1) < 0.1
    whole = estimate_memory(TINY, method, dtype="float32", batch_size=4, length=128, remat=remat)
    assert estimate.trainable == whole.trainable
    assert whole.weights - estimate.weights > 2.5e6


def test_the_estimate_takes_a_kind():
    few = estimate_memory(TINY, dtype="float32", length=16, quantize="int4")
    assert few.weights < estimate_memory(TINY, dtype="float32", length=16).weights
    with pytest.raises(ConfigError, match="'full', which trains the kernels themselves"):
        estimate_memory(TINY, "full", length=16, quantize="int4")


def test_the_largest_leaf_counts_bits():
    model = from_config(TINY, "CAUSAL_LM", quantize="nf4")
    leaves = jax.tree.leaves(model.params)
    assert largest_leaf(model) == max(map(count_bytes, leaves))
    kernels = {"fc": jax.ShapeDtypeStruct((64, 64), "uint4")}
    assert largest_leaf(replace(model, params=kernels)) == 64 * 64 // 2

"""The kernel for TPUs computes what plain operations do, and models take it where they should."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lntune_jax as lnt
from lntune_jax.models import causal_lm_loss, from_config
from lntune_jax.models.inputs import sees, sees_segment
from lntune_jax.models.nn.attention import attend_explicitly, find_kernel, pick_kernel
from lntune_jax.models.nn.splash import attend_splash

TINY = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": 96,
}
GEMMA = TINY | {
    "model_type": "gemma2",
    "num_hidden_layers": 2,
    "sliding_window": 50,
    "query_pre_attn_scalar": 8,
    "attn_logit_softcapping": 5.0,
}
LLAMA = TINY | {"model_type": "llama", "num_hidden_layers": 2}
GPT2 = {
    "model_type": "gpt2",
    "n_embd": 32,
    "n_head": 4,
    "n_layer": 2,
    "n_positions": 160,
    "vocab_size": 96,
    "scale_attn_by_inverse_layer_idx": True,
}


@pytest.mark.parametrize(
    ("length", "heads", "shared", "size", "window", "cap", "packed"),
    [(130, 4, 2, 64, None, None, False), (200, 2, 1, 96, 50, 30.0, True)],
)
def test_kernel_computes_what_plain_operations_do(length, heads, shared, size, window, cap, packed):
    random = np.random.default_rng(0)
    query, key, value, slope = (
        jnp.asarray(random.normal(size=(2, length, count, size)), "float32")
        for count in (heads, shared, shared, heads)
    )
    segments = jnp.sort(random.integers(0, 3, size=(2, length)), axis=1) if packed else None
    columns = jnp.arange(length)[None]
    mask = sees(columns, columns, window)
    mask = mask if segments is None else mask & sees_segment(segments)

    def ours(query, key, value):
        options = {"window": window, "scale": size**-0.5, "cap": cap}
        return attend_splash(query, key, value, segments, interpret=True, **options)

    def plain(query, key, value):
        options = {"scale": size**-0.5, "cap": cap}
        return attend_explicitly(query, key, value, mask, 0.0, None, **options)

    results = [jax.vjp(function, query, key, value) for function in (ours, plain)]
    gradients = [back(slope) for _, back in results]
    pairs = zip((results[0][0], *gradients[0]), (results[1][0], *gradients[1]), strict=True)
    for found, expected in pairs:
        np.testing.assert_allclose(found, expected, atol=3e-6 * float(jnp.abs(expected).max()))


@pytest.mark.parametrize("scanned", [False, True])
@pytest.mark.parametrize("config", [LLAMA, GEMMA, GPT2], ids=lambda config: config["model_type"])
def test_elsewhere_the_option_computes_the_same(config, scanned):
    """Masks, packed rows and windows that differ between layers reach the kernel's branch."""
    plain, ours = (
        from_config(config, "CAUSAL_LM", attention=attention, scan_layers=scanned)
        for attention in ("xla", "splash")
    )
    random = np.random.default_rng(1)
    params = jax.tree.map(
        lambda leaf: jnp.asarray(random.normal(size=leaf.shape) * 0.2, leaf.dtype), plain.params
    )
    tokens = jnp.asarray(random.integers(0, 96, size=(2, 150)))
    mask = jnp.ones_like(tokens).at[0, 120:].set(0).at[1, :9].set(0)
    segments = jnp.sort(jnp.asarray(random.integers(1, 4, size=(2, 150))), axis=1)
    for given in ({}, {"attention_mask": mask}, {"segment_ids": segments}):

        def losses(model, given=given):
            return jax.jit(jax.value_and_grad(lambda p: causal_lm_loss(model, p, tokens, **given)))

        found, expected = (losses(model)(params) for model in (ours, plain))
        for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(one, other, atol=1e-5 * max(float(jnp.abs(other).max()), 1))


@pytest.mark.parametrize(("remat", "calls"), [("none", 3), ("dots_saveable", 3), ("full", 4)])
def test_a_program_for_tpus_has_the_kernel_and_no_matrix_of_scores(remat, calls):
    """One kernel forward, and two backward: to the queries, and to keys and values."""
    config = LLAMA | {"head_dim": 128}
    options = {"attention": "splash", "remat": remat, "scan_layers": True}
    model = from_config(config, "CAUSAL_LM", dtype="bfloat16", **options)
    params = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), model.params)
    halves = lnt.partition_params(params, lnt.LNTuningConfig(), name_map=model.name_map)
    # JAX's lowering of a product of bfloat16 into float32 promotes.
    with jax.numpy_dtype_promotion("standard"):
        step = jax.jit(lnt.value_and_grad(lambda p, t: causal_lm_loss(model, p, t)))
        traced = step.trace(*halves, jnp.zeros((1, 384), jnp.int32))
        text, elsewhere = (
            traced.lower(lowering_platforms=(platform,)).as_text() for platform in ("tpu", "cpu")
        )
    assert text.count("@tpu_custom_call") == calls
    assert not re.search(r"tensor<[\dx]*384x384x(f32|bf16)>", text)
    assert "@tpu_custom_call" not in elsewhere
    # Of each row's sum the kernel gives 128 copies; the loop over layers stores one.
    assert not re.search(r"tensor<2x1x4x384x128xf32>", text)


def test_rows_that_a_mesh_does_not_divide_take_plain_operations(monkeypatch):
    """One row under `vmap`, say: a kernel would have all rows on each device."""
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    settings = from_config(LLAMA).settings
    mesh = jax.make_mesh((1,), ("fsdp",), axis_types=(jax.sharding.AxisType.Auto,))
    wide = jax.sharding.AbstractMesh((4,), ("fsdp",), mesh.abstract_mesh.axis_types)
    for rows, expected in ((4, "splash"), (2, "xla")):
        states = jax.ShapeDtypeStruct(
            (rows, 256, 32), "bfloat16", sharding=jax.NamedSharding(wide, jax.P())
        )
        picked = []

        def look(x, picked=picked):
            picked.append(pick_kernel("auto", settings, x, dropping=False))
            return x

        jax.eval_shape(look, states)
        assert picked == [expected]


def test_auto_is_plain_where_cudnn_is_not_to_be_had(monkeypatch):
    """On a GPU of another maker, say. There is none here, and so JAX's function refuses."""
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    states = jnp.zeros((2, 256, 32), jnp.bfloat16)
    assert pick_kernel("auto", from_config(LLAMA).settings, states, dropping=False) == "xla"


def test_auto_takes_what_the_platform_has():
    settings = from_config(LLAMA).settings
    capped = from_config(GEMMA).settings
    assert find_kernel("cpu", settings, jnp.bfloat16) == "xla"
    assert find_kernel("tpu", settings, jnp.float32) == "splash"
    assert find_kernel("tpu", capped, jnp.bfloat16) == "splash"
    assert find_kernel("gpu", settings, jnp.bfloat16) == "cudnn"
    assert find_kernel("gpu", settings, jnp.float32) == "xla"
    assert find_kernel("gpu", capped, jnp.bfloat16) == "xla"

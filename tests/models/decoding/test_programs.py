"""What the programs of generation compute and hold: counted, on their compiled text."""

from __future__ import annotations

import math
import re
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from transformers import LlamaConfig

from lntune_jax.models import empty_cache, from_config, generate
from lntune_jax.models.decoding.cache import cache_shapes
from lntune_jax.models.decoding.generate import read_prompts, round_up, take_step, widen_weights
from lntune_jax.models.decoding.sampling import check_sampling, pick
from lntune_jax.models.nn.stack import scatter_slots, select_slots
from lntune_jax.models.planning.program import count_flops

LAYERS, HEADS, SHARED, SIZE, WIDTH, INNER, VOCABULARY = 3, 4, 2, 8, 32, 48, 64
BATCH = 3
LLAMA = LlamaConfig(
    vocab_size=VOCABULARY,
    hidden_size=WIDTH,
    intermediate_size=INNER,
    num_hidden_layers=LAYERS,
    num_attention_heads=HEADS,
    num_key_value_heads=SHARED,
    max_position_embeddings=512,
    tie_word_embeddings=True,
)


@pytest.fixture(scope="module", params=[False, True], ids=["layers", "scanned"])
def model(request):
    return from_config(LLAMA, "CAUSAL_LM", scan_layers=request.param)


def lower_read(model, width, slots, batch=BATCH):
    tokens = jax.ShapeDtypeStruct((batch, width), jnp.int32)
    mask = jax.ShapeDtypeStruct((batch, width), jnp.bool_)
    shapes = cache_shapes(model, batch, width)
    return read_prompts.lower(model.apply, model.params, tokens, mask, shapes, slots, None, None)


def lower_step(model, slots, batch=BATCH, sampling=None, key=None):
    row = jax.ShapeDtypeStruct((batch,), jnp.int32)
    cache = cache_shapes(model, batch, slots)
    return take_step.lower(model.apply, model.params, row, row, cache, sampling, key, np.uint32(0))


def count_bytes(tree):
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def test_a_prompt_costs_what_its_tokens_need(model):
    """Products of kernels and of attention over the prompt's own columns, and one row of logits."""
    width = 64
    kernels = WIDTH * SIZE * (2 * HEADS + 2 * SHARED) + 3 * WIDTH * INNER
    layer = 2 * BATCH * width * kernels + 2 * 2 * BATCH * HEADS * width**2 * SIZE
    found = count_flops(lower_read(model, width, slots=192).compile().as_text())
    assert found == LAYERS * layer + 2 * BATCH * WIDTH * VOCABULARY


def test_the_cache_is_made_inside_and_written_in_place(model):
    held = lower_read(model, 32, slots=96).compile().memory_analysis()
    given = count_bytes(model.params) + BATCH * 32 * (4 + 1)
    # The compiler leaves out what the program does not read, and rounds a little up.
    assert held.argument_size_in_bytes <= given + 64
    cache = cache_shapes(model, BATCH, 96)
    layers = count_bytes((cache.keys, cache.values))
    step = lower_step(model, 96).compile().memory_analysis()
    assert step.alias_size_in_bytes >= layers
    assert step.output_size_in_bytes <= layers + 1024


# Not of scanned layers: the loop takes each layer out of the stacked cache.
@pytest.mark.parametrize("model", [False], ids=["layers"], indirect=True)
@pytest.mark.parametrize("batch", [1, 4])
def test_a_step_copies_no_layer_of_the_cache(model, batch):
    """Nor turns one round: heads come before slots, as the products read them."""
    slots = 80
    text = lower_step(model, slots, batch).compile().as_text()
    layer = batch * slots * SHARED * SIZE
    moved = [
        line.strip()[:120]
        for line in text.splitlines()
        if (found := re.search(r"= f32\[([\d,]+)\]\S* (?:copy|transpose)\(", line))
        and math.prod(map(int, found[1].split(","))) == layer
    ]
    assert moved == []


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "apart"])
@pytest.mark.parametrize("scanned", [False, True], ids=["layers", "scanned"])
def test_no_step_converts_weights_of_bfloat16(scanned, tied):
    """A CPU multiplies in float32: weights are converted once for all tokens, to the same end."""
    config = {**LLAMA.to_dict(), "tie_word_embeddings": tied}
    model = from_config(config, "CAUSAL_LM", dtype="bfloat16", scan_layers=scanned)
    kernel = WIDTH * SHARED * SIZE  # the smallest

    def converted(params):
        text = lower_step(replace(model, params=params), 16, 1).compile().as_text()
        found = re.findall(r"= \w+\[([\d,]+)\]\S* convert\(", text)
        return [sizes for sizes in found if math.prod(map(int, sizes.split(","))) >= kernel]

    assert converted(model.params)
    assert converted(jax.eval_shape(widen_weights, model.params)) == []
    leaves, tree = jax.tree.flatten(model.params)
    keys = jax.random.split(jax.random.key(0), len(leaves))
    # Wider than the model's, as an optimizer may keep them.
    params = tree.unflatten(
        [jax.random.normal(key, leaf.shape) / 4 for key, leaf in zip(keys, leaves, strict=True)]
    )
    run = jax.jit(model.apply)
    tokens = np.arange(12).reshape(2, 6)
    for ids in (tokens, tokens[:, :1]):
        plain, wide = run(params, ids), run(widen_weights(params), ids)
        assert wide.logits.dtype == plain.logits.dtype
        np.testing.assert_allclose(
            *map(np.float32, (wide.logits, plain.logits)), rtol=2**-6, atol=0.02
        )


def test_a_step_on_a_tpu_scatters_nothing_into_the_cache(model):
    """For which its compiler would turn the whole cache round and back, for each token."""
    row = jax.ShapeDtypeStruct((BATCH,), jnp.int32)
    given = (row, row, cache_shapes(model, BATCH, 48), None, None, np.uint32(0))
    traced = take_step.trace(model.apply, model.params, *given)
    size = SHARED * 48 * SIZE

    def scattered(platform):
        text = traced.lower(lowering_platforms=(platform,)).as_text()
        results = re.findall(r"\"stablehlo.scatter\".*?-> tensor<([\dx]+)x\w+>", text, re.DOTALL)
        return [found for found in results if math.prod(map(int, found.split("x"))) >= size]

    assert len(scattered("cpu")) >= 2
    assert scattered("tpu") == []


@pytest.mark.parametrize("layer", [None, 1])
def test_both_ways_to_store_a_token_are_one(layer):
    """With each row's own slot, of which one lies past the end."""
    old = jax.random.normal(jax.random.key(0), (3, 4, 2, 6, 8)[layer is None :], jnp.bfloat16)
    new = jax.random.normal(jax.random.key(1), (old.shape[-4], 1, 2, 8))
    slots = jnp.array([[5], [0], [6], [2]][: len(new)])
    found = [jax.jit(way)(old, new, slots, layer) for way in (select_slots, scatter_slots)]
    np.testing.assert_array_equal(*map(np.float32, found))
    changed = (np.float32(found[0]) != np.float32(old)).any(axis=-1)
    assert changed.sum() == 2 * 3


def test_an_empty_cache_may_be_donated(model):
    cache = empty_cache(model, 2, 16)
    params = jax.tree.map(lambda leaf: jnp.ones(leaf.shape, leaf.dtype), model.params)

    def step(params, tokens, cache):
        return model.apply(params, tokens, cache=cache).cache

    after = jax.jit(step, donate_argnames="cache")(params, np.ones((2, 3), np.int32), cache)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves((cache.keys, cache.values)))
    assert after.next_slot.tolist() == [3, 3]


@pytest.mark.parametrize(
    "values", [(0.7, None, None), (0.7, 5, None), (0.7, None, 0.5), (0.7, 5, 0.5)]
)
def test_no_way_to_draw_sorts_the_vocabulary(values):
    key = jax.random.key(0)
    sampling = check_sampling(*values, 100, key)
    text = str(jax.make_jaxpr(pick)(jnp.zeros((2, 100)), sampling, key))
    assert " sort[" not in text
    assert "top_k[" not in text


def test_the_slots_of_a_step_are_near_those_it_needs():
    for count in range(1, 5000):
        length = round_up(count)
        assert count <= length <= max(1.25 * count, count + 15)
        assert round_up(length) == length


def test_prompts_of_one_bucket_share_both_programs(model):
    traced = []

    def apply(params, tokens, *rest, cache, **options):
        traced.append((tokens.shape[1], cache.valid.shape[1]))
        return model.apply(params, tokens, *rest, cache=cache, **options)

    counted = replace(model, apply=apply)
    params = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), model.params)
    for length in (96, 82, 90, 96, 5, 16, 9):
        ids = np.full((1, length), 5, np.int32)
        generate(counted, params, ids, max_new_tokens=20, stop_tokens=())
    # Attention over a prompt goes over its own columns; over prompt and new tokens in a step.
    assert sorted(set(traced)) == [(1, 48), (1, 128), (16, 16), (96, 96)]
    assert len(traced) == 4

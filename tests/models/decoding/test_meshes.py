"""Decoding on a mesh: where the cache lies, and what a step sends between devices."""

import pytest

from tests.support.devices import run_on_devices
from tests.support.paths import REFERENCE

PROGRAM = """
import math
import sys
import warnings
import jax
import numpy as np
from jax import P
from jax.sharding import AxisType, NamedSharding
from lntune_jax.models import empty_cache, from_pretrained, generate
from lntune_jax.models.decoding.generate import cache_shapes, read_prompts, take_step
from lntune_jax.models.planning.collectives import list_collectives

directory, scanned = sys.argv[1], sys.argv[2] == "scanned"
tokens = np.array([[5, 6, 7, 8], [9, 10, 11, 12]], np.int32)
single = from_pretrained(directory, "CAUSAL_LM", scan_layers=scanned)
settings = single.settings
assert settings.num_key_value_heads == 2
expected = generate(single, single.params, tokens, max_new_tokens=6).tokens
width = settings.head_dim

for kind in (AxisType.Auto, AxisType.Explicit):
    mesh = jax.make_mesh((2, 2), ("fsdp", "tensor"), axis_types=(kind,) * 2)
    model = from_pretrained(directory, "CAUSAL_LM", mesh=mesh, scan_layers=scanned)
    found = generate(model, model.params, tokens, max_new_tokens=6).tokens
    np.testing.assert_array_equal(found, expected)
    padded = np.pad(tokens, ((0, 0), (12, 0)))
    mask, shapes = padded > 0, cache_shapes(model, 2, 16)
    given = read_prompts(model.apply, model.params, padded, mask, shapes, 32, None, None)
    program = take_step.lower(model.apply, model.params, *given, None, None, np.uint32(0))
    # Each device has the keys and values of its heads (and rows), and no step sends any.
    for leaf in jax.tree.leaves((given[2].keys, given[2].values)):
        assert leaf.sharding.shard_shape(leaf.shape)[-3:] == (1, 32, width), leaf.sharding
        if kind == AxisType.Explicit:
            assert leaf.sharding.shard_shape(leaf.shape)[-4] == 1
    sent = list_collectives(program.compile().as_text(), 4)
    assert sent
    ends = [shape[-2:] for each in sent for shape in each.shapes]
    assert not [shape for shape in ends if shape == (32, width)], sent
    # Nor a kernel or a table, over "tensor" or "fsdp": sums of each row's token are sent.
    most = 2 * max(settings.vocab_size, settings.intermediate_size)
    leaves = jax.tree_util.tree_flatten_with_path(model.params)[0]
    sizes = [math.prod(leaf.shape[-2:]) for path, leaf in leaves if path[-1].key == "kernel"]
    assert most < min(sizes) / 2
    assert max(math.prod(shape) for each in sent for shape in each.shapes) <= most, sent

    # With rows divided by the caller the cache keeps them apart too.
    rows = NamedSharding(mesh, P("fsdp"))
    ids = jax.device_put(tokens, rows)
    run = jax.jit(model.apply)
    output = run(model.params, ids, cache=empty_cache(model, 2, 16))
    again = run(model.params, ids[:, :1], cache=output.cache)
    alone = single.apply(single.params, tokens, cache=empty_cache(single, 2, 16))
    after = single.apply(single.params, tokens[:, :1], cache=alone.cache)
    np.testing.assert_allclose(again.logits, after.logits, atol=2e-5)
    if kind == AxisType.Explicit:
        for leaf in jax.tree.leaves((again.cache.keys, again.cache.values)):
            assert leaf.sharding.shard_shape(leaf.shape)[-4:] == (1, 1, 16, width), leaf.sharding
print("done")
"""


@pytest.mark.parametrize("layers", ["apart", "scanned"])
def test_a_step_sends_no_keys_and_no_values(layers):
    run_on_devices(PROGRAM, 4, REFERENCE / "decoders" / "llama", layers)

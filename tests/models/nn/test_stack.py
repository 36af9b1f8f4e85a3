"""Scanned layers against separate ones, for every architecture, by configs far from defaults."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

import lntune_jax as lnt
from lntune_jax import models
from lntune_jax.errors import ModelError
from lntune_jax.models import causal_lm_loss, empty_cache, from_config, from_pretrained, generate
from lntune_jax.names.layers import list_parts
from lntune_jax.paths import flatten
from tests.support.checkpoints import assert_same
from tests.support.decoders import ARCHITECTURES, REFERENCE
from tests.support.scanned import CLASSIFIERS, CONFIG, TOKENS, TOLERANCE, distance, load


def both(name: str) -> tuple[models.PretrainedModel, models.PretrainedModel]:
    """The model with layers scanned, and apart."""
    return load(name, True), load(name, False)


def by_layer(model, leaves):
    """Leaves of a scanned model as those of the other form."""
    if model.name_map is None:
        return leaves
    parts = list_parts(flatten(leaves)[0], model.name_map)
    return {
        part.name: leaf if part.axis is None else leaf[part.number]
        for name, leaf in leaves.items()
        for part in parts[name]
    }


MASK = (np.arange(12) < np.array([[12], [9]])).astype(np.int32)
SEGMENTS = np.array([[1] * 5 + [2] * 7, [1] * 9 + [2] * 3], np.int32)


def compute(model, params, remat="none"):
    """Logits with a mask, the loss of packed texts, and the gradient of both by the norms."""
    scanned = model.name_map is not None
    made = from_config(model.config, model.task, scan_layers=scanned, remat=remat)
    trainable, frozen = lnt.partition_params(params, CONFIG, name_map=model.name_map)

    def loss(params):
        logits = made.apply(params, TOKENS, MASK).logits
        value = jnp.square(logits).mean()
        if made.task == "CAUSAL_LM":
            value += causal_lm_loss(made, params, TOKENS, segment_ids=SEGMENTS, chunk=16)
        return value, logits

    (value, logits), gradients = lnt.value_and_grad(loss, has_aux=True)(trainable, frozen)
    return value, logits, by_layer(model, gradients)


@pytest.mark.parametrize("name", [*ARCHITECTURES, *CLASSIFIERS])
def test_every_number_is_the_same(name):
    """Operation by operation, bit for bit; as one program the compiler rounds otherwise."""
    with jax.disable_jit():
        found, expected = (compute(model, model.params) for model in both(name))
    assert_same(found, expected)


def test_compiled_programs_compute_the_same():
    scanned, apart = both("gemma2")
    value, logits, gradients = jax.jit(functools.partial(compute, apart))(apart.params)
    for remat in ("none", "dots_with_no_batch_dims_saveable", "full"):
        found = jax.jit(functools.partial(compute, scanned, remat=remat))(scanned.params)
        worst = max(distance(found[2][leaf], gradients[leaf]) for leaf in gradients)
        print(f"{distance(found[0], value):.1e} {distance(found[1], logits):.1e} {worst:.1e}")
        assert max(distance(found[0], value), distance(found[1], logits), worst) < TOLERANCE


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_tokens_are_the_same(name):
    prompts, mask = TOKENS[:, :5], np.array([[1] * 5, [0, 0, 1, 1, 1]])
    tokens = []
    for scanned, model in zip((True, False), both(name), strict=True):
        # Rotary positions go on; a table of them is long enough.
        more = {} if name == "gpt2" else {"max_position_embeddings": 32}
        config = model.config.to_dict() | more
        longer = from_config(config, "CAUSAL_LM", scan_layers=scanned)
        tokens.append(generate(longer, model.params, prompts, mask, max_new_tokens=20).tokens)
    assert tokens[0].shape == (2, 20)
    np.testing.assert_array_equal(tokens[0], tokens[1])


def test_a_token_beyond_the_cache_is_not_passed_off_as_kept():
    model = load("llama", True)
    cache = empty_cache(model, batch=1, slots=2)
    output = model.apply(model.params, TOKENS[:1, :3], cache=cache)
    assert cache.keys.shape == (2, 1, 2, 2, 8)
    assert np.isnan(np.asarray(output.last_hidden_state)).any(axis=-1).tolist() == [
        [False, False, True]
    ]


def test_dropout_is_the_same():
    """Every layer has the key that it has where layers are apart."""
    logits = []
    for scanned in (False, True):
        model = load("gpt2", scanned)
        config = model.config.to_dict() | {"resid_pdrop": 0.3, "attn_pdrop": 0.2}
        dropping = from_config(config, "CAUSAL_LM", scan_layers=scanned)
        key = jax.random.key(2)
        logits.append(jax.jit(dropping.apply)(model.params, TOKENS, dropout_rng=key).logits)
    assert distance(logits[1], logits[0]) < TOLERANCE
    assert distance(logits[1], jax.jit(dropping.apply)(model.params, TOKENS).logits) > 0.01


def test_leaves_lie_where_specs_says():
    mesh = jax.make_mesh((1,), ("fsdp",), axis_types=(jax.sharding.AxisType.Auto,))
    seen = {}

    def specs(path, leaf):
        seen[path] = leaf.shape
        return PartitionSpec(None, "fsdp") if leaf.ndim == 3 else PartitionSpec()

    model = from_pretrained(
        REFERENCE / "mistral", "CAUSAL_LM", mesh=mesh, specs=specs, scan_layers=True
    )
    assert seen["model.layers.mlp.up_proj.kernel"] == (2, 24, 36)
    assert seen["model.layers.input_layernorm.scale"] == (2, 24)
    kernel = model.params["model"]["layers"]["mlp"]["up_proj"]["kernel"]
    assert kernel.sharding.spec == PartitionSpec(None, "fsdp")
    assert_same(model.params, load("mistral", True).params)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "bert"}, "scan_layers is True, which bert does not have: leave it out"),
    ],
)
def test_what_cannot_be_scanned_is_refused(config, message):
    with pytest.raises(ModelError) as error:
        from_config(config, scan_layers=True)
    assert message in str(error.value)
    with pytest.raises(ModelError, match="scan_layers is 'yes'; supported: False, True"):
        from_config(config, scan_layers="yes")

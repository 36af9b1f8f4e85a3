"""Precision, dropout and padding: what the models compute beyond the agreement with PyTorch."""

from __future__ import annotations

import json
import shutil
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lntune_jax.models import from_pretrained, mean_pool
from lntune_jax.models.nn.layers import LayerNorm, dropout
from tests.support.paths import REFERENCE

TOKENS = np.array([[5, 6, 7, 8, 9], [10, 11, 12, 1, 1]], np.int32)
MASK = np.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]], np.int32)

TASKS = {
    "bert": None,
    "bert_seq_cls": "SEQ_CLS",
    "roberta_seq_cls": "SEQ_CLS",
    "bert_token_cls": "TOKEN_CLS",
    "bert_masked_lm": "MASKED_LM",
    "roberta_masked_lm_untied": "MASKED_LM",
    "distilbert": None,
    "distilbert_seq_cls": "SEQ_CLS",
    "distilbert_masked_lm_untied": "MASKED_LM",
    "modernbert": None,
    "modernbert_seq_cls": "SEQ_CLS",
    "modernbert_token_cls": "TOKEN_CLS",
    "modernbert_first_token": "SEQ_CLS",
}


def main_output(output):
    return output.last_hidden_state if output.logits is None else output.logits


@pytest.mark.parametrize("name", ["bert_seq_cls", "roberta_masked_lm_untied", "distilbert_seq_cls"])
def test_bfloat16_is_close(name):
    dtype = "bfloat16"
    exact = from_pretrained(REFERENCE / name, TASKS[name])
    low = from_pretrained(REFERENCE / name, TASKS[name], dtype=jnp.dtype(dtype))
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(low.params)} == {dtype}
    expected = np.asarray(main_output(jax.jit(exact.apply)(exact.params, TOKENS, MASK)))
    found = main_output(jax.jit(low.apply)(low.params, TOKENS, MASK))
    assert found.dtype == dtype
    found = np.asarray(found, np.float32)
    assert np.isfinite(found).all()
    # Random weights this large amplify a rounding of 0.4 % by a few times.
    assert np.abs(found - expected).mean() < 0.05 * np.abs(expected).mean()


def widen_norms(params):
    def widen(path, leaf):
        norm = "norm" in jax.tree_util.keystr(path[-2:]).lower()
        return leaf.astype(jnp.float32) if norm else leaf

    return jax.tree_util.tree_map_with_path(widen, params)


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_strict_promotion_and_mixed_trees(name, dtype):
    model = from_pretrained(REFERENCE / name, TASKS[name], dtype=dtype)
    mixed = widen_norms(model.params)

    def loss(params, key):
        output = model.apply(params, TOKENS, MASK, dropout_rng=key)
        return jnp.square(main_output(output).astype(jnp.float32)).mean()

    # Promotion is decided when the function is traced: nothing needs to be computed.
    with jax.numpy_dtype_promotion("strict"):
        whole, gradient = jax.eval_shape(jax.value_and_grad(loss), mixed, jax.random.key(0))
        plain = jax.eval_shape(model.apply, model.params, TOKENS, MASK)
        wide = jax.eval_shape(model.apply, mixed, TOKENS, MASK)
    assert whole.dtype == jnp.float32
    assert [leaf.dtype for leaf in jax.tree.leaves(gradient)] == [
        leaf.dtype for leaf in jax.tree.leaves(mixed)
    ]
    assert main_output(plain).dtype == main_output(wide).dtype == dtype


def test_float32_masters_of_the_same_values_change_nothing():
    model = from_pretrained(REFERENCE / "roberta_masked_lm_untied", "MASKED_LM", dtype="bfloat16")
    run = jax.jit(model.apply)
    plain = run(model.params, TOKENS, MASK).logits
    wide = run(widen_norms(model.params), TOKENS, MASK).logits
    np.testing.assert_array_equal(plain, wide)


def test_all_float32_tree_runs_in_a_bfloat16_model():
    low = from_pretrained(REFERENCE / "bert_masked_lm", "MASKED_LM", dtype="bfloat16")
    exact = from_pretrained(REFERENCE / "bert_masked_lm", "MASKED_LM")
    assert low.apply(exact.params, TOKENS).logits.dtype == jnp.bfloat16


def test_layer_norm_computes_in_float32():
    norm = LayerNorm(64, epsilon=1e-12, dtype="bfloat16", rngs=nnx.Rngs(0))
    x = (jax.random.normal(jax.random.key(0), (3, 64)) + 300).astype(jnp.bfloat16)
    scale = jax.random.normal(jax.random.key(1), (64,)) + 1
    norm.scale.set_value(scale)
    wide = np.asarray(x, np.float64)
    normal = (wide - wide.mean(-1, keepdims=True)) / wide.std(-1, keepdims=True)
    expected = (normal * np.asarray(scale, np.float64)).astype(jnp.bfloat16)
    # One rounding, at the end: only ties may fall the other way.
    np.testing.assert_allclose(
        np.asarray(norm(x), np.float32), expected.astype(np.float32), rtol=2**-7, atol=1e-6
    )


def test_layer_norm_keeps_its_digits_far_from_zero():
    norm = LayerNorm(8, epsilon=1e-12, dtype="float32", rngs=nnx.Rngs(0))
    x = jnp.arange(8.0)[None] + 10_000
    np.testing.assert_allclose(norm(x), norm(jnp.arange(8.0)[None]), atol=1e-5)


def test_layer_norm_scale_gradient_is_summed_in_float32():
    norm = LayerNorm(8, epsilon=1e-6, dtype="bfloat16", rngs=nnx.Rngs(0))
    graph, _ = nnx.split(norm)
    x = jax.random.normal(jax.random.key(0), (4096, 8)).astype(jnp.bfloat16)
    weights = jax.random.uniform(jax.random.key(1), (4096, 8)).astype(jnp.bfloat16)

    def loss(scale):
        tree = {"scale": scale, "bias": jnp.zeros(8)}
        return (nnx.merge(graph, tree)(x) * weights).astype(jnp.float32).sum()

    found = jax.jit(jax.grad(loss))(jnp.ones(8))
    wide = np.asarray(x, np.float64)
    normal = (wide - wide.mean(-1, keepdims=True)) / wide.std(-1, keepdims=True)
    expected = (normal * np.asarray(weights, np.float64)).sum(0)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize("name", ["bert", "roberta_seq_cls", "bert_masked_lm", "distilbert"])
def test_dropout_follows_its_key(name):
    model = from_pretrained(REFERENCE / name, TASKS[name])
    run = jax.jit(model.apply)
    plain, again = (main_output(run(model.params, TOKENS, MASK)) for _ in range(2))
    first, same, other = (
        main_output(run(model.params, TOKENS, MASK, dropout_rng=jax.random.key(seed)))
        for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(plain, again)
    np.testing.assert_array_equal(first, same)
    assert not np.array_equal(first, other)
    assert not np.array_equal(first, plain)


# The last of each is the classifier's.
BERT_RATES = ("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout")
RATES = {
    "bert_seq_cls": BERT_RATES,
    "roberta_seq_cls": BERT_RATES,
    "distilbert_seq_cls": ("dropout", "attention_dropout", "seq_classif_dropout"),
    "modernbert_first_token": (
        "embedding_dropout",
        "attention_dropout",
        "mlp_dropout",
        "classifier_dropout",
    ),
}


@pytest.mark.parametrize(
    ("name", "active"), [(name, rate) for name, rates in RATES.items() for rate in (None, *rates)]
)
def test_each_dropout_rate_acts_alone(tmp_path, name, active):
    directory = shutil.copytree(REFERENCE / name, tmp_path / name)
    fields = json.loads((directory / "config.json").read_text())
    fields |= {rate: 0.5 if rate == active else 0.0 for rate in RATES[name]}
    (directory / "config.json").write_text(json.dumps(fields))
    model = from_pretrained(directory, TASKS[name])
    run = jax.jit(partial(model.apply, with_hidden=True))
    plain = run(model.params, TOKENS, MASK)
    dropped = run(model.params, TOKENS, MASK, dropout_rng=jax.random.key(3))
    same_hidden = np.array_equal(plain.last_hidden_state, dropped.last_hidden_state)
    same_logits = np.array_equal(plain.logits, dropped.logits)
    assert same_hidden == (active in (None, RATES[name][-1]))
    assert same_logits == (active is None)


def test_classifier_dropout_defaults_to_the_hidden_rate(tmp_path):
    directory = shutil.copytree(REFERENCE / "bert_token_cls", tmp_path / "model")
    fields = json.loads((directory / "config.json").read_text())
    fields |= {"hidden_dropout_prob": 1.0, "classifier_dropout": None}
    (directory / "config.json").write_text(json.dumps(fields))
    model = from_pretrained(directory, "TOKEN_CLS")
    logits = model.apply(model.params, TOKENS, dropout_rng=jax.random.key(0)).logits
    bias = np.broadcast_to(model.params["classifier"]["bias"], logits.shape)
    np.testing.assert_allclose(logits, bias, atol=1e-6)


def test_dropout_keeps_the_mean_and_its_rate():
    x = jnp.ones((200, 200))
    dropped = np.asarray(dropout(x, 0.3, jax.random.key(0)))
    assert abs((dropped == 0).mean() - 0.3) < 0.01
    assert abs(dropped.mean() - 1) < 0.02
    assert not np.asarray(dropout(x, 1.0, jax.random.key(0))).any()
    assert dropout(x, 0.0, jax.random.key(0)) is x


@pytest.mark.parametrize("key", [None, 0])
@pytest.mark.parametrize("name", ["bert_seq_cls", "modernbert_seq_cls"])
def test_a_row_of_padding_alone_stays_finite(key, name):
    model = from_pretrained(REFERENCE / name, "SEQ_CLS", pooling="mean")
    mask = np.array([[1, 1, 1, 1, 1], [0, 0, 0, 0, 0]], np.int32)
    key = None if key is None else jax.random.key(key)
    loss = lambda p: model.apply(p, TOKENS, mask, dropout_rng=key).logits.sum()  # noqa: E731
    value, gradient = jax.jit(jax.value_and_grad(loss))(model.params)
    assert np.isfinite(value)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


@pytest.mark.parametrize("name", ["roberta_seq_cls", "distilbert_seq_cls", "modernbert_seq_cls"])
def test_padding_changes_nothing(name):
    model = from_pretrained(REFERENCE / name, "SEQ_CLS", pooling="mean")
    alone = model.apply(model.params, TOKENS[1:, :3]).logits
    padded = model.apply(model.params, TOKENS, MASK).logits[1:]
    by_boolean = model.apply(model.params, TOKENS, MASK.astype(bool)).logits[1:]
    np.testing.assert_allclose(alone, padded, atol=1e-5)
    np.testing.assert_array_equal(padded, by_boolean)


@pytest.mark.parametrize("wrong", [60, -1])
def test_an_id_outside_the_table_gives_nan(wrong):
    model = from_pretrained(REFERENCE / "bert")
    hidden = model.apply(model.params, np.array([[5, 6], [5, wrong]])).last_hidden_state
    assert np.isfinite(hidden[0]).all()
    assert np.isnan(hidden[1]).all()


def test_a_type_outside_a_table_of_one_row_gives_nan():
    model = from_pretrained(REFERENCE / "roberta")
    types = np.array([[0, 0], [0, 1]])
    hidden = model.apply(model.params, TOKENS[:, :2], token_type_ids=types).last_hidden_state
    assert np.isfinite(hidden[0]).all()
    assert np.isnan(hidden[1]).all()


def test_mean_pool():
    hidden = jnp.array([[[1.0, 2.0], [3.0, 4.0], [jnp.nan, 9.0]], [[1.0, 1.0]] * 3])
    mask = jnp.array([[1, 1, 0], [0, 0, 0]])
    np.testing.assert_array_equal(mean_pool(hidden, mask), [[2.0, 3.0], [0.0, 0.0]])
    np.testing.assert_array_equal(mean_pool(hidden[1:], None), [[1.0, 1.0]])
    low = jnp.full((1, 4000, 1), 1.001, jnp.bfloat16)
    assert mean_pool(low, jnp.ones((1, 4000))).dtype == jnp.bfloat16
    assert mean_pool(low, jnp.ones((1, 4000)))[0, 0] == low[0, 0, 0]

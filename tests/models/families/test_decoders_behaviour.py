"""The decoders beyond one forward pass: gradients, bfloat16, packing, caches, remat, dropout."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.extend.core import jaxprs_in_params

import lntune_jax as lnt
from lntune_jax.errors import ModelError
from lntune_jax.models import causal_lm_loss, empty_cache, from_config, from_pretrained
from tests.support.decoders import ARCHITECTURES, REFERENCE

# Norms of a layer, and the last one.
NORMS = {"qwen3": 4, "gemma2": 4, "gemma3_text": 6, "olmo2": 4}
TOKENS = np.random.default_rng(0).integers(4, 60, (2, 12)).astype(np.int32)


def load(name: str, task: str | None = "CAUSAL_LM", **options):
    return from_pretrained(REFERENCE / name, task, **options)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_norms_train(name):
    """The default targets of every norm, through the library's own functions."""
    model = load(name)
    config = lnt.LNTuningConfig(task_type="CAUSAL_LM")
    trainable, frozen = lnt.partition_params(model.params, config)
    layers = model.settings.num_hidden_layers
    leaves = 2 if name == "gpt2" else 1
    assert len(trainable) == leaves * (NORMS.get(name, 2) * layers + 1)
    assert all(path.rsplit(".", 1)[1] in ("scale", "bias") for path in trainable)

    def loss(params, tokens):
        return causal_lm_loss(model, params, tokens)

    value, gradients = jax.jit(lnt.value_and_grad(loss))(trainable, frozen, TOKENS)
    assert np.isfinite(value)
    assert all(np.any(np.asarray(leaf) != 0) for leaf in gradients.values())


def test_paths_are_pytorch_module_paths():
    params = load("qwen3").params
    assert sorted(params) == ["lm_head", "model"]
    assert sorted(params["model"]) == ["embed_tokens", "layers", "norm"]
    layer = params["model"]["layers"]["0"]
    assert sorted(layer["self_attn"]) == [
        "k_norm",
        "k_proj",
        "o_proj",
        "q_norm",
        "q_proj",
        "v_proj",
    ]
    assert list(params["model"]["norm"]) == ["scale"]
    assert sorted(load("qwen3", None).params) == ["embed_tokens", "layers", "norm"]
    assert sorted(load("llama_tied").params) == ["model"]
    assert sorted(load("llama_seq_cls", "SEQ_CLS").params) == ["model", "score"]
    layer = load("olmo2").params["model"]["layers"]["0"]
    norms = ["post_attention_layernorm", "post_feedforward_layernorm"]
    assert sorted(layer) == ["mlp", *norms, "self_attn"]
    widths = [layer["self_attn"][name]["scale"].shape for name in ("q_norm", "k_norm")]
    assert widths == [(32,), (16,)]
    layer = load("phi3").params["model"]["layers"]["0"]
    assert sorted(layer["self_attn"]) == ["o_proj", "qkv_proj"]
    assert sorted(layer["mlp"]) == ["down_proj", "gate_up_proj"]
    params = load("gpt2").params
    assert sorted(params) == ["transformer"]
    assert sorted(params["transformer"]["h"]["0"]) == ["attn", "ln_1", "ln_2", "mlp"]
    assert params["transformer"]["h"]["0"]["attn"]["c_attn"]["kernel"].shape == (24, 72)


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma3_text", "olmo2", "phi3"])
def test_a_bare_model_gives_the_same_hidden_states(name):
    headed, bare = load(name), load(name, None)
    expected = jax.jit(headed.apply)(headed.params, TOKENS)
    found = jax.jit(bare.apply)(bare.params, TOKENS)
    assert found.logits is None
    np.testing.assert_array_equal(found.last_hidden_state, expected.last_hidden_state)


@pytest.mark.parametrize("name", ["qwen3", "gemma2", "gpt2", "olmo2", "phi3"])
def test_bfloat16_is_close(name):
    exact, low = load(name), load(name, dtype="bfloat16")
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(low.params)} == {"bfloat16"}
    found = jax.jit(low.apply)(low.params, TOKENS).logits
    assert found.dtype == jnp.bfloat16
    expected = np.asarray(jax.jit(exact.apply)(exact.params, TOKENS).logits)
    assert np.abs(np.asarray(found, np.float32) - expected).mean() < 0.05 * np.abs(expected).mean()
    # The norms of a bfloat16 model may be float32, and nothing else is then wider.
    trainable, frozen = lnt.partition_params(low.params, lnt.LNTuningConfig())
    assert {str(leaf.dtype) for leaf in trainable.values()} == {"float32"}
    loss = lambda params: causal_lm_loss(low, params, TOKENS)  # noqa: E731
    gradients = jax.eval_shape(lnt.value_and_grad(loss), trainable, frozen)[1]
    assert {str(leaf.dtype) for leaf in gradients.values()} == {"float32"}


@pytest.mark.parametrize("name", ["mistral", "gemma3_text", "gpt2", "llama", "olmo2", "phi3"])
def test_packed_texts_do_not_see_each_other(name):
    """Three texts in a row give the logits, and together the loss, of three rows."""
    model = load(name)
    run = jax.jit(model.apply)
    lengths = (5, 4, 3)
    segments = np.repeat([1, 2, 3], lengths)[None].astype(np.int32)
    packed = run(model.params, TOKENS[:1], segment_ids=segments).logits
    mask = (np.arange(5) < np.array(lengths)[:, None]).astype(np.int32)
    rows = np.zeros((3, 5), np.int32)
    rows[mask == 1] = TOKENS[0]
    apart = np.asarray(run(model.params, rows, mask).logits)[mask == 1]
    np.testing.assert_allclose(packed[0], apart, atol=2e-5)
    together = causal_lm_loss(model, model.params, TOKENS[:1], segment_ids=segments)
    singly = causal_lm_loss(model, model.params, rows, attention_mask=mask)
    np.testing.assert_allclose(together, singly, rtol=1e-5)


@pytest.mark.parametrize("name", ["mistral", "gemma2", "gemma3_text", "gpt2", "olmo2", "phi3"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_decoding_with_a_cache(name, side):
    """Token after token, rows of different lengths, as in one go."""
    model = load(name)
    run = jax.jit(model.apply)
    mask = np.array([[1] * 6, [1] * 4 + [0] * 2], np.int32)
    mask = mask if side == "right" else mask[:, ::-1]
    first = run(model.params, TOKENS[:, :6], mask, cache=empty_cache(model, 2, 11))
    found, cache = [np.asarray(first.logits)[mask == 1]], first.cache
    for step in range(6, 10):
        output = run(model.params, TOKENS[:, step : step + 1], cache=cache)
        cache = output.cache
        found.append(np.asarray(output.logits)[:, 0])
    if side == "right":
        # What follows padding on the right takes its place.
        rows = [TOKENS[0, :10], np.delete(TOKENS[1, :10], (4, 5))]
        whole = [np.asarray(run(model.params, row[None]).logits)[0] for row in rows]
        expected = [np.concatenate([whole[0][:6], whole[1][:4]])]
        expected += [np.stack([whole[0][6 + i], whole[1][4 + i]]) for i in range(4)]
    else:
        full = np.concatenate([mask, np.ones((2, 4), np.int32)], axis=1)
        logits = np.asarray(run(model.params, TOKENS[:, :10], full).logits)
        expected = [logits[:, :6][mask == 1], *(logits[:, 6 + i] for i in range(4))]
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=2e-5)


def test_a_full_cache_gives_no_numbers():
    model = load("llama")
    output = model.apply(model.params, TOKENS, cache=empty_cache(model, 2, 11))
    assert np.isnan(np.asarray(output.logits)[:, 11]).all()
    assert np.isfinite(np.asarray(output.logits)[:, :11]).all()
    with pytest.raises(ModelError, match="the cache has 3 rows; expected 2"):
        model.apply(model.params, TOKENS, cache=empty_cache(model, 3, 11))
    with pytest.raises(ModelError, match="segment_ids go without a cache"):
        model.apply(model.params, TOKENS, segment_ids=TOKENS, cache=empty_cache(model, 2, 11))


def shapes_in(jaxpr) -> set[tuple[int, ...]]:
    """Every shape that a program computes, in its inner programs too."""
    found = set()
    for equation in jaxpr.eqns:
        found |= {tuple(getattr(out.aval, "shape", ())) for out in equation.outvars}
        for inner in jaxprs_in_params(equation.params):
            found |= shapes_in(inner)
    return found


def plain_loss(model, params, tokens, labels):
    logits = model.apply(params, tokens).logits.astype(jnp.float32)[:, :-1]
    counted = labels[:, 1:] != -100
    with jax.numpy_dtype_promotion("standard"):
        losses = optax.softmax_cross_entropy_with_integer_labels(
            logits, jnp.where(counted, labels[:, 1:], 0)
        )
        return jnp.where(counted, losses, 0).sum() / counted.sum()


@pytest.mark.parametrize("name", ["llama", "llama_tied", "gemma2", "gpt2_untied", "olmo2", "phi3"])
@pytest.mark.parametrize("chunk", [7, 30, 1000])
def test_the_loss_in_chunks_is_the_plain_loss(name, chunk):
    model = load(name)
    labels = TOKENS.copy()
    labels[0, :5] = -100
    chunked = jax.value_and_grad(lambda p: causal_lm_loss(model, p, TOKENS, labels, chunk=chunk))
    plain = jax.value_and_grad(lambda p: plain_loss(model, p, TOKENS, labels))
    found, expected = jax.jit(chunked)(model.params), jax.jit(plain)(model.params)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-5), found, expected
    )


def test_the_whole_logits_are_never_there():
    fields = {"num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    fields |= {"model_type": "llama", "vocab_size": 4000, "hidden_size": 16}
    model = from_config(fields, "CAUSAL_LM")
    trainable, frozen = lnt.partition_params(model.params, lnt.LNTuningConfig())
    tokens = jax.ShapeDtypeStruct((4, 65), "int32")

    def program(loss):
        return jax.jit(lnt.value_and_grad(loss)).trace(trainable, frozen, tokens)

    plain = program(lambda params, tokens: plain_loss(model, params, tokens, tokens))
    chunked = program(lambda params, tokens: causal_lm_loss(model, params, tokens, chunk=500))
    assert (4, 65, 4000) in shapes_in(plain.jaxpr)
    sizes = [np.prod(shape) for shape in shapes_in(chunked.jaxpr) if shape[-1:] == (4000,)]
    # The output weights themselves, and nothing with a token's axis.
    assert max(sizes, default=0) <= 16 * 4000
    assert all(np.prod(shape) <= 256 * 500 for shape in shapes_in(chunked.jaxpr))
    # No constant of a chunk's size waits outside of the loop over chunks.
    outside = [variable.aval.shape for e in chunked.jaxpr.eqns for variable in e.outvars]
    assert (256, 500) not in outside
    used = [t.lower().compile().memory_analysis() for t in (plain, chunked)]
    if all(used):
        whole, small = (analysis.temp_size_in_bytes for analysis in used)
        assert whole > 4 * 64 * 4000 * 4 > small
        assert small < 4.5 * 256 * 500 * 4


def test_labels():
    model = load("llama")
    loss = lambda **given: float(causal_lm_loss(model, model.params, TOKENS, **given))  # noqa: E731
    assert loss() == loss(labels=TOKENS)
    assert np.isnan(loss(labels=np.where(TOKENS > 50, 60, TOKENS)))
    assert np.isnan(loss(labels=np.full_like(TOKENS, -100)))
    # The first column is nobody's prediction.
    assert loss(labels=np.where(np.arange(12) == 0, -100, TOKENS)) == loss()
    mask = np.where(np.arange(12) < 3, 0, 1) * np.ones((2, 1), np.int32)
    left = np.where(np.arange(12) <= 3, -100, TOKENS)
    assert loss(attention_mask=mask) == loss(attention_mask=mask, labels=left)
    segments = np.where(np.arange(12) < 8, 1, 0) * np.ones((2, 1), np.int32)
    right = np.where(np.arange(12) < 8, TOKENS, -100)
    assert loss(segment_ids=segments) == loss(segment_ids=segments, labels=right)
    with pytest.raises(ModelError, match="labels has the shape"):
        loss(labels=TOKENS[:1])
    with pytest.raises(ModelError, match="chunk is 0"):
        loss(chunk=0)
    with pytest.raises(ModelError, match="task is None; the loss needs 'CAUSAL_LM'"):
        causal_lm_loss(load("llama", None), {}, TOKENS)


@pytest.mark.parametrize("name", ["gemma3_text", "gpt2", "olmo2", "phi3"])
def test_remat_changes_nothing_but_what_is_stored(name):
    found, counts = {}, {}
    for remat in ("none", "dots_with_no_batch_dims_saveable", "full"):
        model = load(name, remat=remat)
        trainable, frozen = lnt.partition_params(model.params, lnt.LNTuningConfig())
        loss = lambda params, m=model: causal_lm_loss(m, params, TOKENS)  # noqa: E731
        step = jax.jit(lnt.value_and_grad(loss))
        found[remat] = step(trainable, frozen)
        counts[remat] = str(step.trace(trainable, frozen).jaxpr).count("dot_general")
    for remat in ("dots_with_no_batch_dims_saveable", "full"):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), found[remat], found["none"]
        )
    assert counts["none"] < counts["full"]
    assert counts["dots_with_no_batch_dims_saveable"] < counts["full"]


DROPOUT = {
    "llama": {"attention_dropout": 0.5},
    "gpt2": {},
    "olmo2": {"attention_dropout": 0.5},
    "phi3": {"attention_dropout": 0.5},
    "phi3 residual": {"resid_pdrop": 0.5},
}


@pytest.mark.parametrize("name", DROPOUT)
def test_dropout(name):
    fields, stored = DROPOUT[name], load(name.split()[0])
    config = stored.config.to_dict() | fields
    model = from_config(config, "CAUSAL_LM")
    run = jax.jit(lambda key: model.apply(stored.params, TOKENS, dropout_rng=key).logits)
    first, again, other = run(jax.random.key(0)), run(jax.random.key(0)), run(jax.random.key(1))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 0.01
    still = jax.jit(model.apply)(stored.params, TOKENS).logits
    np.testing.assert_array_equal(still, jax.jit(stored.apply)(stored.params, TOKENS).logits)


def test_a_classifier_reads_the_last_token_that_is_no_padding():
    model = load("llama_seq_cls", "SEQ_CLS")
    assert model.fresh == ()
    model.config.pad_token_id = None
    other = from_config(model.config, "SEQ_CLS")
    with pytest.raises(ModelError, match="'pad_token_id' is None"):
        other.apply(model.params, TOKENS)
    one = other.apply(model.params, TOKENS[:1]).logits
    np.testing.assert_allclose(one, model.apply(model.params, TOKENS[:1]).logits, atol=1e-6)


def test_a_phi3_drops_what_attention_and_the_mlp_give_and_no_embeddings():
    """With everything dropped no layer adds to the embeddings; their own rate has no effect."""
    stored = load("phi3")
    fields = stored.config.to_dict()

    def hidden(**rates):
        model = from_config(fields | rates)
        run = lambda key: model.apply(stored.params["model"], TOKENS, dropout_rng=key)  # noqa: E731
        return np.asarray(jax.jit(run)(jax.random.key(0)).last_hidden_state)

    table = np.asarray(stored.params["model"]["embed_tokens"]["embedding"])[TOKENS]
    scale = np.asarray(stored.params["model"]["norm"]["scale"])
    expected = table / np.sqrt(np.square(table).mean(-1, keepdims=True) + 1e-3) * scale
    np.testing.assert_allclose(hidden(resid_pdrop=1.0), expected, atol=1e-5)
    np.testing.assert_array_equal(hidden(embd_pdrop=1.0), hidden())

"""A classifier of the first token computes no more of the last layer than it reads."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lntune_jax.models import from_config

pytestmark = pytest.mark.usefixtures("quick_compilation")
SIZES = {
    "vocab_size": 50,
    "hidden_size": 16,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 16,
    "attention_probs_dropout_prob": 0.3,
    "hidden_dropout_prob": 0.3,
    "classifier_dropout": 0.0,
}
IDS = jnp.asarray(np.random.default_rng(0).integers(5, 50, (3, 9)), "int32")
MASK = jnp.ones_like(IDS).at[1, 6:].set(0)


def make(kind, **choices):
    extra = {"pad_token_id": 1, "max_position_embeddings": 18} if kind == "roberta" else {}
    model = from_config(SIZES | extra | {"model_type": kind}, "SEQ_CLS", num_labels=3, **choices)
    random = np.random.default_rng(1)
    params = jax.tree.map(
        lambda leaf: jnp.asarray(random.standard_normal(leaf.shape) * 0.3, leaf.dtype), model.params
    )
    return model, params


def classify(kind, params, state):
    """The architecture's own head on the first token's state."""

    def dense(weights, x):
        return x @ weights["kernel"] + weights["bias"]

    inner = params["bert"]["pooler"] if kind == "bert" else params["classifier"]
    last = params["classifier"] if kind == "bert" else params["classifier"]["out_proj"]
    return dense(last, jnp.tanh(dense(inner["dense"], state)))


@pytest.mark.parametrize("dropping", [False, True], ids=["whole", "dropout"])
@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_logits_are_those_of_the_hidden_states_and_so_are_gradients(kind, dropping):
    model, params = make(kind)
    key = jax.random.key(3) if dropping else None

    def apply(params):
        return model.apply(params, IDS, MASK, dropout_rng=key)

    def alone(params):
        logits = apply(params).logits
        return jnp.square(logits).sum(), logits

    def from_whole(params):
        output = model.apply(params, IDS, MASK, dropout_rng=key, with_hidden=True)
        logits = classify(kind, params, output.last_hidden_state[:, 0])
        return jnp.square(logits).sum(), logits

    found, expected = (jax.value_and_grad(f, has_aux=True)(params) for f in (alone, from_whole))
    jax.tree.map(
        lambda one, other: np.testing.assert_allclose(one, other, rtol=2e-4, atol=1e-4),
        found,
        expected,
    )
    if dropping:
        assert not np.allclose(found[0][1], model.apply(params, IDS, MASK).logits, atol=1e-3)


def test_the_last_layer_s_products_are_of_one_token_and_only_where_one_is_read():
    from tests.support.flops import count_flops

    def count(read, with_hidden=False, **choices):
        model, params = make("bert", **choices)
        run = jax.jit(lambda params: read(model.apply(params, IDS, with_hidden=with_hidden)))
        return count_flops(run.lower(params).compile().as_text())

    tokens, width, wide, rows = IDS.size, 16, 40, len(IDS)
    left_out = 2 * (tokens - rows) * (2 * width * width + 2 * width * wide)
    left_out += 4 * rows * (IDS.shape[1] - 1) * IDS.shape[1] * width
    head = 2 * rows * width * (width + 3)
    whole = count(lambda output: output.last_hidden_state, with_hidden=True)
    assert count(lambda output: output.logits) == whole - left_out + head
    mean = count(lambda output: output.logits, pooling="mean")
    assert mean == whole + 2 * rows * width * 3


@pytest.mark.parametrize("with_hidden", [False, True])
@pytest.mark.parametrize(("kind", "pooling"), [("bert", None), ("bert", "mean"), ("roberta", None)])
def test_a_program_holds_every_layer_once(kind, pooling, with_hidden):
    model, params = make(kind, pooling=pooling)

    def run(params):
        return model.apply(params, IDS, with_hidden=with_hidden)

    products = str(jax.make_jaxpr(run)(params)).count("= dot_general")
    head = 1 if pooling == "mean" else 2
    assert products == 8 * SIZES["num_hidden_layers"] + head
    hidden = run(params).last_hidden_state
    assert (hidden is None) == (pooling is None and not with_hidden)

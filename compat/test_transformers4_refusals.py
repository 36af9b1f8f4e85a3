"""Where a Flax class of transformers 4 is silently wrong, it is refused by the entry's name.

The differences from PyTorch behind each refusal are in docs/sources/transformers-4.md. What shows
without PyTorch is shown here: the Flax model gives the same logits whatever the entry says.
"""

import numpy as np
import pytest
import transformers
from test_transformers4 import GROUPED, TOKENS
from transformers4_checks import check_model

from lntune_jax.errors import ModelError

LINEAR = {"rope_type": "linear", "factor": 2.0}


def make(kind, **entries):
    return getattr(transformers, f"{kind}Config")(**GROUPED | entries)


@pytest.mark.parametrize(
    ("kind", "entries", "message"),
    [
        ("Llama", {"rope_theta": 5e5}, "FlaxLlama ignores rope_theta=500000.0"),
        ("Llama", {"rope_scaling": LINEAR}, "FlaxLlama ignores rope_scaling="),
        ("Llama", {"tie_word_embeddings": True}, "FlaxLlama ignores tie_word_embeddings=True"),
        ("Llama", {"mlp_bias": True}, "FlaxLlama ignores mlp_bias=True"),
        ("Mistral", {"rope_theta": 1e6}, "FlaxMistral ignores rope_theta=1000000.0"),
        ("Mistral", {"tie_word_embeddings": True}, "FlaxMistral ignores tie_word"),
        ("Mistral", {"sliding_window": None}, "FlaxMistral ignores sliding_window=None"),
        ("Mistral", {"sliding_window": 32}, "sliding_window=32 in sequences longer.*length is 64"),
        ("Gemma", {"rope_theta": 1e6, "head_dim": 8}, "FlaxGemma ignores rope_theta"),
    ],
)
def test_refusals(kind, entries, message):
    with pytest.raises(ModelError, match=message) as caught:
        check_model(make(kind, **entries))
    assert "lntune_jax.models.from_pretrained" in str(caught.value)


def test_what_is_right_passes():
    for kind in ("Llama", "Mistral", "Gemma"):
        check_model(make(kind))
    check_model(make("Mistral", sliding_window=32), length=32)
    check_model(make("Gemma", tie_word_embeddings=True))
    check_model(transformers.BertConfig(tie_word_embeddings=True))
    with pytest.raises(ModelError, match="must be a Flax model of transformers, not dict"):
        check_model({})


@pytest.mark.parametrize(
    ("kind", "entries"),
    [
        ("Llama", {"rope_theta": 5e5}),
        ("Llama", {"rope_scaling": LINEAR}),
        ("Mistral", {"rope_theta": 1e6}),
        ("Gemma", {"rope_theta": 1e6, "head_dim": 8}),
    ],
)
def test_the_flax_classes_do_ignore_the_entry(kind, entries):
    """The day one of these fails, that refusal has become needless."""
    flax_class = getattr(transformers, f"Flax{kind}ForCausalLM")
    plain = {k: v for k, v in entries.items() if k == "head_dim"}
    logits = [
        np.asarray(flax_class(make(kind, **each), seed=0)(TOKENS).logits)
        for each in (entries, plain)
    ]
    np.testing.assert_array_equal(*logits)


@pytest.mark.parametrize("kind", ["Llama", "Mistral"])
def test_a_tied_head_is_a_parameter_of_its_own(kind):
    model = getattr(transformers, f"Flax{kind}ForCausalLM")(
        make(kind, tie_word_embeddings=True), seed=0
    )
    assert "lm_head" in model.params


def test_without_a_window_mistral_sees_no_context():
    model = transformers.FlaxMistralForCausalLM(make("Mistral", sliding_window=None), seed=0)
    changed = TOKENS.copy()
    changed[:, 0] = (changed[:, 0] + 1) % 64
    before, after = (np.asarray(model(tokens).logits)[:, 1:] for tokens in (TOKENS, changed))
    np.testing.assert_array_equal(before, after)

"""The Flax classes of transformers 4.57: selected by type, tuned, restored."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import transformers
import transformers4_checks
from checks import check_selection, check_tuning

import lntune_jax as lnt

NORMS = ("LayerNorm", "FlaxT5LayerNorm", "FlaxLlamaRMSNorm", "FlaxMistralRMSNorm")
NORMS += ("FlaxGemmaRMSNorm",)
CONFIG = lnt.LNTuningConfig()
DECODER = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
DECODER |= {"num_attention_heads": 4, "max_position_embeddings": 64}
GROUPED = DECODER | {"num_key_value_heads": 2}
T5 = {"vocab_size": 64, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}
GPT2 = {"vocab_size": 64, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
MODELS = {
    "bert": ("Bert", "ForMaskedLM", DECODER),
    "gpt2": ("GPT2", "LMHeadModel", GPT2),
    "t5": ("T5", "ForConditionalGeneration", T5),
    "mistral": ("Mistral", "ForCausalLM", GROUPED),
    "llama": ("Llama", "ForCausalLM", GROUPED),
    "gemma": ("Gemma", "ForCausalLM", GROUPED | {"head_dim": 8}),
}
TOKENS = np.random.default_rng(0).integers(1, 64, (4, 12)).astype("int32")


def make_model(name):
    kind, task, sizes = MODELS[name]
    transformers4_checks.mend_clip()
    config = getattr(transformers, f"{kind}Config")(**sizes)
    model = getattr(transformers, f"Flax{kind}{task}")(config, seed=0)
    transformers4_checks.check_model(model)
    return model


def apply(model, params, tokens):
    """The logits; the decoder of T5 gets what its encoder does."""
    more = {"decoder_input_ids": tokens} if model.config.is_encoder_decoder else {}
    return model(tokens, params=params, **more).logits


def list_norms(model):
    """The module paths of transformers' own norm classes, and Linen's, met on the way."""
    found = set()

    def record(call, args, kwargs, context):
        if type(context.module).__name__ in NORMS:
            found.add(".".join(context.module.path))
        return call(*args, **kwargs)

    with nn.intercept_methods(record):
        jax.eval_shape(lambda params: apply(model, params, TOKENS), model.params)
    return found


@pytest.mark.parametrize("name", MODELS)
def test_transformers4(name, record, tmp_path):
    model = make_model(name)
    expected = list_norms(model)
    check_selection({"params": model.params}, CONFIG, expected, norms=expected)

    def loss_fn(params, tokens):
        # BERT sees the tokens themselves, the others the one before.
        is_bert = name == "bert"
        logits = apply(model, params, tokens)
        logits, labels = (logits, tokens) if is_bert else (logits[:, :-1], tokens[:, 1:])
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    check_tuning(
        record,
        lambda: jax.tree.map(jnp.asarray, make_model(name).params),
        CONFIG,
        expected,
        loss_fn,
        TOKENS,
        tmp_path,
        apply_fn=lambda params, tokens: apply(model, params, tokens),
    )


def test_t5_does_not_run_unmended():
    """The day this fails, `mend_clip` has become needless."""
    with pytest.raises(TypeError, match="a_max"):
        jnp.clip(jnp.zeros(2), a_max=0)
    transformers4_checks.mend_clip()
    module = transformers.models.t5.modeling_flax_t5
    assert module.jnp.clip(jnp.arange(3), a_max=1).tolist() == [0, 1, 1]
    assert module.jnp.clip(jnp.arange(3), 1, 2).tolist() == [1, 1, 2]
    assert jnp.clip is not module.jnp.clip


def test_the_example(run_example):
    said = run_example("transformers4_flax.py")
    assert "trains 10 leaves" in said
    assert "identical True" in said
    assert "refused: FlaxLlama ignores rope_theta" in said

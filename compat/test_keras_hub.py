"""KerasHub: ten backbones, their norms by its own layer classes."""

import jax.numpy as jnp
import keras
import keras_hub
import numpy as np
import pytest
from checks import check_selection, check_trace, check_tuning
from keras_hub.src.models.gemma import rms_normalization as gemma
from keras_hub.src.models.gemma3 import gemma3_layers as gemma3
from keras_hub.src.models.llama import llama_layernorm as llama
from keras_hub.src.models.mistral import mistral_layer_norm as mistral
from keras_hub.src.models.qwen import qwen_layernorm as qwen
from keras_hub.src.models.qwen3 import qwen3_layernorm as qwen3

import lntune_jax as lnt

NORMS = (
    keras.layers.LayerNormalization,
    keras.layers.RMSNormalization,
    gemma.RMSNormalization,
    gemma3.RMSNormalization,
    llama.LlamaLayerNorm,
    mistral.MistralLayerNormalization,
    qwen.QwenLayerNorm,
    qwen3.Qwen3LayerNorm,
)
CONFIG = lnt.LNTuningConfig()
SIZES = {"vocabulary_size": 32, "num_layers": 2, "hidden_dim": 16, "intermediate_dim": 24}
DECODER = SIZES | {"num_query_heads": 2, "num_key_value_heads": 1}
GEMMA2 = DECODER | {"head_dim": 8, "use_post_ffw_norm": True, "use_post_attention_norm": True}
BACKBONES = {
    "bert": ("BertBackbone", SIZES | {"num_heads": 2}),
    "gpt2": ("GPT2Backbone", SIZES | {"num_heads": 2}),
    "gemma": ("GemmaBackbone", DECODER | {"head_dim": 8}),
    "gemma2": ("GemmaBackbone", GEMMA2),
    "gemma3": (
        "Gemma3Backbone",
        GEMMA2 | {"image_size": None, "use_query_key_norm": True, "vision_encoder": None},
    ),
    "llama": ("LlamaBackbone", DECODER),
    "llama3": ("Llama3Backbone", DECODER),
    "mistral": ("MistralBackbone", DECODER),
    "qwen2": ("QwenBackbone", DECODER),
    "qwen3": ("Qwen3Backbone", DECODER | {"head_dim": 8}),
}
TUNED = ("bert", "gpt2", "gemma3", "llama")


def make_model(name):
    keras.utils.clear_session()
    keras.utils.set_random_seed(0)
    kind, sizes = BACKBONES[name]
    return getattr(keras_hub.models, kind)(**sizes)


def list_norms(model):
    layers = [layer for layer in model._flatten_layers() if isinstance(layer, NORMS)]
    return {w.path.rpartition("/")[0].replace("/", ".") for layer in layers for w in layer.weights}


def make_batch(name):
    tokens = np.random.default_rng(0).integers(1, 32, (4, 8)).astype("int32")
    batch = {"token_ids": tokens, "padding_mask": np.ones((4, 8), "int32")}
    return batch | {"segment_ids": np.zeros((4, 8), "int32")} if name == "bert" else batch


def make_apply(model):
    """`apply_fn(params, batch)`: the hidden states, with parameters by path."""
    state = [variable.value for variable in model.non_trainable_variables]

    def apply_fn(params, batch):
        values = lnt.integrations.keras.list_values(model, params)
        output, _ = model.stateless_call(values, state, batch, training=False)
        return output["sequence_output"] if isinstance(output, dict) else output

    return apply_fn


@pytest.mark.parametrize("name", BACKBONES)
def test_the_norms_are_those_of_the_layer_types(name):
    model = make_model(name)
    params, expected = lnt.integrations.keras.get_params(model), list_norms(model)
    assert lnt.integrations.keras.norm_modules(model) == expected
    check_selection(params, CONFIG, expected, norms=expected)
    check_selection(params, CONFIG, expected)  # by names and shapes alone
    check_trace(make_apply(model), params, make_batch(name), expected)


@pytest.mark.parametrize("name", TUNED)
def test_keras_hub(name, record, tmp_path):
    model = make_model(name)
    apply_fn = make_apply(model)
    target = jnp.asarray(np.random.default_rng(1).normal(size=(4, 8, 16)).astype("float32"))
    check_tuning(
        record,
        lambda: lnt.integrations.keras.get_params(make_model(name)),
        CONFIG,
        list_norms(model),
        lambda params, batch: ((apply_fn(params, batch) - target) ** 2).mean(),
        make_batch(name),
        tmp_path,
        apply_fn=apply_fn,
    )

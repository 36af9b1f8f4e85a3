"""What the decoders read from a config, in both spellings, and what they refuse by name."""

from __future__ import annotations

import json

import jax
import numpy as np
import pytest
from transformers import (
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    Olmo2Config,
    Phi3Config,
    Qwen2Config,
    Qwen3Config,
)

from lntune_jax.errors import ModelError
from lntune_jax.models import from_config, from_pretrained
from lntune_jax.models.families import FAMILIES, gpt2, olmo2, phi3
from lntune_jax.models.families.base import VARIANTS, WITHOUT_EFFECT, list_fields
from lntune_jax.models.families.decoders import DECODER
from lntune_jax.models.families.llama import HONOURED, TRAITS, read_settings
from lntune_jax.models.nn.rope import fixed_frequencies
from tests.support.checkpoints import REFERENCE as ROOT

REFERENCE = ROOT / "decoders"
TINY = {
    "vocab_size": 60,
    "hidden_size": 24,
    "intermediate_size": 36,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 16,
}
CONFIGS = {
    "llama": LlamaConfig,
    "mistral": MistralConfig,
    "qwen2": Qwen2Config,
    "qwen3": Qwen3Config,
    "gemma": GemmaConfig,
    "gemma2": Gemma2Config,
    "gemma3_text": Gemma3TextConfig,
    "olmo2": Olmo2Config,
    "phi3": Phi3Config,
}


class Stub:
    """A config without checks of its own, as a plain object."""

    def __init__(self, model_type: str, **fields):
        base = (
            CONFIGS[model_type](**TINY)
            if model_type in CONFIGS
            else GPT2Config(n_embd=24, n_head=3)
        )
        self.__dict__.update(base.to_dict() | {"num_labels": 2, "is_causal": True} | fields)
        self.model_type = model_type


REFUSED = [
    ("llama", "hidden_act", "prelu", "one of gelu,"),
    ("llama", "num_key_value_heads", 3, "a divisor of 4 attention heads"),
    ("llama", "head_dim", 7, "an even number"),
    ("llama", "head_dim", 0, "an integer of at least 1"),
    ("llama", "vocab_size", None, "an integer of at least 1"),
    ("llama", "rms_norm_eps", 0, "a number above 0"),
    ("llama", "attention_bias", "yes", "True or False"),
    ("llama", "attention_dropout", 2, "a number from 0 to 1"),
    ("llama", "sliding_window", 4, "None, for this architecture"),
    ("llama", "final_logit_softcapping", 30.0, "None, for this architecture"),
    ("llama", "quantization_config", {"bits": 4}, "weights that are not quantised"),
    ("llama", "is_causal", False, "True"),
    ("llama", "partial_rotary_factor", 0.5, "1 "),
    ("mistral", "attention_bias", True, "False, for this architecture"),
    ("mistral", "layer_types", ["full_attention"] * 2, "None, for this architecture"),
    ("mistral", "sliding_window", 0, "an integer of at least 1"),
    ("qwen2", "mlp_bias", True, "False, for this architecture"),
    ("qwen2", "layer_types", ["full_attention"], "a list of 2"),
    ("qwen3", "layer_types", ["full_attention", "chunked_attention"], "a list of"),
    ("gemma", "hidden_activation", "relu", "None or 'gelu_pytorch_tanh'"),
    ("gemma", "use_bidirectional_attention", True, "False"),
    ("gemma2", "query_pre_attn_scalar", 0, "a number above 0"),
    ("gemma2", "attn_logit_softcapping", -1.0, "a number above 0"),
    ("gemma3_text", "attn_logit_softcapping", 50.0, "None, for this architecture"),
    ("gemma3_text", "use_bidirectional_attention", True, "False"),
    ("olmo2", "attention_bias", 1, "True or False"),
    ("olmo2", "sliding_window", 4, "None, for this architecture"),
    ("olmo2", "layer_types", ["full_attention"] * 2, "None, for this architecture"),
    ("olmo2", "mlp_bias", True, "False, for this architecture"),
    ("olmo2", "query_pre_attn_scalar", 9, "None, for this architecture"),
    ("olmo2", "partial_rotary_factor", 0.5, "1 "),
    ("olmo2", "hidden_act", "prelu", "one of gelu,"),
    ("phi3", "attention_bias", True, "False, for this architecture"),
    ("phi3", "layer_types", ["full_attention"] * 2, "None, for this architecture"),
    ("phi3", "final_logit_softcapping", 30.0, "None, for this architecture"),
    ("phi3", "sliding_window", 0, "an integer of at least 1"),
    ("phi3", "resid_pdrop", 1.5, "a number from 0 to 1"),
    ("phi3", "num_key_value_heads", 3, "a divisor of 4 attention heads"),
    ("gpt2", "n_head", 5, "an integer of at least 1|a multiple of n_head"),
    ("gpt2", "activation_function", "prelu", "one of gelu,"),
    ("gpt2", "add_cross_attention", True, "False"),
    ("gpt2", "scale_attn_weights", 1.0, "True or False"),
    ("gpt2", "n_positions", 0, "an integer of at least 1"),
]


@pytest.mark.parametrize(("model_type", "field", "value", "supported"), REFUSED)
def test_fields_are_refused_by_name(model_type, field, value, supported):
    named = "n_embd" if field == "n_head" else field
    with pytest.raises(ModelError, match=f"config field '{named}' is .*supported: ({supported})"):
        from_config(Stub(model_type, **{field: value}))


ROPES = [
    ({"rope_type": "axial", "factor": 2.0}, "rope_type' is 'axial'; supported: one of"),
    ({"rope_type": []}, r"rope_type' is \[\]; supported: one of"),
    ({"rope_type": "proportional"}, "rope_type' is 'proportional'"),
    ({"rope_type": "linear"}, "factor' is None"),
    ({"rope_type": "linear", "factor": 0}, "factor' is 0; supported: a number above 0"),
    ({"rope_type": "linear", "factor": 2.0, "beta_fast": 3}, "beta_fast' is 3; supported: no such"),
    ({"rope_type": "default", "factor": 2.0}, "factor' is 2.0; supported: no such key"),
    ({"rope_type": "default", "mrope_section": [1, 2]}, "mrope_section'"),
    ({"rope_type": "default", "partial_rotary_factor": 0.5}, "partial_rotary_factor' is 0.5"),
    ({"rope_type": "default", "rope_theta": 1}, "rope_theta' is 1; supported: a number above 1"),
    ({"rope_type": "yarn", "factor": 2.0, "truncate": 1}, "truncate' is 1"),
    ({"rope_type": "llama3", "factor": 8.0}, "low_freq_factor' is None"),
    ({"rope_type": "longrope", "long_factor": [1.0] * 4}, "short_factor' is None; supported: a v"),
    (
        {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [1.0] * 3},
        r"long_factor' is .*; supported: a list of 4 numbers above 0",
    ),
    (
        {"rope_type": "longrope", "short_factor": [1.0] * 3 + [0], "long_factor": [1.0] * 4},
        r"short_factor' is .*; supported: a list of 4 numbers above 0",
    ),
    (
        {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 4.0, "high_freq_factor": 1.0},
        "high_freq_factor' is 1.0; supported: more than low_freq_factor",
    ),
    ({"full_attention": {"rope_type": "default"}}, "supported: one set for all layers"),
]


@pytest.mark.parametrize("share", [0, 0.9, 0.1, 1.5, "half"])
def test_a_share_of_a_head_is_whole_pairs(share):
    """Of a head of eight: seven, none, or more than there are."""
    expected = "supported: (a number above 0, 1 at most|an even number of a head's 8 entries)"
    rope = {"rope_type": "default", "partial_rotary_factor": share}
    with pytest.raises(ModelError, match=f"rope_parameters.partial_rotary_factor' is .*{expected}"):
        from_config(Stub("phi3", rope_parameters=rope))
    with pytest.raises(ModelError, match=f"field 'partial_rotary_factor' is .*{expected}"):
        from_config(Stub("phi3", rope_parameters=None, partial_rotary_factor=share))


@pytest.mark.parametrize(("parameters", "message"), ROPES)
def test_rotary_positions_are_refused_by_name(parameters, message):
    with pytest.raises(ModelError, match=message):
        from_config(Stub("llama", rope_parameters=parameters))
    if "full_attention" not in parameters:
        with pytest.raises(ModelError, match="rope_scaling." + message):
            from_config(Stub("llama", rope_parameters=None, rope_scaling=parameters))


def test_options_that_do_not_go_together():
    config = LlamaConfig(**TINY)
    for options, message in (
        ({"task": "MASKED_LM"}, "task is 'MASKED_LM'; supported by llama: None, 'CAUSAL_LM'"),
        (
            {"task": "SEQ_CLS", "pooling": "mean"},
            "pooling='mean' is given, which llama does not have",
        ),
        (
            {"attention": "flash"},
            "attention is 'flash'; supported: 'auto', 'xla', 'cudnn', 'splash'",
        ),
        ({"remat": "some"}, "remat is 'some'; supported: 'none', 'dots_saveable', 'dots_with_"),
        ({"remat": "dots"}, "no_batch_dims_saveable', 'full'"),
    ):
        with pytest.raises(ModelError, match=message):
            from_config(config, **options)
    capped = Gemma2Config(**TINY)
    with pytest.raises(ModelError, match="'cudnn', which knows no soft cap"):
        from_config(capped, attention="cudnn")
    dropping = from_config(LlamaConfig(**TINY, attention_dropout=0.1), attention="cudnn")
    tokens = jax.ShapeDtypeStruct((1, 4), "int32")
    key = jax.eval_shape(lambda: jax.random.key(0))
    with pytest.raises(ModelError, match=r"'attention_dropout' is 0\.1"):
        jax.eval_shape(
            lambda p, t, k: dropping.apply(p, t, dropout_rng=k), dropping.params, tokens, key
        )


@pytest.mark.parametrize("name", [*CONFIGS, "gpt2"])
def test_every_field_of_the_config_classes_is_in_a_table(name):
    kind = CONFIGS.get(name, GPT2Config)
    families = {"gpt2": gpt2, "olmo2": olmo2, "phi3": phi3}
    honoured = families[name].HONOURED if name in families else HONOURED
    own = {
        field
        for parent in kind.__mro__[: [c.__name__ for c in kind.__mro__].index("PreTrainedConfig")]
        for field in list_fields(parent)
    }
    assert len(own) > 15
    assert own <= {*honoured, *WITHOUT_EFFECT, *VARIANTS}


def test_a_field_of_a_newer_config_class_must_hold_its_default():
    class NewerConfig(LlamaConfig):
        logit_scale: float = 1.0

    config = NewerConfig(**TINY)
    from_config(config)
    config.logit_scale = 0.5
    with pytest.raises(ModelError, match=r"'logit_scale' is 0\.5; supported: 1\.0"):
        from_config(config)


class _Late(type(LlamaConfig)):
    """Python 3.14's way on any other: annotations are computed, and are not among the vars."""

    @property
    def __annotations__(cls):
        return {"logit_scale": float}


def test_fields_are_found_where_a_class_does_not_keep_its_annotations():
    class NewerConfig(LlamaConfig, metaclass=_Late):
        logit_scale = 1.0

    assert "__annotations__" not in vars(NewerConfig)
    config = NewerConfig(**TINY)
    from_config(config)
    config.logit_scale = 0.5
    with pytest.raises(ModelError, match=r"'logit_scale' is 0\.5; supported: 1\.0"):
        from_config(config)


OLD = {
    "llama": {"rope_theta": 500.0, "rope_scaling": {"type": "linear", "factor": 2.5}},
    "llama_llama3": None,
    "qwen2": {"rope_theta": 500.0},
    "olmo2": {"rope_theta": 500.0, "rope_scaling": {"type": "linear", "factor": 1.5}},
    "phi3": {"rope_theta": 500.0, "partial_rotary_factor": 0.75},
    "phi3_longrope": None,
    "gemma3_text": {
        "rope_theta": 3000.0,
        "rope_local_base_freq": 200.0,
        "rope_scaling": {"rope_type": "linear", "factor": 4.0},
    },
}


@pytest.mark.parametrize("name", OLD)
def test_the_spelling_of_transformers_4(name):
    """As a dict, as transformers 5 converts it, and as an object of version 4, read here."""
    fields = json.loads((REFERENCE / name / "config.json").read_text())
    new = fields.pop("rope_parameters")
    changes = OLD[name] or {"rope_theta": new.pop("rope_theta"), "rope_scaling": new}
    if name == "llama":
        new = {"rope_type": "linear", "rope_theta": 500.0, "factor": 2.5}
    if OLD[name] is None:
        new |= {"rope_theta": changes["rope_theta"]}
    expected = from_config(fields | {"rope_parameters": new}).settings
    assert from_config(fields | changes).settings == expected
    stub = Stub(fields["model_type"])
    stub.__dict__.update(fields | {"rope_parameters": None} | changes)
    assert FAMILIES[stub.model_type].read_settings(stub) == expected
    assert expected.layers[1].rope.kind != "default" or name in ("qwen2", "phi3")


def test_sliding_layers_without_layer_types():
    """Files of transformers 4 say by a number which layers see a window."""

    def windows(model_type, **fields):
        stub = Stub(model_type, **({"layer_types": None} | fields))
        return [layer.window for layer in read_settings(stub).layers]

    many = {"num_hidden_layers": 7, "sliding_window": 3}
    assert windows("gemma2", **many) == [3, None] * 3 + [3]
    assert windows("gemma3_text", **many) == [3] * 5 + [None, 3]
    assert windows("gemma3_text", **many, sliding_window_pattern=2) == [3, None] * 3 + [3]
    qwen = many | {"max_window_layers": 5}
    assert windows("qwen2", **qwen, use_sliding_window=True) == [None] * 5 + [3, 3]
    assert windows("qwen2", **qwen, use_sliding_window=False) == [None] * 7
    assert windows("mistral", **many) == [3] * 7
    assert windows("mistral", **many | {"sliding_window": None}) == [None] * 7


def test_frequencies_differ_between_the_scalings():
    """Each scaling's reference is a reference for that scaling, not for the plain one."""
    folders = sorted(path.parent for path in REFERENCE.glob("llama_*/config.json"))
    found = {}
    for folder in folders:
        rope = from_config(folder).settings.layers[0].rope
        found[folder.name] = (rope, fixed_frequencies(rope).tobytes())
    scaled = [name for name in found if found[name][0].kind != "default"]
    assert len(scaled) == 6
    assert len({found[name] for name in scaled}) == 6


# Field of a checkpoint's config: what it must not be mistaken for.
MISTAKES = {
    "llama": {
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    },
    "mistral": {"sliding_window": 6, "hidden_act": "silu"},
    "qwen2": {"sliding_window": 3, "layer_types": ["full_attention"] * 3},
    "qwen3": {"sliding_window": 5, "layer_types": ["full_attention"] * 3},
    "gemma": {"hidden_act": "gelu_python"},
    "gemma2": {
        "query_pre_attn_scalar": 8,
        "attn_logit_softcapping": 3.0,
        "final_logit_softcapping": None,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "gemma3_text": {"query_pre_attn_scalar": 8, "final_logit_softcapping": None},
    "olmo2": {"hidden_act": "silu", "rms_norm_eps": 1e-6, "rope_parameters": None},
    "phi3": {
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "sliding_window": 6,
        "rope_parameters": {"rope_type": "default", "rope_theta": 500.0},
    },
    "gpt2": {"scale_attn_by_inverse_layer_idx": False, "activation_function": "gelu_new"},
    "gpt2_untied": {"scale_attn_weights": True},
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_the_references_tell_fields_apart(name):
    """Another value of a field gives other logits: agreement with PyTorch means that it is read."""
    loaded = from_pretrained(REFERENCE / name, "CAUSAL_LM")
    fields = json.loads((REFERENCE / name / "config.json").read_text())
    with np.load(REFERENCE / name / "reference.npz") as arrays:
        tokens, expected = arrays["long.input_ids"], arrays["long.logits"]
    for field, value in MISTAKES[name].items():
        other = from_config(fields | {field: value}, "CAUSAL_LM")
        logits = jax.jit(other.apply)(loaded.params, tokens).logits
        assert np.abs(np.asarray(logits) - expected).max() > 1e-3, field


def test_the_families_are_all_here():
    decoders = {name for name, row in FAMILIES.items() if row.kind is DECODER}
    assert decoders == {*CONFIGS, "gpt2"}
    assert set(TRAITS) == decoders - {"gpt2", "olmo2", "phi3"}

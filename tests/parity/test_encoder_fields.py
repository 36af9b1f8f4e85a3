"""Every config field of the encoders at another value, beside transformers in PyTorch.

And adapters of such models: PEFT loads what is exported, and computes the same.
"""

from __future__ import annotations

import numpy as np
import peft
import pytest
import torch
import transformers

import lntune_jax as lnt
from lntune_jax.models import from_pretrained
from tests.support.paths import REFERENCE

# What PEFT says about norms, and calls in transformers.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Unsupported layer type"),
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning"),
]

DISTIL = {
    "vocab_size": 50,
    "dim": 24,
    "hidden_dim": 40,
    "n_layers": 2,
    "n_heads": 3,
    "max_position_embeddings": 20,
}
MODERN = {
    "vocab_size": 50,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "max_position_embeddings": 20,
    "local_attention": 4,
    "global_attn_every_n_layers": 2,
    "pad_token_id": 0,
}
DEFAULT = {"rope_type": "default", "rope_theta": 300.0}


def stretched(**keys):
    return {"full_attention": {**keys, "rope_theta": 300.0}, "sliding_attention": DEFAULT}


DISTIL_FIELDS = [
    {"vocab_size": 61},
    {"dim": 36},
    {"hidden_dim": 12},
    {"n_layers": 1},
    {"n_heads": 1},
    {"max_position_embeddings": 13},
    {"activation": "relu"},
    {"sinusoidal_pos_embds": True},
    {"pad_token_id": 3},
    {"tie_word_embeddings": False},
    {"dropout": 0.4, "attention_dropout": 0.4, "seq_classif_dropout": 0.4, "qa_dropout": 0.4},
]
MODERN_FIELDS = [
    {"vocab_size": 61},
    {"hidden_size": 36},
    {"intermediate_size": 12},
    {"num_hidden_layers": 1},
    {"num_attention_heads": 1},
    {"hidden_activation": "relu"},
    {"norm_eps": 1e-2},
    {"norm_bias": True},
    {"attention_bias": True},
    {"mlp_bias": True},
    {"decoder_bias": False},
    {"classifier_bias": True},
    {"classifier_activation": "tanh"},
    {"classifier_pooling": "mean"},
    {"local_attention": 1},
    {"local_attention": 9},
    {"global_attn_every_n_layers": 1},
    {"global_attn_every_n_layers": 3},
    {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},
    {"layer_types": ["sliding_attention"] * 3},
    {"global_rope_theta": 50.0},
    {"local_rope_theta": 50.0},
    {"rope_parameters": stretched(rope_type="linear", factor=3.0)},
    {
        "rope_parameters": stretched(
            rope_type="yarn", factor=2.0, original_max_position_embeddings=10
        )
    },
    {"tie_word_embeddings": False},
    {"pad_token_id": 3, "cls_token_id": 5, "sep_token_id": 6},
    {"deterministic_flash_attn": True, "sparse_prediction": True, "initializer_cutoff_factor": 1.0},
    {
        "attention_dropout": 0.4,
        "embedding_dropout": 0.4,
        "mlp_dropout": 0.4,
        "classifier_dropout": 0.4,
    },
]
CASES = [("DistilBert", DISTIL, changes) for changes in DISTIL_FIELDS]
CASES += [("ModernBert", MODERN, changes) for changes in MODERN_FIELDS]
HEADS = {"SEQ_CLS": "ForSequenceClassification", "MASKED_LM": "ForMaskedLM"}


def make(family, head, fields):
    """The PyTorch model, its parameters moved."""
    config = getattr(transformers, f"{family}Config")(**fields, num_labels=3)
    config._attn_implementation = "eager"
    torch.manual_seed(0)
    model = getattr(transformers, family + head)(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.2)
            if "norm" in name.lower() and name.endswith("weight"):
                parameter.add_(1.0)
    return model


def batch(vocabulary):
    """Two texts, the second one short."""
    ids = np.random.default_rng(0).integers(4, vocabulary, (2, 12))
    mask = np.ones_like(ids)
    ids[1, 8:] = mask[1, 8:] = 0
    return {"input_ids": ids, "attention_mask": mask}


def in_torch(model, inputs):
    with torch.no_grad():
        return model(**{name: torch.from_numpy(value) for name, value in inputs.items()}).logits


@pytest.mark.parametrize("task", HEADS)
@pytest.mark.parametrize(("family", "base", "changes"), CASES, ids=lambda case: str(case)[:60])
def test_a_field_at_another_value(tmp_path, family, base, changes, task):
    module = make(family, HEADS[task], base | changes)
    module.save_pretrained(tmp_path)
    model = from_pretrained(tmp_path, task)
    inputs = batch(module.config.vocab_size)
    found = model.apply(model.params, **inputs).logits
    expected = in_torch(module, inputs).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-5, rtol=1e-5)


def test_no_field_of_the_config_classes_is_forgotten():
    for family, fields, base in (
        ("DistilBert", DISTIL_FIELDS, DISTIL),
        ("ModernBert", MODERN_FIELDS, MODERN),
    ):
        kind = getattr(transformers, f"{family}Config")
        tried = {name for changes in fields for name in changes} | set(base)
        # Read by how weights are drawn, by the loss, and by the tokenizer.
        tried |= {"initializer_range", "sparse_pred_ignore_index", "bos_token_id", "eos_token_id"}
        # The classes' own constants, which are no fields of a file.
        constants = {"model_type", "keys_to_ignore_at_inference", "default_theta", "attribute_map"}
        own = {name for name in kind.__annotations__ if not name.startswith("_")}
        assert own - tried - constants == set()


@pytest.mark.parametrize(
    "name", ["distilbert_seq_cls", "modernbert_seq_cls", "modernbert_first_token"]
)
def test_peft_computes_with_an_exported_adapter_what_we_do(tmp_path, name):
    kind = transformers.AutoModelForSequenceClassification
    module = kind.from_pretrained(REFERENCE / name, attn_implementation="eager").eval()
    model = from_pretrained(REFERENCE / name, "SEQ_CLS")
    config = lnt.LNTuningConfig(model_type=model.config.model_type)
    trainable, frozen = lnt.partition_params(model.params, config)
    random = np.random.default_rng(1)
    moved = {
        path: leaf + 0.2 * random.normal(size=leaf.shape).astype("float32")
        for path, leaf in trainable.items()
    }
    lnt.export_peft(tmp_path / "peft", moved, config)
    inputs = batch(60)
    found = model.apply(lnt.merge_params(moved, frozen), **inputs).logits
    wrapped = peft.PeftModel.from_pretrained(module, tmp_path / "peft").eval()
    expected = in_torch(wrapped, inputs).numpy()
    assert np.abs(expected - np.asarray(model.apply(model.params, **inputs).logits)).max() > 0.01
    np.testing.assert_allclose(found, expected, atol=1e-5, rtol=1e-5)
    wrapped.save_pretrained(tmp_path / "back")
    back = lnt.import_peft(tmp_path / "back", model.params)
    again, _ = lnt.partition_params(back, config)
    for path, leaf in moved.items():
        np.testing.assert_array_equal(again[path], leaf)

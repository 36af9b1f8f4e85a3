"""What the models refuse: config fields, options, inputs and trees, each by its name."""

from __future__ import annotations

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from transformers import BertConfig, DistilBertConfig, ModernBertConfig, RobertaConfig

from lntune_jax.errors import ModelError
from lntune_jax.models import from_config, from_pretrained
from tests.support.paths import REFERENCE

TINY = {"hidden_size": 24, "num_attention_heads": 3, "num_hidden_layers": 1, "vocab_size": 60}
TOKENS = np.ones((2, 4), np.int32)


FIELDS = {
    "hidden_act": ("prelu", "supported: one of gelu,"),
    "position_embedding_type": ("relative_key", "supported: 'absolute'"),
    "is_decoder": (True, "supported: False"),
    "is_encoder_decoder": (True, "supported: False"),
    "add_cross_attention": (True, "supported: False"),
    "pruned_heads": ({0: [1]}, "supported: no pruned heads"),
    "quantization_config": ({"load_in_8bit": True}, "supported: weights that are not quantised"),
    "hidden_size": (25, r"supported: a multiple of num_attention_heads \(3\)"),
    "num_attention_heads": (0, "supported: an integer of at least 1"),
    "type_vocab_size": (0, "supported: an integer of at least 1"),
    "vocab_size": ("60", "supported: an integer of at least 1"),
    "layer_norm_eps": (0.0, "supported: a number above 0"),
    "initializer_range": (-1.0, "supported: a number above 0"),
    "hidden_dropout_prob": (1.5, "supported: a number from 0 to 1"),
    "attention_probs_dropout_prob": (None, "supported: a number from 0 to 1"),
    "classifier_dropout": (-0.1, "supported: a number from 0 to 1"),
}


EVERY = {
    "is_decoder": (True, "supported: False"),
    "is_encoder_decoder": (True, "supported: False"),
    "is_causal": (True, "supported: False"),
    "add_cross_attention": (True, "supported: False"),
    "pruned_heads": ({0: [1]}, "supported: no pruned heads"),
    "quantization_config": ({"load_in_8bit": True}, "supported: weights that are not quantised"),
    "initializer_range": (-1.0, "supported: a number above 0"),
    "tie_word_embeddings": ("no", "supported: True or False"),
    "attention_dropout": (1.5, "supported: a number from 0 to 1"),
    "a_new_field": (3, "supported: None .a field unknown to this version"),
}
DISTILBERT = EVERY | {
    "dim": (25, r"supported: a multiple of n_heads \(12\)"),
    "n_heads": (0, "supported: an integer of at least 1"),
    "n_layers": (2.5, "supported: an integer of at least 1"),
    "hidden_dim": (0, "supported: an integer of at least 1"),
    "activation": ("prelu", "supported: one of gelu,"),
    "dropout": (-0.1, "supported: a number from 0 to 1"),
    "seq_classif_dropout": (2, "supported: a number from 0 to 1"),
    "sinusoidal_pos_embds": ("yes", "supported: True or False"),
    "max_position_embeddings": (0, "supported: an integer of at least 1"),
}
FULL = {"rope_type": "default", "rope_theta": 5.0}
MODERNBERT = EVERY | {
    "hidden_size": (36, r"supported: a multiple of twice num_attention_heads \(12\)"),
    "classifier_pooling": ("max", "supported: one of cls, mean"),
    "layer_types": (["full_attention"], "supported: a list of 22"),
    "local_attention": (0, "supported: an integer of at least 1"),
    "norm_eps": (0, "supported: a number above 0"),
    "norm_bias": (1, "supported: True or False"),
    "attention_bias": ("yes", "supported: True or False"),
    "mlp_bias": ("yes", "supported: True or False"),
    "decoder_bias": ("yes", "supported: True or False"),
    "classifier_bias": ("yes", "supported: True or False"),
    "hidden_activation": ("prelu", "supported: one of gelu,"),
    "classifier_activation": ("prelu", "supported: one of gelu,"),
    "embedding_dropout": (2, "supported: a number from 0 to 1"),
    "mlp_dropout": (2, "supported: a number from 0 to 1"),
    "classifier_dropout": (2, "supported: a number from 0 to 1"),
    "rope_parameters": (
        {"full_attention": FULL | {"rope_type": "other"}, "sliding_attention": FULL},
        "supported: one of default,",
    ),
}


class Stub:
    """A config without checks of its own, as a plain object."""

    def __init__(self, **fields):
        base = BertConfig(**TINY)
        self.__dict__.update(base.to_dict() | {"num_labels": 2, "model_type": "bert"} | fields)


class NewDistilBertConfig(DistilBertConfig):
    """Of a later version of transformers, which has a field more."""

    a_new_field: int | None = None


class NewModernBertConfig(ModernBertConfig):
    """Of a later version of transformers, which has a field more."""

    a_new_field: int | None = None


@pytest.mark.parametrize("field", FIELDS)
def test_config_fields_are_refused_by_name(field):
    value, supported = FIELDS[field]
    with pytest.raises(ModelError, match=f"config field '{field}' is .*{supported}"):
        from_config(Stub(**{field: value}))


@pytest.mark.parametrize(
    ("kind", "field", "value", "supported"),
    [
        (kind, field, *expected)
        for kind, table in (
            (NewDistilBertConfig, DISTILBERT),
            (NewModernBertConfig, MODERNBERT),
        )
        for field, expected in table.items()
    ],
)
def test_fields_of_other_encoders_are_refused_by_name(kind, field, value, supported):
    config = kind()
    # Past the config's own checks, which other versions do not have.
    object.__setattr__(config, field, value)
    with pytest.raises(ModelError, match=f"config field '{field}.*' is .*{supported}"):
        from_config(config)


@pytest.mark.parametrize("config", [DistilBertConfig(), ModernBertConfig()])
def test_token_types_of_an_architecture_without_them(config):
    model = from_config(config)
    inputs = {"input_ids": TOKENS, "token_type_ids": TOKENS}
    with pytest.raises(ModelError, match=f"which {config.model_type} does not have: leave them"):
        jax.eval_shape(lambda: model.apply(model.params, **inputs))


def test_distilbert_has_a_table_of_positions_and_modernbert_has_none():
    tokens = np.ones((1, 513), np.int32)
    short, long = from_config(DistilBertConfig()), from_config(ModernBertConfig())
    with pytest.raises(ModelError, match=r"has 513 positions, .* holds 512"):
        jax.eval_shape(lambda: short.apply(short.params, tokens))
    found = jax.eval_shape(long.apply, long.params, tokens)
    assert found.last_hidden_state.shape[1] == 513


def test_quantised_and_relative_configs_from_a_file(tmp_path):
    directory = shutil.copytree(REFERENCE / "bert", tmp_path / "model")
    path = directory / "config.json"
    fields = json.loads(path.read_text())
    for field, value in (
        ("position_embedding_type", "relative_key_query"),
        ("quantization_config", {"quant_method": "gptq", "bits": 4}),
        ("pruned_heads", {"0": [1]}),
    ):
        path.write_text(json.dumps(fields | {field: value}))
        with pytest.raises(ModelError, match=f"config field '{field}' is"):
            from_pretrained(directory)
    path.write_text(json.dumps(fields | {"hidden_size": "wide"}))
    with pytest.raises(ModelError, match=r"config\.json: not a valid bert config"):
        from_pretrained(directory)
    for other in ({"model_type": "albert"}, {}):
        path.write_text(json.dumps(other))
        with pytest.raises(ModelError, match=r"'model_type' is .*; supported: bert, distilbert,"):
            from_pretrained(directory)


def test_another_architecture_as_an_object():
    with pytest.raises(
        ModelError, match="'model_type' is 't5'; supported: one of bert, distilbert,"
    ):
        from_config(Stub(model_type="t5"))


@pytest.mark.parametrize("pad", [None, -1, 511])
def test_a_padding_id_that_leaves_no_positions(pad):
    config = RobertaConfig(**TINY)
    config.pad_token_id = pad
    with pytest.raises(ModelError, match=r"config field 'pad_token_id' is .*from 0 to 510"):
        from_config(config)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"task": "CAUSAL_LM"}, "task is 'CAUSAL_LM'; supported by bert: None, 'SEQ_CLS'"),
        ({"task": "SEQ_CLS", "pooling": "max"}, "pooling is 'max'; supported: None, 'own', 'mean'"),
        ({"task": "TOKEN_CLS", "pooling": "mean"}, "only the task 'SEQ_CLS' reads"),
        ({"dtype": "int8"}, "dtype is 'int8'; supported: float32"),
        ({"dtype": "float16"}, "dtype is 'float16'; supported: float32, bfloat16"),
        ({"dtype": "float33"}, "dtype is 'float33'; supported: float32"),
        ({"task": "SEQ_CLS", "num_labels": 0}, "num_labels is 0; expected an integer"),
    ],
)
def test_options(options, message):
    with pytest.raises(ModelError, match=message):
        from_config(BertConfig(**TINY), **options)


@pytest.mark.parametrize("num_labels", [None, 2])
def test_the_number_of_labels(num_labels):
    config = BertConfig(**TINY, id2label={0: "no", 1: "yes"}, label2id={"no": 0, "yes": 1})
    model = from_config(config, "SEQ_CLS", num_labels=num_labels)
    assert model.config.id2label == {0: "no", 1: "yes"}
    changed = from_config(config, "TOKEN_CLS", num_labels=5)
    assert changed.params["classifier"]["bias"].shape == (5,)
    assert (changed.config.num_labels, config.num_labels) == (5, 2)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"input_ids": TOKENS[0]}, r"input_ids has the shape \(4,\); expected \(batch, length\)"),
        ({"input_ids": TOKENS[:, :0]}, r"input_ids has the shape \(2, 0\)"),
        ({"input_ids": TOKENS * 1.0}, "input_ids holds float.* expected integers"),
        ({"input_ids": TOKENS > 0}, "input_ids holds bool numbers"),
        ({"input_ids": np.ones((1, 513), np.int32)}, "has 513 positions, .* holds 512"),
        ({"attention_mask": TOKENS[:, :3]}, r"attention_mask has the shape \(2, 3\)"),
        ({"attention_mask": jnp.zeros((2, 4))}, "attention_mask holds float32 numbers"),
        ({"token_type_ids": TOKENS[:1]}, r"token_type_ids has the shape \(1, 4\)"),
        ({"position_ids": TOKENS[:, :2]}, r"position_ids has .*\(2, 4\) or \(1, 4\)"),
        ({"position_ids": TOKENS * 1.0}, "position_ids holds float"),
    ],
)
def test_inputs(inputs, message):
    model = from_config(BertConfig(**TINY))
    with pytest.raises(ModelError, match=message):
        jax.eval_shape(lambda: model.apply(model.params, **{"input_ids": TOKENS, **inputs}))


def test_roberta_has_fewer_positions_than_rows():
    model = from_config(RobertaConfig(**TINY))
    with pytest.raises(ModelError, match="has 511 positions, the model's table holds 510"):
        model.apply(model.params, np.ones((1, 511), np.int32))


def test_a_tree_that_is_not_whole():
    model = from_pretrained(REFERENCE / "bert")
    partial = {**model.params, "pooler": {}}
    with pytest.raises(ModelError, match=r"no leaf pooler\.dense\.bias .*merge the trainable half"):
        model.apply(partial, TOKENS)
    wrong = {**model.params, "pooler": {"dense": {"bias": jnp.ones(3), "kernel": jnp.ones(3)}}}
    with pytest.raises(ModelError, match=r"pooler\.dense\.bias has the shape \(3,\); expected"):
        model.apply(wrong, TOKENS)
    with pytest.raises(ModelError, match="has the shape none, as a str"):
        model.apply({**model.params, "pooler": {"dense": {"bias": "taken"}}}, TOKENS)

"""How a classifier pools: what sentence-transformers' files say, unless something else is asked."""

import json
import shutil

import numpy as np
import pytest

from lntune_jax.errors import ModelError
from lntune_jax.models import from_config, from_pretrained, mean_pool
from tests.support.checkpoints import REFERENCE

IDS = np.array([[2, 5, 6, 7], [2, 8, 0, 0]])
MASK = np.array([[1, 1, 1, 1], [1, 1, 0, 0]])
MODES = ("cls_token", "mean_tokens", "max_tokens", "lasttoken")


def write(directory, fields=None, modules=None, place="1_Pooling"):
    """A model directory as sentence-transformers writes it."""
    shutil.copytree(REFERENCE / "bert", directory)
    if modules is None:
        kinds = (("", "Transformer"), (place, "Pooling"), ("2_Normalize", "Normalize"))
        modules = [
            {"idx": n, "name": str(n), "path": path, "type": f"sentence_transformers.models.{kind}"}
            for n, (path, kind) in enumerate(kinds)
        ]
    (directory / "modules.json").write_text(json.dumps(modules))
    if fields is not None:
        (directory / "1_Pooling").mkdir()
        (directory / "1_Pooling/config.json").write_text(json.dumps(fields))
    return directory


def modes(*used):
    return {"word_embedding_dimension": 24} | {f"pooling_mode_{n}": n in used for n in MODES}


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        (modes("mean_tokens"), "mean"),
        (modes("cls_token"), "cls"),
        ({"embedding_dimension": 24, "pooling_mode": "mean", "include_prompt": True}, "mean"),
        ({"pooling_mode": ["cls"]}, "cls"),
    ],
)
def test_the_default_follows_the_files(tmp_path, fields, expected):
    directory = write(tmp_path / "model", fields)
    model = from_pretrained(directory, "SEQ_CLS")
    assert model.options.pooling == expected
    assert from_config(directory, "SEQ_CLS").options.pooling == expected
    bare = from_pretrained(directory)
    assert bare.options.pooling is None
    hidden = bare.apply(bare.params, IDS, MASK).last_hidden_state
    vector = mean_pool(hidden, MASK) if expected == "mean" else hidden[:, 0]
    head = model.params["classifier"]
    found = model.apply(model.params, IDS, MASK).logits
    np.testing.assert_allclose(found, vector @ head["kernel"] + head["bias"], atol=1e-6)
    again = from_pretrained(directory, "SEQ_CLS", pooling=model.options.pooling)
    np.testing.assert_array_equal(again.apply(model.params, IDS, MASK).logits, found)


def test_asked_for_by_name(tmp_path):
    directory = write(tmp_path / "model", modes("mean_tokens"))
    own = from_pretrained(directory, "SEQ_CLS", pooling="own")
    plain = from_pretrained(REFERENCE / "bert", "SEQ_CLS")
    assert own.options == plain.options
    assert own.options.pooling == "own"
    np.testing.assert_array_equal(
        own.apply(own.params, IDS, MASK).logits, plain.apply(own.params, IDS, MASK).logits
    )
    assert from_pretrained(directory, "SEQ_CLS", pooling="cls").options.pooling == "cls"
    assert from_pretrained(REFERENCE / "bert", "TOKEN_CLS").options.pooling is None


def test_without_a_list_of_modules(tmp_path):
    directory = write(tmp_path / "model", modes("mean_tokens"))
    (directory / "modules.json").unlink()
    assert from_pretrained(directory, "SEQ_CLS").options.pooling == "mean"
    (directory / "modules.json").write_text("[]")  # a list that names no pooling
    assert from_pretrained(directory, "SEQ_CLS").options.pooling == "own"


def test_a_classifier_reads_what_its_class_does(tmp_path):
    """A merged classifier still has the files of the encoder that it was made of."""
    directory = write(tmp_path / "model", modes("mean_tokens"))
    config = json.loads((directory / "config.json").read_text())
    config["architectures"] = ["BertForSequenceClassification"]
    (directory / "config.json").write_text(json.dumps(config))
    assert from_pretrained(directory, "SEQ_CLS").options.pooling == "own"


def test_own_is_true_of_a_decoder_too():
    directory = REFERENCE / "decoders/llama"
    model = from_pretrained(directory, "SEQ_CLS", pooling="own")
    assert model.options.pooling is None
    with pytest.raises(ModelError, match="pooling='mean' is given, which llama does not have"):
        from_pretrained(directory, "SEQ_CLS", pooling="mean")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (modes("max_tokens"), r"1_Pooling/config.json says .* pooled by max_tokens.*pooling='own'"),
        (modes("mean_tokens", "cls_token"), "pooled by cls_token and mean_tokens"),
        (modes(), "pooled by nothing"),
        ({"pooling_mode": 3}, "pooled by 3"),
        ({"pooling_mode": ["mean", "max"]}, "pooled by mean and max"),
        ([1], "expected a JSON object, found a list"),
        (None, "1_Pooling/config.json: cannot be read"),
    ],
)
def test_what_cannot_be_followed(tmp_path, fields, message):
    directory = write(tmp_path / "model", fields)
    with pytest.raises(ModelError, match=message):
        from_pretrained(directory, "SEQ_CLS")
    assert from_pretrained(directory, "SEQ_CLS", pooling="mean").options.pooling == "mean"


@pytest.mark.parametrize("place", ["../1_Pooling", "/etc/1_Pooling", "", "1_Pooling/..", 3, None])
def test_a_part_that_lies_elsewhere(tmp_path, place):
    directory = write(tmp_path / "model", modes("mean_tokens"), place=place)
    with pytest.raises(ModelError, match=r"modules.json: the path of Pooling"):
        from_pretrained(directory, "SEQ_CLS")


@pytest.mark.parametrize("content", ["{", "{}", "\x00", "[" * 100_000])
def test_a_damaged_list_of_modules(tmp_path, content):
    directory = write(tmp_path / "model", modes("mean_tokens"))
    (directory / "modules.json").write_text(content)
    with pytest.raises(ModelError, match=r"modules\.json"):
        from_pretrained(directory, "SEQ_CLS")


@pytest.mark.parametrize(
    ("name", "own"),
    [
        ("roberta_seq_cls", "cls"),
        ("distilbert_seq_cls", "cls"),
        ("modernbert_first_token", "cls"),
        ("modernbert_seq_cls", "mean"),
    ],
)
def test_what_the_architecture_reads_itself_is_its_own_under_any_name(name, own):
    """So that merging and PEFT's classes take it; and the other one is never taken for it."""
    other = {"cls": "mean", "mean": "cls"}[own]
    models = {
        pooling: from_pretrained(REFERENCE / name, "SEQ_CLS", pooling=pooling)
        for pooling in ("own", "cls", "mean")
    }
    assert models[own].options.pooling == "own"
    assert models[other].options.pooling == other
    found = {
        pooling: np.asarray(model.apply(model.params, IDS + 3, MASK).logits)
        for pooling, model in models.items()
    }
    np.testing.assert_array_equal(found[own], found["own"])
    assert np.abs(found[other] - found["own"]).max() > 1e-3

"""Checkpoints and names that are refused, each with a message that says which part is wrong."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from lntune_jax.errors import ModelError
from lntune_jax.models import from_config, from_pretrained
from tests.support.checkpoints import REFERENCE, rewritten


def drop(key):
    return lambda tensors: {name: value for name, value in tensors.items() if name != key}


FAULTS = {
    "missing": (drop("encoder.layer.1.output.dense.bias"), None, "missing keys: encoder.layer.1"),
    "missing other half": (drop("pooler.dense.weight"), None, "missing keys: pooler.dense.weight"),
    "missing half of a pooler": (drop("pooler.dense.bias"), "SEQ_CLS", "missing keys: pooler.d"),
    "unexpected": (
        lambda tensors: tensors | {"pooler.dense.weight_scale": np.ones(3, np.float32)},
        None,
        "unexpected keys: pooler.dense.weight_scale",
    ),
    "wrong shape": (
        lambda tensors: tensors | {"pooler.dense.weight": np.ones((24, 25), np.float32)},
        None,
        r"pooler.dense.weight \(expected \(24, 24\), found \(24, 25\)\)",
    ),
    "twice": (
        lambda tensors: tensors | {"bert.pooler.dense.bias": np.ones(24, np.float32)},
        None,
        "holds pooler.dense.bias twice",
    ),
    "quantised": (
        lambda tensors: tensors | {"pooler.dense.weight": np.ones((24, 24), np.int8)},
        None,
        "pooler.dense.weight is stored as I8; supported: F64, F32, F16, BF16",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_checkpoint_that_does_not_fit(tmp_path, fault):
    change, task, message = FAULTS[fault]
    directory = rewritten(tmp_path / "model", "bert", change)
    with pytest.raises(ModelError, match=message) as caught:
        from_pretrained(directory, task)
    assert str(directory) in str(caught.value)


def test_many_faults_are_counted(tmp_path):
    directory = rewritten(
        tmp_path / "model",
        "bert",
        lambda tensors: {f"other.{key}": value for key, value in tensors.items()},
    )
    with pytest.raises(ModelError, match=r"missing keys: .* and 29 more\n.*unexpected keys: other"):
        from_pretrained(directory)


def test_another_number_of_labels_than_the_file():
    with pytest.raises(ModelError, match="pass the file's, or draw a new one with new_head=True"):
        from_pretrained(REFERENCE / "bert_seq_cls", "SEQ_CLS", num_labels=7)


def test_truncated_file_is_named(tmp_path):
    directory = shutil.copytree(REFERENCE / "bert", tmp_path / "model")
    path = directory / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ModelError, match=r"model\.safetensors: damaged or cut short"):
        from_pretrained(directory)
    path.write_bytes(b"")
    with pytest.raises(ModelError, match=r"model\.safetensors: damaged or cut short"):
        from_pretrained(directory)


def test_pickles_are_refused(tmp_path):
    directory = shutil.copytree(REFERENCE / "bert", tmp_path / "model")
    (directory / "model.safetensors").rename(directory / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"only in pytorch_model\.bin, a pickle"):
        from_pretrained(directory)
    (directory / "pytorch_model.bin").unlink()
    with pytest.raises(ModelError, match=r"no weights; expected model\.safetensors or"):
        from_pretrained(directory)


def test_index_faults(tmp_path):
    directory = shutil.copytree(REFERENCE / "bert_seq_cls_sharded", tmp_path / "model")
    index = directory / "model.safetensors.index.json"
    content = json.loads(index.read_text())

    def refused(message, change):
        index.write_text(json.dumps(change))
        with pytest.raises(ModelError, match=message):
            from_pretrained(directory, "SEQ_CLS")

    key, name = next(iter(content["weight_map"].items()))
    wrong = {key: f"../{name}"}
    refused("which is no plain file name", {"weight_map": content["weight_map"] | wrong})
    refused("no such file, though the index", {"weight_map": {key: "absent.safetensors"}})
    refused("which does not hold it", {"weight_map": {"other": name}})
    refused("not an index with a weight_map", {})
    refused("weight_map is no object", {"weight_map": [1]})


def test_what_is_no_model_directory(tmp_path):
    with pytest.raises(ModelError, match=r"is no model directory: it has no config\.json"):
        from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ModelError, match=r"config\.json: not a JSON file"):
        from_pretrained(tmp_path)
    with pytest.raises(ModelError, match="is a file; pass the directory"):
        from_pretrained(tmp_path / "config.json")
    with pytest.raises(ModelError, match="neither a directory nor an id on the hub"):
        from_pretrained(tmp_path / "absent")


def test_hub_failures_are_one_line(monkeypatch):
    import huggingface_hub

    def failing(name, **options):
        raise ConnectionError("no route\nand a long story")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", failing)
    with pytest.raises(ModelError, match="neither a directory nor reachable on the hub") as caught:
        from_pretrained("owner/name")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("model_type", "field", "value"),
    [
        ("bert", "num_hidden_layers", 5_000),
        ("distilbert", "n_layers", 5_000),
        ("gpt2", "n_layer", 5_000),
        ("distilbert", "dim", 2**23),
        ("gpt2", "n_embd", 2**23),
    ],
)
def test_sizes_that_no_model_has_are_refused_before_anything_is_built(model_type, field, value):
    with pytest.raises(ModelError, match=f"'{field}' is {value}; supported: at most"):
        from_config({"model_type": model_type, field: value})

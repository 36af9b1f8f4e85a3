"""A base that has a classifier already, for other labels: `--new-head`."""

import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import lntune_jax as lnt
from lntune_jax.errors import ModelError

WIDTH = 16


@pytest.fixture
def three_classes(model_directory, tmp_path):
    """The tiny BERT as a classifier of three labels."""
    path = tmp_path / "three"
    shutil.copytree(model_directory, path)
    fields = json.loads((path / "config.json").read_text())
    fields["architectures"] = ["BertForSequenceClassification"]
    fields["id2label"] = {"0": "a", "1": "b", "2": "c"}
    fields["label2id"] = {"a": 0, "b": 1, "c": 2}
    (path / "config.json").write_text(json.dumps(fields))
    body = load_file(path / "model.safetensors")
    weights = {f"bert.{name}": value for name, value in body.items()}
    weights["bert.pooler.dense.weight"] = np.eye(WIDTH, dtype=np.float32)
    weights["bert.pooler.dense.bias"] = np.zeros(WIDTH, np.float32)
    weights["classifier.weight"] = np.full((3, WIDTH), 0.5, np.float32)
    weights["classifier.bias"] = np.zeros(3, np.float32)
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
    return path


def test_two_labels_over_a_head_of_three(run, three_classes, table, tmp_path):
    words = ("train", "--model", three_classes, "--data", table, "--output", tmp_path / "run")
    words = (*words, "--max-steps", 2, "--buckets", 1)
    code, _, complaint = run(*words)
    assert code == 2
    assert "draw a new one with --new-head" in complaint
    code, _, complaint = run(*words, "--new-head")
    assert (code, complaint) == (0, "")
    head = lnt.load_adapter(tmp_path / "run" / "adapter").trainable["classifier.kernel"]
    assert head.shape == (WIDTH, 2)
    code, printed, complaint = run("predict", "--run", tmp_path / "run", "--text", "good")
    assert (code, complaint) == (0, "")
    assert set(json.loads(printed)["probabilities"]) == {"neg", "pos"}
    merged = tmp_path / "merged"
    words = ("merge", "--adapter", tmp_path / "run", "--output", merged)
    code, _, complaint = run(*words)
    assert code == 2
    assert "merge the norms alone with --norms-only" in complaint
    code, _, complaint = run(*words, "--norms-only")
    assert (code, complaint) == (0, "")
    assert load_file(merged / "model.safetensors")["classifier.weight"].shape == (3, WIDTH)


def test_a_new_head_of_the_same_size(three_classes):
    kept = lnt.models.from_pretrained(three_classes, "SEQ_CLS")
    drawn = lnt.models.from_pretrained(three_classes, "SEQ_CLS", new_head=True)
    assert (kept.fresh, set(drawn.fresh)) == ((), {"classifier.kernel", "classifier.bias"})
    assert np.all(np.asarray(kept.params["classifier"]["kernel"]) == 0.5)
    assert not np.all(np.asarray(drawn.params["classifier"]["kernel"]) == 0.5)


def test_what_has_no_classifier(three_classes):
    with pytest.raises(ModelError, match="new_head=True draws a classifier; the task is None"):
        lnt.models.from_pretrained(three_classes, new_head=True)

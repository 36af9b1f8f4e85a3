import json
import shutil

import numpy as np

import lntune_jax as lnt
from tests.support.outcomes import refused


def test_a_run_becomes_a_checkpoint(run, make_run, model_directory, tmp_path):
    trained, merged = make_run("default"), tmp_path / "merged"
    words = ("merge", "--model", model_directory, "--adapter", trained, "--output", merged)
    code, printed, complaint = run(*words)
    assert (code, complaint) == (0, "")
    for fragment in (
        "tensors compared with those of the training: the same",
        "adapter (lntune_jax)",
        "tuned: 14 tensors",
        "new: bert.pooler.dense.bias, bert.pooler.dense.weight, classifier.bias, classifier.weight",
        "merged (BertForSequenceClassification, 1 weight file, ",
    ):
        assert fragment in printed, printed
    fields = json.loads((merged / "config.json").read_text())
    assert fields["id2label"] == {"0": "neg", "1": "pos"}
    for name in ("vocab.txt", "tokenizer_config.json"):
        assert (merged / name).read_bytes() == (model_directory / name).read_bytes()
    # The checkpoint alone computes what the run computes with the base.
    again = lnt.models.from_pretrained(merged, task="SEQ_CLS")
    assert not again.fresh
    labelled = run("predict", "--run", trained, "--text", "good word1", "bad word2")[1]
    logits = again.apply(again.params, np.array([[2, 5, 8, 3], [2, 6, 9, 3]])).logits
    shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    found = [json.loads(line)["probabilities"]["pos"] for line in labelled.splitlines()]
    np.testing.assert_allclose(found, shares[:, 1], atol=2e-6)


def test_peft_s_adapter_gives_the_same_weights(run, make_run, model_directory, tmp_path):
    run("convert", make_run("default"), tmp_path / "peft")
    base = ("merge", "--model", model_directory)
    run(*base, "--adapter", make_run("default"), "--output", tmp_path / "one")
    code, printed, _ = run(*base, "--adapter", tmp_path / "peft", "--output", tmp_path / "other")
    assert code == 0
    assert "peft (PEFT)" in printed
    assert "the adapter has no values of its base" in printed
    one, other = (tmp_path / name / "model.safetensors" for name in ("one", "other"))
    assert one.read_bytes() == other.read_bytes()


def test_a_head_that_pools_by_the_mean(run, make_run, model_directory, tmp_path):
    words = ("merge", "--model", model_directory, "--adapter", make_run("mean"))
    words = (*words, "--output", tmp_path / "merged")
    refused(run(*words), "reads the mean over tokens", "--norms-only")
    code, printed, _ = run(*words, "--norms-only")
    assert code == 0
    assert "not used of the adapter: classifier.bias, classifier.weight" in printed
    assert (tmp_path / "merged" / "config.json").read_bytes() == (
        model_directory / "config.json"
    ).read_bytes()


def test_what_is_refused(run, make_run, model_directory, tmp_path):
    trained, merged = make_run("default"), tmp_path / "merged"
    base = shutil.copytree(model_directory, tmp_path / "base")
    words = ("merge", "--model", base, "--adapter", trained, "--output")
    assert run(*words, merged)[0] == 0
    refused(run(*words, merged), "merged exists", "--overwrite")
    assert run(*words, merged, "--overwrite")[0] == 0
    for place in (base, base / "inside", tmp_path):
        refused(run(*words, place, "--overwrite"), "must not lie in one another")
    (merged / "notes.txt").touch()
    refused(run(*words, merged, "--overwrite"), "'notes.txt'", "holds no merged checkpoint")
    output = ("--output", tmp_path / "x")
    refused(run("merge", "--model", base, "--adapter", tmp_path / "no", *output), "no adapter")
    refused(run("merge", "--model", tmp_path, "--adapter", trained, *output), "no config.json")
    refused(run("merge", "--model", base, *output), "--adapter", "see lntune-jax merge --help")
    (base / "model.safetensors").rename(base / "pytorch_model.bin")
    refused(run(*words, tmp_path / "x"), "a pickle, which can run any code")
    assert not (tmp_path / "x").exists()

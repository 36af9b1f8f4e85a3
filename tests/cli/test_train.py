import json
import shutil

import numpy as np
import pytest

import lntune_jax as lnt
from lntune_jax.trainer.callbacks import read_metrics
from tests.support.runs import same_adapter, without_times

FLAGS = ("--pooling", "mean", "--batch-size", "8")
FLAGS = (*FLAGS, "--learning-rate", "0.02", "--head-learning-rate", "0.05")


@pytest.fixture(scope="module")
def other_table(tmp_path_factory, make_rows):
    path = tmp_path_factory.mktemp("other") / "other.jsonl"
    rows = [{"text": text, "label": label} for text, label in make_rows(21, seed=1)]
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


@pytest.fixture(scope="module")
def short_words(model_directory, table, other_table):
    """A run with one padded length, which compiles once."""
    paths = ("--model", model_directory, "--data", table, "--eval-data", other_table)
    return ("train", *paths, *FLAGS, "--buckets", "1")


@pytest.fixture(scope="module")
def words(short_words):
    """A run with two padded lengths and dropout: all that resuming must get right."""
    return (*short_words[:-1], "2", "--dropout")


@pytest.fixture(scope="module")
def finished(tmp_path_factory, words):
    """A finished run without interruption."""
    from lntune_jax.cli import main

    output = tmp_path_factory.mktemp("runs") / "whole"
    assert main([str(word) for word in (*words, "--output", output)]) == 0
    return output


def test_a_run_leaves_its_files(finished):
    names = {path.name for path in finished.iterdir()}
    assert names == {
        "adapter",
        "checkpoints",
        "curves.png",
        "metrics.jsonl",
        "run.yaml",
        "settings.json",
        "summary.json",
        "tensorboard",
    }
    assert (finished / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert list((finished / "tensorboard").glob("events*"))
    task = json.loads((finished / "adapter" / "lntune.json").read_text())["task"]
    assert task["labels"] == ["neg", "pos"]
    assert task["pooling"] == "mean"


def test_metrics_have_a_line_a_step_and_a_line_an_evaluation(finished):
    lines = read_metrics(finished / "metrics.jsonl")
    training = [line for line in lines if line["split"] == "train"]
    assert [line["step"] for line in training] == list(range(1, 25))
    expected = {
        "split",
        "step",
        "epoch",
        "loss",
        "gradient_norm",
        "learning_rate",
        "tokens_per_second",
    }
    assert all(set(line) == expected for line in training)
    evaluations = [line for line in lines if line["split"] == "eval"]
    assert [line["step"] for line in evaluations] == [8, 16, 24]


def test_it_learns_and_says_so(finished):
    summary = json.loads((finished / "summary.json").read_text())
    assert summary["best"]["accuracy"] >= 0.9
    assert summary["steps"] == summary["planned_steps"] == 24
    assert summary["trainable"] == 5 * 2 * 16 + 2 * 16 + 2
    assert 0 < summary["adapter_bytes"] < 100_000
    assert summary["compilations"] <= 8


def test_evaluate_measures_what_training_measured(run, finished, other_table, tmp_path):
    report = tmp_path / "report.json"
    words = ("evaluate", "--run", finished, "--data", other_table, "--output", report)
    code, printed, complaint = run(*words)
    assert (code, complaint) == (0, "")
    summary = json.loads((finished / "summary.json").read_text())
    measured = json.loads(report.read_text())
    assert measured["accuracy"] == summary["best"]["accuracy"]
    assert measured["macro_f1"] == pytest.approx(summary["best"]["macro_f1"])
    assert measured["loss"] == pytest.approx(summary["best"]["loss"], abs=1e-5)
    assert np.sum(measured["confusion"]) == measured["rows"] == 21
    assert f"accuracy {measured['accuracy']:.4f}" in printed
    assert max(map(len, printed.splitlines())) <= 80


def test_predict_gives_labels_and_probabilities(run, finished, other_table, make_rows, tmp_path):
    texts, labels = zip(*make_rows(6, seed=2), strict=True)
    code, printed, complaint = run("predict", "--run", finished, "--text", *texts)
    assert (code, complaint) == (0, "")
    lines = [json.loads(line) for line in printed.splitlines()]
    assert [line["text"] for line in lines] == list(texts)
    assert sum(line["label"] == label for line, label in zip(lines, labels, strict=True)) >= 5
    assert all(sum(line["probabilities"].values()) == pytest.approx(1) for line in lines)
    for name in ("out.jsonl", "out.csv"):
        output = tmp_path / name
        words = ("--data", other_table, "--output", output)
        code, printed, _ = run("predict", "--adapter", finished / "adapter", *words)
        assert code == 0
        assert "21 predictions in" in printed
        assert len(output.read_text().splitlines()) == 21 + (name == "out.csv")


def test_a_resumed_run_gives_the_same_bits(run, finished, words, tmp_path):
    output = tmp_path / "parts"
    words = (*words, "--output", output)
    for stop in (5, 6, 100):
        code, _, complaint = run(*words, "--resume", "--stop-after-steps", stop)
        assert (code, complaint) == (0, "")
        assert ("go on with --resume" in run.notes) == (stop != 100)
    assert same_adapter(finished, output)
    assert without_times(finished) == without_times(output)


def test_a_killed_run_repeats_only_what_its_checkpoint_lacks(
    run, finished, words, tmp_path, monkeypatch
):
    from lntune_jax.trainer import recorder

    output = tmp_path / "killed"
    words = (*words, "--output", output, "--checkpoint-every", "3")
    flush = recorder.Recorder.flush

    def die(self, records):
        if self._pending and self._pending[0] == 14:
            raise KeyboardInterrupt
        return flush(self, records)

    with monkeypatch.context() as patch:
        patch.setattr(recorder.Recorder, "flush", die)
        assert run(*words)[0] == 130
    steps = [line["step"] for line in read_metrics(output / "metrics.jsonl")]
    assert max(steps) == 13
    assert run(*words, "--resume")[0] == 0
    assert same_adapter(finished, output)
    assert without_times(finished) == without_times(output)


def test_a_finished_run_is_not_touched(run, finished, words):
    code, _, complaint = run(*words, "--output", finished)
    assert code == 2
    assert "holds a finished run" in complaint
    before = (finished / "summary.json").read_bytes()
    code, _, _ = run(*words, "--output", finished, "--resume")
    assert code == 0
    assert "nothing to resume" in run.notes
    assert (finished / "summary.json").read_bytes() == before


@pytest.mark.parametrize(
    ("changed", "fragment"),
    [
        (("--seed", "3"), "it was started with --seed 0, not 3"),
        (("--targets", "LayerNorm"), "--targets unset, not LayerNorm"),
        (("--max-steps", "9"), "--max-steps unset, not 9"),
    ],
)
def test_other_settings_cannot_resume(run, finished, words, changed, fragment):
    code, _, complaint = run(*words, "--output", finished, "--resume", *changed)
    assert code == 2
    assert fragment in complaint


def test_changed_data_cannot_resume(run, table, short_words, tmp_path):
    copy, output = tmp_path / "copy.csv", tmp_path / "out"
    copy.write_bytes(table.read_bytes())
    words = [copy if word is table else word for word in short_words]
    words += ["--output", output, "--stop-after-steps", "1"]
    assert run(*words)[0] == 0
    copy.write_text(copy.read_text() + "good,pos\n")
    code, _, complaint = run(*words, "--resume")
    assert code == 2
    assert "the content of --data has changed" in complaint
    assert run(*words, "--overwrite")[0] == 0


def test_patience_stops_early_and_the_best_is_kept(run, short_words, tmp_path):
    output = tmp_path / "patient"
    flags = ("--eval-every", "2", "--patience", "1", "--best-by", "loss", "--learning-rate", "2")
    code, _, _ = run(*short_words, "--output", output, *flags)
    assert code == 0
    assert "stopped" in run.notes
    summary = json.loads((output / "summary.json").read_text())
    assert summary["steps"] < summary["planned_steps"]
    evaluations = [x for x in read_metrics(output / "metrics.jsonl") if x["split"] == "eval"]
    best = min(evaluations, key=lambda line: line["loss"])
    assert (summary["best"]["step"], summary["best"]["loss"]) == (best["step"], best["loss"])


def test_a_loss_that_is_no_number_ends_the_run_with_advice(run, short_words, tmp_path):
    flags = ("--learning-rate", "1e30", "--head-learning-rate", "1e30", "--warmup-fraction", "0")
    code, _, complaint = run(*short_words, "--output", tmp_path / "nan", *flags)
    assert code == 2
    assert "lower the learning rates" in complaint


def test_the_model_may_move(run, short_words, model_directory, tmp_path):
    here, there = (tmp_path / name for name in ("here", "there"))
    shutil.copytree(model_directory, here)
    words = [here if word == model_directory else word for word in short_words]
    assert run(*words, "--output", tmp_path / "run")[0] == 0
    here.rename(there)
    words = ("predict", "--run", tmp_path / "run", "--text", "good")
    code, _, complaint = run(*words)
    assert code == 2
    assert f"{here} is neither a directory nor a hub id" in complaint
    assert run(*words, "--model", there)[0] == 0


def test_predict_refuses_a_run_that_has_not_finished(run, short_words, tmp_path):
    output = tmp_path / "part"
    assert run(*short_words, "--output", output, "--stop-after-steps", "1")[0] == 0
    code, _, complaint = run("predict", "--run", output, "--text", "a")
    assert code == 2
    assert "has the run in it been finished?" in complaint


def test_half_precision_trains_in_float32(run, short_words, tmp_path):
    output = tmp_path / "half"
    flags = ("--dtype", "bfloat16", "--max-steps", "2", "--schedule", "cosine")
    assert run(*short_words, "--output", output, *flags)[0] == 0
    leaves, _ = lnt.load_adapter(output / "adapter")
    assert {str(leaf.dtype) for leaf in leaves.values()} == {"float32"}
    assert run("predict", "--run", output, "--text", "good")[0] == 0


def test_inspect_shows_what_would_train(run, model_directory):
    code, printed, complaint = run("inspect", model_directory, "--num-labels", "3")
    assert (code, complaint) == (0, "")
    assert "bert.encoder.layer.{0,1}.output.LayerNorm.scale" in printed
    assert "trainable params: 211 || all params:" in printed
    code, printed, _ = run("inspect", model_directory, "--exclude", "embeddings.LayerNorm")
    assert "bert.embeddings" not in printed
    assert "adapter: 844 bytes" in run("inspect", model_directory, "--num-labels", "3")[1]
    code, printed, complaint = run("inspect", model_directory, "--length", "16", "--mesh", "fsdp=2")
    assert (code, complaint) == (0, "")
    assert "1 x 16 tokens, bfloat16, fsdp=2, remat none" in printed
    assert printed.splitlines()[-1].startswith("total")
    for mesh in ("model=2", "fsdp", "fsdp=2,fsdp=2", "fsdp=0"):
        code, _, complaint = run("inspect", model_directory, "--length", "8", "--mesh", mesh)
        assert (code, complaint.count("\n")) == (2, 1)
        assert "mesh" in complaint
    code, _, complaint = run("inspect", model_directory, "--targets", "(")
    assert code == 2
    assert complaint.count("\n") == 1

"""`train --sweep`: many adapters at once, each as `train` alone would make it."""

import json

import numpy as np
import pytest

from lntune_jax.trainer.callbacks import read_metrics
from lntune_jax.trainer.recipe import Recipe
from lntune_jax.trainer.sweep import Grid, list_trials
from tests.support.runs import WORDS, leaves, make_decoder

pytestmark = pytest.mark.long

STEPS = ("--max-steps", "6", "--eval-every", "3")


@pytest.fixture(scope="module")
def words(tmp_path_factory, model_directory, table, make_rows):
    path = tmp_path_factory.mktemp("other") / "other.jsonl"
    rows = [{"text": text, "label": label} for text, label in make_rows(21, seed=1)]
    path.write_text("\n".join(map(json.dumps, rows)))
    paths = ("--model", model_directory, "--data", table, "--eval-data", path)
    return ("train", *paths, "--pooling", "mean", "--batch-size", "8", "--buckets", "2", *STEPS)


SWEEP = ("--sweep", "learning_rate=0.005,0.02", "weight_decay=0,0.1", "--seeds", "2")


@pytest.fixture(scope="module")
def finished(tmp_path_factory, words):
    from lntune_jax.cli import main

    output = tmp_path_factory.mktemp("sweep") / "whole"
    assert main([str(word) for word in (*words, *SWEEP, "--output", output)]) == 0
    return output


def test_a_sweep_leaves_every_adapter_and_the_best(finished):
    content = json.loads((finished / "sweep.json").read_text())
    assert len(content["trials"]) == 8
    names = {row["name"] for row in content["trials"]}
    assert names == {each.name for each in (finished / "adapters").iterdir()}
    best = max(content["trials"], key=lambda row: (row["accuracy"], -row["loss"]))
    assert content["best"] == best["name"]
    kept, same = leaves(finished / "adapter"), leaves(finished / "adapters" / best["name"])
    assert all(np.array_equal(kept[path], same[path]) for path in kept)
    assert (finished / "sweep.png").read_bytes().startswith(b"\x89PNG")
    lines = read_metrics(finished / "metrics.jsonl")
    assert len([line for line in lines if line["split"] == "train"]) == 8 * 6
    assert len(read_metrics(finished / "metrics.jsonl", best["name"])) == 6 + 2
    summary = json.loads((finished / "summary.json").read_text())
    assert summary["best"]["accuracy"] == best["accuracy"]
    assert summary["compilations"] <= 2 * 2  # One a padded length, for training and evaluation.


@pytest.mark.parametrize("seed", [0, 1])
def test_each_adapter_is_the_one_trained_alone(finished, words, run, tmp_path, seed):
    options = ("--learning-rate", "0.02", "--weight-decay", "0.1", "--seed", seed)
    code, _, complaint = run(*words, *options, "--output", tmp_path / "alone")
    assert (code, complaint) == (0, "")
    name = f"learning_rate-0.02-weight_decay-0.1-seed-{seed}"
    together = read_metrics(finished / "metrics.jsonl", name)
    alone = read_metrics(tmp_path / "alone" / "metrics.jsonl")
    for one, other in zip(together, alone, strict=True):
        assert (one["split"], one["step"]) == (other["split"], other["step"])
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-4)
    found, expected = leaves(finished / "adapters" / name), leaves(tmp_path / "alone" / "adapter")
    for path in expected:
        np.testing.assert_allclose(found[path], expected[path], rtol=1e-3, atol=1e-4)


def test_chunks_and_a_resumed_sweep_give_the_same(finished, words, run, tmp_path):
    output = ("--output", tmp_path / "parts")
    flags = (*words, *SWEEP, *output, "--adapters-at-once", "3")
    code, printed, _ = run(*flags, "--stop-after-steps", "4")
    assert code == 0
    assert "8 adapters, 3 of them in one pass" in run.notes
    assert "stopped after step 4 of 6; go on with --resume" in run.notes
    assert not (tmp_path / "parts" / "summary.json").exists()
    code, printed, _ = run(*flags, "--resume")
    assert code == 0
    whole, parts = (
        {row["name"]: row for row in json.loads((path / "sweep.json").read_text())["trials"]}
        for path in (finished, tmp_path / "parts")
    )
    assert whole.keys() == parts.keys()
    for name, row in parts.items():
        assert row["loss"] == pytest.approx(whole[name]["loss"], rel=1e-4)
    lines = read_metrics(tmp_path / "parts" / "metrics.jsonl", name)
    assert [line["step"] for line in lines] == [1, 2, 3, 3, 4, 5, 6, 6]
    code, printed, _ = run(*flags, "--resume")
    assert code == 0
    assert "nothing to resume" in run.notes
    assert "8 adapters" in printed


def test_one_that_diverges_or_loses_patience_leaves_the_others_alone(words, run, tmp_path):
    flags = ("--sweep", "learning_rate=0.005,1e30", "--patience", "1", "--eval-every", "1")
    code, _, complaint = run(*words, *flags, "--output", tmp_path)
    assert (code, complaint) == (0, "")
    assert "the others go on" in run.notes
    good, bad = json.loads((tmp_path / "sweep.json").read_text())["trials"]
    assert bad["ended"].startswith("no number at step")
    assert np.isfinite(good["loss"])
    norms = leaves(tmp_path / "adapter")
    assert all(np.isfinite(leaf).all() for leaf in norms.values())
    code, _, complaint = run(
        *words,
        "--sweep",
        "learning_rate=1e30,1e31",
        "--eval-every",
        "6",
        "--output",
        tmp_path / "x",
    )
    assert code == 2
    assert "the loss of every adapter of the sweep is no number" in complaint


def test_a_language_model_is_swept_too(run, tmp_path):
    model = make_decoder(tmp_path / "llama")
    texts = tmp_path / "texts.txt"
    documents = [" ".join(WORDS[start : start + 9]) for start in range(30)]
    texts.write_text("\n\n".join(documents))
    flags = ("--task", "causal_lm", "--max-length", "16", "--batch-size", "4", *STEPS, "--dropout")
    words = ("train", "--model", model, "--data", texts, *flags)
    swept = ("--sweep", "learning_rate=0.001,0.03", "--output", tmp_path / "swept")
    code, printed, complaint = run(*words, *swept)
    assert (code, complaint) == (0, "")
    assert "perplexity" in printed
    alone = ("--learning-rate", "0.03", "--output", tmp_path / "alone")
    assert run(*words, *alone)[0] == 0
    together = read_metrics(tmp_path / "swept" / "metrics.jsonl", "learning_rate-0.03")
    for one, other in zip(
        together, read_metrics(tmp_path / "alone" / "metrics.jsonl"), strict=True
    ):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-4)
    assert json.loads((tmp_path / "swept" / "sweep.json").read_text())["metric"] == "perplexity"
    one = tmp_path / "swept" / "adapters" / "learning_rate-0.03"
    table = tmp_path / "more.txt"
    table.write_text(documents[0])
    code, printed, _ = run("evaluate", "--adapter", one, "--data", table)
    assert code == 0
    assert "perplexity" in printed
    idle = ("--sweep", "weight_decay=0,0.1", "--output", tmp_path / "idle")
    code, _, complaint = run(*words, *idle)
    assert code == 2
    assert "--sweep weight_decay changes nothing" in complaint
    assert not (tmp_path / "idle").exists()


def test_trials_are_all_combinations():
    trials = list_trials(Grid(("learning_rate=1e-3,0.01", "weight_decay=0"), seeds=2), Recipe())
    assert [trial.name for trial in trials][:2] == [
        "learning_rate-0.001-weight_decay-0-seed-0",
        "learning_rate-0.001-weight_decay-0-seed-1",
    ]
    assert [trial.recipe.seed for trial in trials] == [0, 1, 0, 1]
    assert trials[3].recipe.learning_rate == 0.01
    close = Grid(("learning_rate=0.0012345671,0.0012345672",), seeds=3)
    names = [trial.name for trial in list_trials(close, Recipe(seed=20240101))]
    assert len(set(names)) == 6
    assert names[0].endswith("seed-20240101")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--sweep", "batch_size=8,16"], "with a name of learning_rate, head_learning_rate"),
        (["--sweep", "seed=1,2"], "seeds are --seeds"),
        (["--sweep", "learning_rate"], "must be NAME=VALUE,VALUE"),
        (["--sweep", "learning_rate=a"], "the values must be numbers"),
        (["--sweep", "learning_rate=0,1"], "a value is out of range"),
        (["--sweep", "learning_rate=1,1"], "a value comes twice"),
        (["--sweep", "learning_rate=1", "learning_rate=2"], "names learning_rate twice"),
        (["--seeds", "2", "--seed", "4294967295"], "goes beyond 4294967295"),
        (["--seeds", "99999"], "make 99,999 adapters; at most 10,000 train"),
        (["--adapters-at-once", "2"], "--adapters-at-once goes with --sweep or --seeds"),
        (
            ["--pooling", "default", "--save-modules", "pooler", "--seeds", "2"],
            "name classifier in --save-modules too",
        ),
        (["--seeds", "0"], "--seeds is 0; it must be 1 or more"),
    ],
)
def test_refusals(words, run, tmp_path, flags, message):
    code, _, complaint = run(*words, *flags, "--output", tmp_path / "none")
    assert code == 2
    assert message in complaint
    assert not (tmp_path / "none").exists()

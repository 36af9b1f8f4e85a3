"""`train --more-data`: adapters of several tables, trained at once over one base."""

import json
from pathlib import Path

import numpy as np
import pytest

from lntune_jax.trainer.callbacks import read_metrics
from lntune_jax.trainer.recipe import Recipe
from lntune_jax.trainer.sweep import Grid, list_trials, name_tables
from tests.support.runs import WORDS, leaves, make_decoder

pytestmark = pytest.mark.long


@pytest.fixture
def other(tmp_path, make_rows):
    path = tmp_path / "other.jsonl"
    rows = [{"text": text, "label": label} for text, label in make_rows(21, seed=1)]
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


@pytest.mark.parametrize("number", [0, 1])
def test_each_table_gives_the_adapter_that_it_gives_alone(
    model_directory, table, other, run, tmp_path, number
):
    common = ("train", "--model", model_directory, "--pooling", "mean", "--batch-size", "8")
    common += ("--buckets", "1", "--learning-rate", "0.02")
    many, alone = tmp_path / "many", tmp_path / "alone"
    flags = ("--data", table, "--more-data", other, "--epochs", "1", "--output", many)
    code, _, complaint = run(*common, *flags)
    assert (code, complaint) == (0, "")
    assert "sweep: 2 adapters, 2 of them in one pass" in run.notes
    assert "figures of two tables do not compare" in " ".join(run.notes.split())
    # The larger table has 54 rows to train on, and so 7 batches in its one epoch.
    data = (table, other)[number]
    flags = ("--data", data, "--max-steps", "7", "--epochs", "9", "--eval-every", "7")
    assert run(*common, *flags, "--output", alone)[0] == 0
    name = f"data-{data.stem}"
    found = read_metrics(many / "metrics.jsonl", name)
    expected = read_metrics(alone / "metrics.jsonl")
    assert [line["split"] for line in found] == ["train"] * 7 + ["eval"]
    for one, two in zip(found, expected, strict=True):
        assert one["loss"] == pytest.approx(two["loss"], rel=1e-4)
        assert one.get("epoch") == two.get("epoch")
    one, two = leaves(many / "adapters" / name), leaves(alone / "adapter")
    for path in two:
        np.testing.assert_allclose(one[path], two[path], rtol=1e-3, atol=1e-4)
    best = json.loads((many / "sweep.json").read_text())["best"]
    rows = json.loads((many / "summary.json").read_text())["training_rows"]
    assert rows == {"data-reviews": 54, "data-other": 19}[best]


def test_language_models_with_tables_and_rates(run, tmp_path):
    draw = np.random.default_rng(0)
    for name, count in (("de", 30), ("fr", 12)):
        (tmp_path / name).mkdir()
        lines = [" ".join(draw.choice(WORDS, 12)) for _ in range(count)]
        (tmp_path / name / "train.txt").write_text("\n\n".join(lines))
    model = make_decoder(tmp_path / "model")
    flags = ("train", "--task", "causal_lm", "--model", model, "--data", tmp_path / "de/train.txt")
    flags += ("--more-data", tmp_path / "fr/train.txt", "--sweep", "learning_rate=0.001,0.01")
    flags += ("--max-length", "16", "--batch-size", "4", "--max-steps", "3")
    flags += ("--output", tmp_path / "run")
    code, _, complaint = run(*flags, "--stop-after-steps", "2")
    assert (code, complaint) == (0, "")
    code, _, complaint = run(*flags, "--resume")
    assert (code, complaint) == (0, "")
    names = {each.name for each in (tmp_path / "run" / "adapters").iterdir()}
    assert names == {
        f"data-{table}-train-learning_rate-{rate}"
        for table in ("de", "fr")
        for rate in (0.001, 0.01)
    }
    with (tmp_path / "fr" / "train.txt").open("a") as file:
        file.write("\n\nanother line")
    (tmp_path / "run" / "summary.json").unlink()
    code, _, complaint = run(*flags, "--resume")
    assert code == 2
    assert "the content of --more-data has changed" in complaint


def test_names_of_tables():
    assert name_tables([Path("a/x.csv"), Path("a/y.csv")]) == ("x", "y")
    assert name_tables([Path("a/x.csv"), Path("b/x.csv")]) == ("a-x", "b-x")
    assert name_tables([Path("a/b/x.csv"), Path("c/b/x.csv")]) == ("1-x", "2-x")
    trials = list_trials(Grid(more_data=(Path("b.csv"),), seeds=2), Recipe(), Path("a.csv"))
    assert [(trial.name, trial.table, trial.recipe.seed) for trial in trials] == [
        ("data-a-seed-0", 0, 0),
        ("data-a-seed-1", 0, 1),
        ("data-b-seed-0", 1, 0),
        ("data-b-seed-1", 1, 1),
    ]


def test_refusals(model_directory, table, run, tmp_path):
    flags = ("train", "--model", model_directory, "--data", table, "--output", tmp_path / "run")
    code, _, complaint = run(*flags, "--more-data", table)
    assert code == 2
    assert "name" in complaint
    assert "twice" in complaint
    strange = tmp_path / "strange.csv"
    strange.write_text("text,label\na word,neither\nanother,neither\n")
    code, _, complaint = run(*flags, "--more-data", strange)
    assert code == 2
    assert "'neither'" in complaint

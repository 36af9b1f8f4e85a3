"""A loss that is no number: the run stops with all that is needed to go on, or skips the step."""

import json

import numpy as np
import pytest

import lntune_jax as lnt
from lntune_jax.errors import ModelError
from lntune_jax.tasks import text_classification
from lntune_jax.trainer.callbacks import read_metrics
from lntune_jax.trainer.nonfinite import MOST_SKIPPED, Fault

BAD_LINE = 9  # of the data file, whose first is its header


@pytest.fixture
def words(model_directory, table, make_rows, tmp_path):
    other = tmp_path / "other.jsonl"
    rows = [{"text": text, "label": label} for text, label in make_rows(21, seed=1)]
    other.write_text("\n".join(map(json.dumps, rows)))
    paths = ("--model", model_directory, "--data", table, "--eval-data", other)
    flags = ("--pooling", "mean", "--batch-size", "8", "--buckets", "1")
    return ("train", *paths, *flags, "--max-steps", "10", "--checkpoint-every", "1")


@pytest.fixture
def spoil(monkeypatch):
    """Every batch with a bad row has no loss: `spoil(is_bad)`, given the rows of the data file."""
    assemble = text_classification.TextClassification.assemble

    def start(is_bad):
        def spoiled(work, planned, batch_size):
            batch, tokens = assemble(work, planned, batch_size)
            if is_bad(work.list_rows(planned)):
                batch["weights"] = batch["weights"] * np.float32(np.nan)
            return batch, tokens

        monkeypatch.setattr(text_classification.TextClassification, "assemble", spoiled)

    return start


def is_finite(directory):
    return all(np.isfinite(leaf).all() for leaf in lnt.load_adapter(directory).trainable.values())


def test_the_run_stops_and_names_step_rows_and_checkpoint(run, words, spoil, tmp_path):
    spoil(lambda rows: BAD_LINE in rows)
    output = tmp_path / "run"
    code, _, complaint = run(*words, "--output", output)
    assert code == 2
    lines = read_metrics(output / "metrics.jsonl")
    last = lines[-1]["step"]
    assert f"the loss of step {last + 1} is nan" in complaint
    rows = complaint.partition("(lines ")[2].partition(" of the data)")[0].split(", ")
    assert str(BAD_LINE) in rows
    assert len(rows) == 8
    assert f"The last good checkpoint is {output / 'checkpoints' / str(last)};" in complaint
    assert (output / "checkpoints" / str(last)).is_dir()
    assert "lower the learning rates" in complaint
    assert "--resume and --on-nan skip" in complaint
    # As it says: the run goes on from there, and every other step is learnt from.
    code, _, complaint = run(*words, "--output", output, "--resume", "--on-nan", "skip")
    assert (code, complaint) == (0, "")
    assert "is nan (lines " in run.notes
    lines = [line for line in read_metrics(output / "metrics.jsonl") if line["split"] == "train"]
    assert [line["step"] for line in lines] == list(range(1, 11))
    skipped = [line["step"] for line in lines if line.get("skipped")]
    assert last + 1 in skipped
    assert all((line["loss"] is None) == (line["step"] in skipped) for line in lines)
    assert is_finite(output / "adapter")


def test_steps_that_fail_one_after_the_other_end_a_run_that_skips(run, words, spoil, tmp_path):
    spoil(lambda rows: True)
    flags = ("--on-nan", "skip", "--max-steps", "20", "--output", tmp_path / "run")
    code, _, complaint = run(*words, *flags)
    assert code == 2
    assert f"{MOST_SKIPPED} steps in a row were skipped" in complaint
    assert "The last good checkpoint is" in complaint


def test_in_a_sweep_it_ends_or_skips_one_adapter(run, words, spoil, tmp_path):
    """Two seeds have batches of their own; only the bad row's batches lose their numbers."""
    turn = iter(range(100))
    spoil(lambda rows: next(turn) == 3)  # the second adapter's second step
    code, _, complaint = run(*words, "--seeds", "2", "--output", tmp_path / "stop")
    assert (code, complaint) == (0, "")
    assert "seed-1: the loss of step 2 is nan (lines " in run.notes
    assert "it stops here, the others go on" in run.notes
    trials = {each["name"]: each for each in read_sweep(tmp_path / "stop")}
    assert trials["seed-1"]["ended"] == "no number at step 2"
    assert trials["seed-0"]["ended"] == "at the end"
    turn = iter(range(100))
    flags = ("--seeds", "2", "--on-nan", "skip", "--output", tmp_path / "skip")
    code, _, complaint = run(*words, *flags)
    assert (code, complaint) == (0, "")
    assert {each["ended"] for each in read_sweep(tmp_path / "skip")} == {"at the end"}
    lines = read_metrics(tmp_path / "skip" / "metrics.jsonl", "seed-1")
    assert [line["step"] for line in lines if line.get("skipped")] == [2]
    for name in ("seed-0", "seed-1"):
        assert is_finite(tmp_path / "skip" / "adapters" / name)


def read_sweep(output):
    return json.loads((output / "sweep.json").read_text())["trials"]


def test_half_precision_of_the_narrow_kind_is_refused(run, words, model_directory, tmp_path):
    code, _, complaint = run(*words, "--dtype", "float16", "--output", tmp_path / "run")
    assert code == 2
    assert "--dtype" in complaint
    assert "float16" in complaint
    assert not (tmp_path / "run").exists()
    with pytest.raises(ModelError, match="float16"):
        lnt.models.from_pretrained(model_directory, dtype="float16")


def test_what_was_no_number_is_named():
    assert "gradient's norm in step 3 is inf" in Fault(3, 1.0, np.inf, [1]).describe()
    assert "update of step 3 leaves weights" in Fault(3, 1.0, 1.0, []).describe()
    many = Fault(3, np.nan, np.nan, range(1, 200)).describe()
    assert "63, 64 and 135 more" in many

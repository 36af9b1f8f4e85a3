"""Which rows train: bad ones left out, and at most so many."""

import pytest

from tests.support.runs import FLAGS, make_decoder


@pytest.fixture
def words(model_directory, tmp_path):
    words = ("train", "--model", model_directory, "--output", tmp_path / "out")
    return (*words, "--pooling", "mean", "--buckets", 1, "--max-steps", 2)


@pytest.mark.filterwarnings("default")  # The command line prints warnings.
def test_bad_rows_stop_a_run_or_are_left_out(run, words, table, tmp_path):
    data = tmp_path / "data.csv"
    data.write_text(table.read_text() + "good,\nbad,nan\n,neg\n")
    code, printed, complaint = run(*words, "--data", data)
    assert (code, printed) == (2, "")
    for part in ("3 bad rows", "lines 62, 63: no label", "line 64: no text", "--skip-bad-rows"):
        assert part in complaint
    code, printed, complaint = run(*words, "--data", data, "--skip-bad-rows")
    assert code == 0
    assert "3 bad rows" in complaint
    assert "60 rows are left" in complaint
    assert "labels: neg, pos" in run.notes
    assert "54 to train on, 6 to evaluate on" in run.notes
    evaluate = ("evaluate", "--run", tmp_path / "out", "--data", data)
    assert run(*evaluate)[0] == 2
    code, printed, _ = run(*evaluate, "--skip-bad-rows")
    assert code == 0
    assert "rows: 60" in printed


def test_at_most_so_many_rows_train(run, words, table):
    code, _, _ = run(*words, "--data", table, "--max-train-rows", 20)
    assert code == 0
    assert "20 to train on, 6 to evaluate on" in run.notes
    code, _, complaint = run(*words, "--data", table, "--max-train-rows", 0)
    assert code == 2
    assert "--max-train-rows is 0" in complaint


def test_at_most_so_many_documents_train(run, tmp_path):
    data = tmp_path / "data.csv"
    data.write_text("text\n" + "".join(f"w{row} w1 w2\n" for row in range(40)))
    decoder = make_decoder(tmp_path / "decoder")
    words = ("train", "--model", decoder, "--data", data, "--output", tmp_path / "out", *FLAGS)
    code, _, complaint = run(*words, "--max-steps", 1, "--max-train-rows", 10)
    assert code == 0, complaint
    assert "to train on: 10 documents" in run.notes
    assert "to evaluate on: 4 documents" in run.notes


def test_flags_of_datasets_need_one(run, words, table):
    for flag in ("--train-split", "--eval-split"):
        code, _, complaint = run(*words, "--data", table, flag, "test")
        assert code == 2
        assert f"{flag} goes with a dataset" in complaint

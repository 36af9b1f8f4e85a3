"""Where commands write: files that cannot be, inputs that must not be, readers that leave."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lntune_jax import LNTuningError
from lntune_jax.cli.checks import check_settings
from lntune_jax.cli.options import CompareSettings, EvaluateSettings, Trained, TrainSettings
from lntune_jax.cli.output import check_output


@pytest.fixture
def no_model(monkeypatch):
    """A model that is loaded is one too early."""
    from lntune_jax.cli import evaluate, generate, predict

    def fail(*arguments, **options):
        raise AssertionError("the model is loaded")

    for module, name in ((predict, "load_trained"), (evaluate, "load_trained")):
        monkeypatch.setattr(module, name, fail)
    monkeypatch.setattr(generate, "load_language_model", fail)


def list_faults(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "taken.jsonl").mkdir()
    return {
        tmp_path / "none" / "a.jsonl": "there is no directory",
        tmp_path / "file" / "a.jsonl": "is a file",
        tmp_path / "taken.jsonl": "is a directory",
    }


@pytest.mark.usefixtures("no_model")
def test_a_file_that_cannot_be_written_is_found_before_the_model(run, make_run, table, tmp_path):
    commands = (
        ("evaluate", "--run", make_run("mean"), "--data", table),
        ("predict", "--run", make_run("mean"), "--data", table),
        ("generate", "--model", "org/name", "--data", table),
    )
    faults = list_faults(tmp_path)
    for words in commands:
        for path, fault in faults.items():
            code, _, complaint = run(*words, "--output", path)
            assert code == 2, complaint
            assert f"--output {path}" in complaint
            assert fault in complaint


@pytest.mark.usefixtures("no_model")
def test_an_input_is_never_written_over(run, make_run, tmp_path, monkeypatch):
    path, home = tmp_path / "a.jsonl", tmp_path / "home"
    content = '{"text": "good"}\n'
    path.write_text(content)
    home.mkdir()
    (home / "linked.jsonl").symlink_to(path)
    (tmp_path / "hard.jsonl").hardlink_to(path)
    monkeypatch.chdir(home)
    monkeypatch.setenv("HOME", str(home))
    names = (path, "linked.jsonl", "../a.jsonl", "~/linked.jsonl", tmp_path / "hard.jsonl")
    for words in (("predict", "--run", make_run("mean")), ("generate", "--model", "org/name")):
        for name in names:
            code, _, complaint = run(*words, "--data", path, "--output", name)
            assert (code, path.read_text()) == (2, content)
            assert "is the file to be read" in complaint


def test_a_file_that_may_be_written(tmp_path):
    (tmp_path / "there").touch()
    (tmp_path / "link").symlink_to(tmp_path / "not yet")
    for path in (None, tmp_path / "there", tmp_path / "new", tmp_path / "link", Path("/dev/null")):
        check_output(path, [None, tmp_path / "other"])


def test_a_home_directory_is_found_in_every_path(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    train = TrainSettings(model="~/m", data=Path("~/x.csv"), output=Path("~/out"))
    found = check_settings(train)
    assert (found.model, found.data, found.output) == (
        *("/home/me/m", Path("/home/me/x.csv")),
        Path("/home/me/out"),
    )
    trained = Trained(run=Path("~/run"), adapter=Path("~/a"), model="~")
    found = check_settings(EvaluateSettings(data=Path("a~b"), trained=trained))
    assert found.data == Path("a~b")
    assert found.trained == Trained(
        run=Path("/home/me/run"), adapter=Path("/home/me/a"), model="/home/me"
    )
    found = check_settings(CompareSettings(adapters=(Path("~/a"), Path("b")), model="org/~name"))
    assert (found.adapters, found.model) == ((Path("/home/me/a"), Path("b")), "org/~name")
    with pytest.raises(LNTuningError, match="--data ~nobody-has-this/x: there is no such user"):
        check_settings(EvaluateSettings(data=Path("~nobody-has-this/x")))


def test_a_home_directory_reaches_the_command(run, make_run, table, monkeypatch, tmp_path):
    (tmp_path / "run").symlink_to(make_run("mean"))
    (tmp_path / "x.csv").write_bytes(table.read_bytes())
    monkeypatch.setenv("HOME", str(tmp_path))
    words = ("--run=~/run", "--data=~/x.csv", "--output=~/figures.json")
    code, _, complaint = run("evaluate", *words)
    assert (code, complaint) == (0, "")
    assert json.loads((tmp_path / "figures.json").read_text())["rows"] == 60


def call_without_reader(*words):
    """The exit code and the complaints of a command whose reader has left before it prints."""
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "lntune_jax", *map(str, words)]
    try:
        done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True)
    finally:
        os.close(writing)
    # Progress goes to stderr too.
    said = done.stderr.splitlines(keepends=True)
    return done.returncode, "".join(
        line for line in said if "lntune-jax:" in line or "Traceback" in line
    )


@pytest.mark.long
def test_work_is_done_though_nobody_reads(make_run, table, model_directory, tmp_path):
    run, output = make_run("mean"), tmp_path / "out"
    figures = tmp_path / "figures.json"
    words = ("--run", run, "--data", table, "--output", figures)
    assert call_without_reader("evaluate", *words) == (0, "")
    assert json.loads(figures.read_text())["rows"] == 60
    assert call_without_reader("predict", "--run", run, "--text", "good") == (0, "")
    words = ("--model", model_directory, "--data", table, "--output", output, "--max-steps", 2)
    assert call_without_reader("train", *words) == (0, "")
    assert (output / "summary.json").exists()
    words = ("--adapter", output, "--output", tmp_path / "merged")
    code, complaint = call_without_reader("merge", *words)
    assert code == 0
    assert (tmp_path / "merged" / "config.json").exists()
    assert "Traceback" not in complaint


@pytest.mark.parametrize("words", [["--help"], ["train", "--help"]])
def test_help_though_nobody_reads(words):
    assert call_without_reader(*words) == (0, "")


def test_a_mistake_is_2_though_nobody_reads(tmp_path):
    code, complaint = call_without_reader("inspect", tmp_path)
    assert code == 2
    assert complaint.count("\n") == 1


BAD = '{"text": "good"}\n{"text": null}\n{oops\n{"text": "bad"}\n'


@pytest.mark.filterwarnings("default")  # The command line prints warnings.
def test_predict_marks_the_rows_it_cannot_read(run, make_run, tmp_path):
    path, output = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    path.write_text(BAD)
    words = ("predict", "--run", make_run("mean"), "--data", path)
    code, said, complaint = run(*words, "--output", output)
    assert code == 0
    assert "2 bad rows: line 2: no text in column 'text'; line 3: no JSON; marked" in complaint
    assert "2 predictions in" in said
    assert "2 rows marked" in said
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert [row["text"] for row in rows] == ["good", None, None, "bad"]
    assert ["label" in row for row in rows] == [True, False, False, True]
    assert [row.get("error") for row in rows] == [
        *(None, "line 2: no text in column 'text'"),
        *("line 3: no JSON", None),
    ]
    assert run(*words)[1] == output.read_text()  # into a pipe


@pytest.mark.filterwarnings("default")
def test_a_csv_has_a_column_of_errors_only_where_there_is_one(run, make_run, tmp_path):
    path, output = tmp_path / "a.csv", tmp_path / "b.csv"
    words = ("predict", "--run", make_run("mean"), "--data", path, "--output", output)
    path.write_text("text\ngood\n")
    assert run(*words)[0] == 0
    assert output.read_text().splitlines()[0] == "text,label,probability_neg,probability_pos"
    path.write_text('text\ngood\n" "\n')
    assert run(*words)[0] == 0
    first, good, bad = output.read_text().splitlines()
    assert first.endswith("probability_pos,error")
    assert good.startswith("good,")
    assert good.endswith(",")
    assert bad.endswith(",,,,line 3: no text in column 'text'")

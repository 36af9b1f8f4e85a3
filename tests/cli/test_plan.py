"""`lntune-jax plan`: what it prints and writes, without the compilers that it needs."""

import json
import sys

import pytest

from lntune_jax.models import plan
from lntune_jax.models.planning.compiled import Compiled
from tests.support.paths import REFERENCE

LLAMA = REFERENCE / "decoders" / "llama"


@pytest.fixture
def compiler(monkeypatch):
    """Answers, one for each step that is asked for."""
    answers, module = [], sys.modules[plan.__module__]
    monkeypatch.setattr(module, "check_compiler", lambda place: None)
    monkeypatch.setattr(module, "compile_apart", lambda request: answers.pop(0))
    return answers


def test_the_report_and_the_file(run, compiler, tmp_path):
    compiler += [Compiled(1000, 4000), Compiled(1000, 900, 400, 500, 10**9, {})]
    file = tmp_path / "plan.json"
    words = ("plan", LLAMA, "--chips", "v5e-8", "--batch", "16", "--length", "16")
    code, printed, _ = run(*words, "--json", file)
    assert code == 0
    assert printed.startswith("llama: ")
    assert "16 x 16 tokens" in printed
    assert "This fits: --remat dots_with_no_batch_dims_saveable" in printed
    assert run.notes.count("compiling ln for v5e-8") == 2
    assert json.loads(file.read_text())["steps"]["ln"]["needed"] == 4000


def test_mistakes_are_one_line(run, compiler, tmp_path):
    for words, said in (
        (("--chips", "v5f-8"), "chips is 'v5f-8'"),
        (("--chips", "v5e-8", "--mesh", "fsdp=3"), "is 3 devices, but v5e-8 has 8"),
        (("--chips", "v5e-8", "--batch", "3"), "batch is 3"),
        (("--chips", "v5e-8", "--json", tmp_path), f"--json {tmp_path} is a directory"),
        ((), "missing --chips"),
    ):
        code, printed, complaint = run("plan", LLAMA, *words)
        assert (code, printed) == (2, "")
        assert said in complaint, complaint
        assert complaint.count("\n") <= 1

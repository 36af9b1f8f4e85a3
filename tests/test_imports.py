"""Tests stand alone: none imports another test, or the benchmarks; what they share is support."""

import ast
import contextlib

import pytest

from tests.support.paths import ROOT

# Not this file, which has wrong imports as text.
FILES = sorted({*ROOT.glob("tests/**/*.py")} - {ROOT / "tests" / "test_imports.py"})
# Whose names a program could find only with another folder on its path.
BARE = {
    path.stem for folder in ("benchmarks", "tests/support") for path in ROOT.glob(f"{folder}/*.py")
}


def list_imports(source):
    """Names of the modules imported anywhere in a source, and in the programs it has as text."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{name.name}" for name in node.names)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            for line in node.value.splitlines():  # An f-string is in pieces: no whole program.
                if line.lstrip().startswith(("import ", "from ")):
                    with contextlib.suppress(SyntaxError):
                        yield from list_imports(line.strip())


def list_wrong(source):
    return [
        name
        for name in list_imports(source)
        if any(part.startswith("test_") for part in name.split(".")[:-1])
        or name.split(".")[-1].startswith("test_")
        or name.split(".")[0] in BARE | {"benchmarks"}
    ]


@pytest.mark.parametrize("path", FILES, ids=[str(path.relative_to(ROOT)) for path in FILES])
def test_what_a_file_imports(path):
    assert list_wrong(path.read_text()) == []


@pytest.mark.parametrize(
    "source",
    [
        "from tests.training.test_many import make",
        "from tests.training import test_many",
        "import tests.training.test_many as other",
        "def f():\n    from step import make_run",
        "import _results",
        "PROGRAM = f'import jax, small\\n{path}'",
        "from benchmarks.step import make_run",
        "PROGRAM = 'import sys\\nfrom tests.training.test_many import make'",
    ],
)
def test_a_wrong_import_is_seen(source):
    assert len(list_wrong(source)) == 1

"""Figures that the tests leave for the results page, and examples run as a user runs them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples" / "packages"
sys.path.insert(0, str(EXAMPLES))  # its recipes are imported as a copied file would be


@pytest.fixture
def record(request):
    """`record(norms=..., before=..., ...)` adds one line to the results of this test."""

    def add(**figures):
        target = os.environ.get("LNTUNE_COMPAT_RECORD")
        if target:
            line = {"model": request.node.name.removeprefix("test_"), **figures}
            with Path(target).open("a") as file:
                file.write(json.dumps(line) + "\n")

    return add


@pytest.fixture
def run_example():
    """Runs an example in a process of its own and returns what it prints."""

    def run(name):
        done = subprocess.run(
            [sys.executable, str(EXAMPLES / name)], capture_output=True, text=True, timeout=600
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    return run

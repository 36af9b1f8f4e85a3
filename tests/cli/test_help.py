import subprocess
import sys

import pytest

from lntune_jax.cli.app import COMMANDS

# A stand-in for the package itself, so that the test sees what the command line alone imports.
LIGHT = """
import sys, types, pathlib
root = pathlib.Path(sys.argv[1])
package = types.ModuleType("lntune_jax")
package.__path__ = [str(root)]
sys.modules["lntune_jax"] = package
from lntune_jax.cli import main
for words in ("--help", "train --help", "train --nonsense", "demo --seeds x"):
    main(words.split())
heavy = {"jax", "flax", "optax", "orbax", "transformers", "matplotlib", "pyarrow"}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
"""


def test_help_and_bad_flags_import_nothing_heavy():
    import lntune_jax

    result = subprocess.run(
        [sys.executable, "-c", LIGHT, lntune_jax.__path__[0]],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself_in_80_columns(run, monkeypatch, command):
    monkeypatch.setenv("COLUMNS", "80")
    code, printed, complaint = run(command, "--help")
    assert code == 0
    assert not complaint
    assert f"usage: lntune-jax {command}" in printed
    boxed = [line for line in printed.splitlines() if line[:1] in "│╭╰"]
    assert boxed
    assert max(map(len, boxed)) <= 80


def test_the_list_of_commands(run):
    code, printed, _ = run("--help")
    assert code == 0
    assert all(command in printed for command in COMMANDS)


def test_python_m_is_the_same_command():
    words = [sys.executable, "-m", "lntune_jax", "nonsense"]
    result = subprocess.run(words, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert result.stderr.startswith("lntune-jax: error: ")

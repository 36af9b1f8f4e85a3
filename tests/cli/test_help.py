import re
import subprocess
import sys

import pytest

from lntune_jax.cli.app import COMMANDS
from lntune_jax.cli.flags import list_flags, write_place
from lntune_jax.cli.help import read_docstrings

LIGHT = """
import sys
from lntune_jax.cli import main
for words in ("--version", "--help", "train --help", "train --nonsense", "demo --seeds x"):
    main(words.split())
heavy = {"jax", "flax", "optax", "orbax", "transformers", "matplotlib", "pyarrow", "rich", "numpy"}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
"""


def test_help_and_bad_flags_import_nothing_heavy():
    result = subprocess.run(
        [sys.executable, "-c", LIGHT], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself_in_80_columns(run, monkeypatch, command):
    monkeypatch.setenv("COLUMNS", "80")
    code, printed, complaint = run(command, "--help")
    assert code == 0
    assert not complaint
    assert f"usage: lntune-jax {command}" in printed
    assert max(map(len, printed.splitlines())) <= 80
    for flag in list_flags(COMMANDS[command].settings):
        for name in (write_place(flag), *flag.shown.also):
            assert re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", printed), name
    assert run("help", command) == run(command, "-h") == (0, printed, "")


def test_each_field_has_its_help(run):
    for command in COMMANDS.values():
        for flag in list_flags(command.settings):
            owner = flag.groups[-1] if flag.groups else command.settings
            assert read_docstrings(owner).get(flag.name), (owner, flag.name)


def test_the_list_of_commands(run):
    code, printed, _ = run("--help")
    assert code == 0
    assert all(command in printed for command in COMMANDS)


def test_without_a_command_the_help_is_a_complaint(run):
    _, helped, _ = run("--help")
    code, printed, _ = run()
    assert (code, printed) == (2, "")
    assert run.notes.splitlines()[0] == helped.splitlines()[0]
    assert run("help") == (0, helped, "")


def test_the_version(run):
    code, printed, complaint = run("--version")
    assert (code, complaint) == (0, "")
    assert re.fullmatch(
        r"lntune-jax (\S+|\(a source tree\)) \(jax \S+, Python 3\.\d+\.\d+\)\n", printed
    )


def test_python_m_is_the_same_command():
    words = [sys.executable, "-m", "lntune_jax", "nonsense"]
    result = subprocess.run(words, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert result.stderr.startswith("lntune-jax: error: ")

"""Every command in README and docs parses as it stands, and every flag that prose names exists."""

import re
import shlex

import pytest

from lntune_jax.cli.app import COMMANDS
from lntune_jax.cli.flags import list_flags, make_settings, read_words
from tests.support.paths import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
WITHOUT_COMMAND = {"--help", "--version", "COMMAND"}


def read_commands(page):
    """The words of each line with `lntune-jax` in a block that is no Python."""
    blocks = re.findall(r"```(\w*)\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    text = "\n".join(block for language, block in blocks if language in ("", "bash", "console"))
    for line in text.replace("\\\n", " ").splitlines():
        if re.match(r"(\$ )?(\.venv/bin/)?lntune-jax ", line):
            words = shlex.split(line.split("lntune-jax ", 1)[1], comments=True)
            yield words[: words.index("|")] if "|" in words else words


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_command_of_a_page_parses(page):
    for name, *words in read_commands(page):
        if name in WITHOUT_COMMAND or "--help" in words:
            continue
        settings = COMMANDS[name].settings
        if "--resume" in words[:-1]:  # the run's directory, which names all other flags
            del words[words.index("--resume") + 1]
        given = read_words([word for word in words if word != "..."], settings)
        if not {"...", "--resume", "--config"} & set(words):
            make_settings(settings, given)


def test_every_flag_on_the_page_of_the_command_line_exists():
    text = (ROOT / "docs" / "command-line.md").read_text(encoding="utf-8")
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*[a-z]", re.sub(r"pip install.*", "", text)))
    known = {
        name
        for command in COMMANDS.values()
        for flag in list_flags(command.settings)
        for name in (flag.written, *flag.shown.also)
    }
    assert len(named) > 50
    assert named - WITHOUT_COMMAND <= known

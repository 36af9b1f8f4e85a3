"""The layers on docs/architecture.md are those that the linter checks."""

import re
import tomllib

from tests.support.paths import ROOT


def test_the_layers_of_the_page_are_the_linter_s():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    checked = project["tool"]["importlinter"]["contracts"][0]["layers"]
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    (shown,) = (block for block in re.findall(r"```\n(.*?)```", page, re.DOTALL) if " > " in block)
    layers = [part.split(", ") for part in " ".join(shown.split()).split(" > ")]
    assert layers == [layer.split(" : ") for layer in checked]

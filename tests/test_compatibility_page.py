"""docs/compatibility.md is what compat/run.py writes from the last results."""

import subprocess
import sys
import tomllib

from tests.support.paths import ROOT


def test_the_page_is_that_of_the_results(tmp_path):
    target = tmp_path / "page.md"
    subprocess.run([sys.executable, ROOT / "compat" / "run.py", "--page", target], check=True)
    assert target.read_text() == (ROOT / "docs" / "compatibility.md").read_text()


def test_every_package_is_on_the_page():
    environments = tomllib.loads((ROOT / "compat" / "environments.toml").read_text())
    page = (ROOT / "docs" / "compatibility.md").read_text()
    packages = [name for settings in environments.values() for name in settings["packages"]]
    assert [name for name in packages if f"{name} " not in page] == []

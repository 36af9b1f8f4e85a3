"""docs/when-not.md: its table is that of the results file."""

import subprocess
import sys

from tests.support.paths import ROOT


def test_the_table_is_that_of_the_results():
    command = [sys.executable, ROOT / "docs" / "when_not_table.py", "--check"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (found.returncode, found.stderr) == (0, "")
    page = (ROOT / "docs" / "when-not.md").read_text()
    assert "| MiniLM-L6 | full fine-tuning | 1.00 |" in page

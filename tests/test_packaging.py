"""What people install and where they report: pages, workflows and metadata say the same."""

import re
import subprocess
import sys
import tomllib

from packaging.requirements import Requirement

import lntune_jax as lnt
from tests.support.paths import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRA = re.compile(r"lntune-jax\[([\w,]+)\]")


def test_the_table_of_extras_is_the_project_s():
    command = [sys.executable, ROOT / "docs/extras_table.py", "--check"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (found.returncode, found.stderr) == (0, "")


def test_every_extra_that_is_named_exists():
    """In pages, messages and docstrings: an extra is what a reader types."""
    files = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("lntune_jax/**/*.py")]
    named = {
        (extra, path.relative_to(ROOT))
        for path in files
        for names in EXTRA.findall(path.read_text())
        for extra in names.split(",")
    }
    assert len(named) > 10
    known = PROJECT["optional-dependencies"]
    assert [place for place in named if place[0] not in known] == []


def test_the_install_page_names_every_extra_a_user_wants():
    page = (ROOT / "docs/install.md").read_text().partition("## JAX on")[0]
    named = {extra for names in EXTRA.findall(page) for extra in names.split(",")}
    assert named == PROJECT["optional-dependencies"].keys() - {"demo", "test", "docs"}


def test_one_version():
    assert lnt.__version__ == PROJECT["version"]


def read_make_targets():
    """The targets of the Makefile that are written out, and its variables."""
    text = (ROOT / "Makefile").read_text()
    targets = re.findall(r"^([a-z][a-z -]*):(?!=)", text, re.MULTILINE)
    variables = re.findall(r"^([A-Z_]+) *[?:]?=", text, re.MULTILINE)
    return {target for names in targets for target in names.split()}, set(variables)


def read_commands():
    """Each `make ...` of the workflows, `.ci/run` and the hooks, as words; a matrix written out."""
    files = [*ROOT.glob(".github/**/*"), ROOT / ".ci/run"]
    for path in files:
        text = path.read_text() if path.is_file() else ""
        for line in re.findall(r"^(?:\s*-?\s*run:)?\s*make (.*)", text, re.MULTILINE):
            inserted = re.search(r"\$\{\{ matrix\.(\w+) \}\}", line)
            values = [""]
            if inserted:
                (found,) = re.findall(rf"^ +{inserted[1]}: \[(.*)\]", text, re.MULTILINE)
                values = [value.strip(' "') for value in found.split(",")]
            for value in values:
                words = line.replace(inserted[0], value) if inserted else line
                yield path.name, words.partition(" >")[0]  # without where its output goes


def test_every_make_target_and_variable_that_ci_names_exists():
    targets, variables = read_make_targets()
    commands = list(read_commands())
    assert {name for name, _ in commands} == {"ci.yml", "weekly.yml", "release.yml", "run"}
    for name, line in commands:
        for word in re.sub(r"'[^']*'|\"[^\"]*\"", "VALUE", line).split():
            variable, is_set, _ = word.partition("=")
            assert variable in (variables if is_set else targets), (name, line, word)


def test_every_compat_environment_runs_each_week():
    environments = tomllib.loads((ROOT / "compat/environments.toml").read_text())
    names = {line.split()[-1].strip('"') for _, line in read_commands() if "--check" in line}
    assert names == environments.keys()


def test_every_reader_that_can_be_fuzzed_is():
    source = (ROOT / "fuzz/targets.py").read_text().partition("\nTARGETS = {")[2]
    named = re.findall(r'^    "(\w+)": Target\(', source, re.MULTILINE)
    (line,) = re.findall(r"^FUZZED := (.*)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert line.split() == named != []


def test_every_python_that_is_supported_is_tested_and_named():
    text = "".join(path.read_text() for path in ROOT.glob(".github/workflows/*.yml"))
    tested = set(re.findall(r"3\.1\d", text))
    named = {line.rpartition(" ")[2] for line in PROJECT["classifiers"] if "Python :: 3." in line}
    assert tested == named == {"3.11", "3.12", "3.13"}
    assert PROJECT["requires-python"] == ">=3.11,<3.14"


def run_release(folder, tag, address):
    command = [sys.executable, folder / ".ci/release.py", tag, address]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def make_release(folder, urls):
    """A copy of what a release reads; `urls` are lines of TOML."""
    (folder / ".ci").mkdir()
    (folder / ".ci/release.py").write_text((ROOT / ".ci/release.py").read_text())
    (folder / "pyproject.toml").write_text(
        f'[project]\nversion = "1.2.3"\n[project.urls]\n{urls}\n'
    )
    (folder / "CITATION.cff").write_text("cff-version: 1.2.0\nversion: 1.2.3\n")
    (folder / "CHANGELOG.md").write_text("# C\n\n## 1.2.3\n\nNew.\n\n## 1.2.2\n\nOld.\n")


def test_a_release_prints_its_notes(tmp_path):
    make_release(tmp_path, 'Repository = "https://example.org/a/b"')
    found = run_release(tmp_path, "v1.2.3", "https://example.org/a/b")
    assert (found.returncode, found.stdout, found.stderr) == (0, "New.\n", "")


def test_a_release_that_does_not_fit_is_refused(tmp_path):
    make_release(tmp_path, 'Homepage = "https://example.org"')
    (tmp_path / "CHANGELOG.md").write_text("# C\n\n## 1.2.30\n")
    (tmp_path / "CITATION.cff").write_text("cff-version: 1.2.0\nversion: 1.2.0\n")
    found = run_release(tmp_path, "v1.2.4", "https://example.org/a/b")
    assert found.returncode == 1
    for word in ("v1.2.4", "CITATION.cff", "Repository", "example.org/a/b", "no section 1.2.3"):
        assert word in found.stderr


def test_what_a_release_reads_of_this_project():
    """Its version in all places, and a section of the changelog; the address may be missing yet."""
    found = run_release(ROOT, f"v{PROJECT['version']}", PROJECT["urls"].get("Repository", "none"))
    faults = found.stderr.splitlines()
    assert [fault for fault in faults if "project.urls" not in fault] == []


def test_the_constraints_of_ci_hold_every_dependency_at_a_version_the_project_takes():
    lines = (ROOT / "requirements-ci.txt").read_text().splitlines()
    pins = dict(
        line.lower().replace("_", "-").split("==") for line in lines if not line.startswith("#")
    )
    extras = ("hf", "gguf", "quant", "cli", "test")
    wanted = [*PROJECT["dependencies"]]
    wanted += [line for extra in extras for line in PROJECT["optional-dependencies"][extra]]
    requirements = [Requirement(line) for line in wanted if not line.startswith("lntune-jax[")]
    assert len(requirements) > 20
    for requirement in requirements:
        assert requirement.specifier.contains(pins[requirement.name.lower()]), requirement

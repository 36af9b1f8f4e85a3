"""Tests each optional package in an environment of its own, and writes docs/compatibility.md.

    python compat/run.py            # all of compat/environments.toml
    python compat/run.py keras      # some; the page keeps the last results of the others
    python compat/run.py --check    # no results are written

An environment is made once, in .venv-compat/, by uv where there is one, else by venv and pip.
A package that does not install or whose tests fail is said to be so on the page, with the error's
last line, and makes the command fail.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import resource
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

from page import write_page

ROOT = Path(__file__).parent.parent
COMPAT = ROOT / "compat"
VERSIONS = """
import importlib.metadata, json, platform, sys
names = sys.argv[1:]
found = {d.metadata["Name"].lower(): d.version for d in importlib.metadata.distributions()}
print(json.dumps({"python": platform.python_version()} | {n: found.get(n) for n in names}))
"""
# As in the Makefile: one thread, on the CPU, and nothing from the network.
QUIET = {
    "JAX_PLATFORMS": "cpu",
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false",
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
}


def main() -> int:
    """Runs what the arguments name; the exit status is 1 if anything failed."""
    environments = tomllib.loads((COMPAT / "environments.toml").read_text())
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("names", nargs="*", help=f"of {', '.join(environments)}")
    parser.add_argument("--folder", type=Path, default=ROOT / ".venv-compat")
    parser.add_argument("--check", action="store_true", help="write no results and no page")
    parser.add_argument("--page", type=Path, help="run nothing: write the last results here")
    arguments = parser.parse_args()
    if arguments.page:
        write_page(arguments.page, read_results(environments))
        return 0
    unknown = set(arguments.names) - environments.keys()
    if unknown:
        parser.error(f"no such environment: {', '.join(sorted(unknown))}")
    folder, names = arguments.folder.resolve(), arguments.names or list(environments)
    for version in sorted({environments[name]["python"] for name in names}):
        try:
            find_python(version)
        except subprocess.CalledProcessError as failure:
            parser.error(f"{failure.stderr}; nothing was run and no result changed")
    has_passed = True
    for name in names:
        result = try_environment(environments[name], folder / name)
        if not arguments.check:
            target = COMPAT / "results" / f"{name}.json"
            target.parent.mkdir(exist_ok=True)
            target.write_text(json.dumps(result, indent=1) + "\n")
        print(f"{name}: {result['error'] or 'passed'} ({result['seconds']} s)", flush=True)
        has_passed &= result["error"] is None
    if not arguments.check:
        write_page(ROOT / "docs" / "compatibility.md", read_results(environments))
    return 0 if has_passed else 1


def read_results(environments: dict) -> dict[str, dict]:
    """The last results of each environment that has some, with its notes."""
    files = {name: COMPAT / "results" / f"{name}.json" for name in environments}
    return {
        name: json.loads(file.read_text()) | {"notes": environments[name].get("notes", [])}
        for name, file in files.items()
        if file.exists()
    }


def try_environment(settings: dict, folder: Path) -> dict:
    """Makes the environment, runs its tests, and returns what was seen."""
    start, error, seen = None, None, []
    python = folder / "bin" / "python"
    try:
        install(settings, folder)
        start = get_processor_seconds()
        seen = run_tests(settings, python)
    except subprocess.CalledProcessError as failure:
        error = explain(failure)
    versions = {}
    if python.exists():
        names = ["jax", "flax", "optax", "orbax-checkpoint", *settings["packages"]]
        versions = json.loads(call([python, "-c", VERSIONS, *names]))
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "versions": versions,
        "packages": settings["packages"],
        "error": error,
        "seen": seen,
        "seconds": 0 if start is None else round(get_processor_seconds() - start),
    }


def get_processor_seconds() -> float:
    """What the commands so far took of a processor: a busy machine does not change it much."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def install(settings: dict, folder: Path) -> None:
    """Makes the environment in `folder`, unless it is there for these requirements."""
    lists = [COMPAT / "requirements" / settings["requirements"]]
    bare = COMPAT / "requirements" / settings["bare"] if "bare" in settings else None
    wanted = "\n".join(file.read_text() for file in [*lists, *([bare] if bare else [])])
    stamp = folder / "installed.txt"
    if stamp.exists() and stamp.read_text() == wanted:
        return
    shutil.rmtree(folder, ignore_errors=True)
    python = folder / "bin" / "python"
    uv, interpreter = shutil.which("uv"), find_python(settings["python"])
    if uv:
        call([uv, "venv", "--quiet", "--python", interpreter, folder])
        pip = [uv, "pip", "install", "--quiet", "--python", python]
    else:
        call([interpreter, "-m", "venv", folder])
        pip = [python, "-m", "pip", "install", "--quiet"]
    call([*pip, "--requirement", lists[0]])
    if bare:
        call([*pip, "--no-deps", "--requirement", bare])
    call([*pip, "--no-deps", "--editable", ROOT])
    stamp.write_text(wanted)


def find_python(version: str) -> str:
    """A Python of this version: on the path, or pyenv's."""
    name, prefix = f"python{version}", ""
    if shutil.which("pyenv"):
        found = subprocess.run(["pyenv", "prefix", version], capture_output=True, text=True)
        prefix = found.stdout.strip()
    for candidate in filter(None, (shutil.which(name), f"{prefix}/bin/{name}")):
        done = (
            subprocess.run([candidate, "--version"], capture_output=True)
            if (Path(candidate).exists())
            else None
        )
        if done is not None and done.returncode == 0:
            return candidate
    raise subprocess.CalledProcessError(1, name, stderr=f"{name} is not installed")


def run_tests(settings: dict, python: Path) -> list[dict]:
    """Runs the tests and the doctests; returns the lines that the tests left."""
    record = python.parent.parent / "record.jsonl"
    record.unlink(missing_ok=True)
    variables = os.environ | QUIET | settings.get("variables", {})
    variables |= {"LNTUNE_COMPAT_RECORD": str(record)}
    pytest = [
        python,
        "-m",
        "pytest",
        "-q",
        "-o",
        "filterwarnings=default",
        "-p",
        "no:cacheprovider",
        "--import-mode=prepend",  # They import one another's modules of this folder.
    ]
    if settings.get("doctests"):
        call([*pytest, "--doctest-modules", *settings["doctests"]], variables)
    call([*pytest, *(COMPAT / file for file in settings["tests"])], variables)
    return [json.loads(line) for line in record.read_text().splitlines()] if record.exists() else []


def call(command: list, variables: dict | None = None) -> str:
    """Runs a command in the checkout; raises with its output where it fails."""
    command = [str(part) for part in command]
    done = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True)
    if done.returncode:
        print(done.stdout[-6000:], done.stderr[-3000:], sep="\n", file=sys.stderr)
        raise subprocess.CalledProcessError(done.returncode, command, done.stdout, done.stderr)
    return done.stdout


def explain(failure: subprocess.CalledProcessError) -> str:
    """One line of what went wrong: a failed test's, or the last one that was printed."""
    lines = [
        line for text in (failure.stderr, failure.stdout) for line in (text or "").splitlines()
    ]
    failed = [line for line in lines if line.startswith(("FAILED", "ERROR", "error:"))]
    last = next((line for line in reversed(lines) if line.strip()), str(failure))
    return (failed[0] if failed else last).strip()[:300]


if __name__ == "__main__":
    sys.exit(main())

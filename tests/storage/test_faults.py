"""Kills, full disks and races, for every directory the library writes: the old or the new one."""

import itertools
import os
import random
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import lntune_jax as lnt
from lntune_jax.storage import directories as _files
from tests.support.directories import KINDS
from tests.support.paths import ROOT


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A directory of its own for what is written; what is merged lies beside it."""
    made = tmp_path / "place"
    made.mkdir()
    return made


class Killed(BaseException):
    """What stands for SIGKILL: after it no more call reaches the disk."""


def die_at(step: int, patch: pytest.MonkeyPatch) -> None:
    """From the given call on, nothing that `_files` does happens any more."""
    calls = itertools.count(1)

    def wrap(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            if next(calls) >= step:
                raise Killed
            return function(*args, **options)

        return call

    for owner, name in (
        (_files, "sync"),
        (_files, "_exchange"),
        (_files.shutil, "rmtree"),
        (Path, "mkdir"),
        (Path, "rename"),
        (Path, "rmdir"),
        (Path, "unlink"),
        (Path, "write_text"),
    ):
        patch.setattr(owner, name, wrap(getattr(owner, name)))


@pytest.mark.parametrize("exchanges", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_dead_at_any_step_of_an_overwrite(
    place: Path, monkeypatch: pytest.MonkeyPatch, kind: str, exchanges: bool
) -> None:
    if not exchanges:  # as on a file system without such a call
        monkeypatch.setattr(_files, "_exchange", lambda new, target: False)
    write, read = KINDS[kind]
    write(place / "a", 1)
    write(place / "b", 2)  # makes what merging needs
    seen = set()
    for step in itertools.count(1):
        with monkeypatch.context() as patch:
            die_at(step, patch)
            try:
                write(place / "a", 2, overwrite=True)
            except Killed:
                done = False
            else:
                done = True
        seen.add(number := find_number(place / "a", read))
        write(place / "a", 1, overwrite=(place / "a").exists())
        assert sorted(path.name for path in place.iterdir() if ".new-" not in path.name) == [
            "a",
            "b",
        ]
        if done:
            assert number == 2
            break
    assert seen == {1, 2}
    assert step > 6


def find_number(path: Path, read: Callable[[Path], float]) -> float:
    """The number in the directory, or in the older version beside it that a crash has left."""
    asides = _files.list_asides(path)
    if path.exists() or not asides:
        return read(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return read(asides[0])


@pytest.mark.parametrize("kind", KINDS)
def test_dead_at_any_step_of_a_first_save(
    place: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    write, read = KINDS[kind]
    write(place / "b", 2)
    for step in itertools.count(1):
        target = place / f"a-{step}"
        with monkeypatch.context() as patch:
            die_at(step, patch)
            try:
                write(target, 2)
            except Killed:
                done = False
            else:
                done = True
        if target.exists():
            assert read(target) == 2
        else:
            with pytest.raises((lnt.LNTuningError, FileNotFoundError)):
                read(target)
        if done:
            break
    assert target.exists()
    assert step > 6


@pytest.mark.parametrize("kind", ["bank", "PEFT", "merged"])
def test_saves_racing_in_threads(place: Path, kind: str) -> None:
    write, read = KINDS[kind]
    for number in (1, 2, 3):
        write(place / f"{number}", number)
    errors: list[str] = []

    def run(number: int) -> None:
        try:
            write(place / "a", number, True)
        except lnt.LNTuningError as error:
            errors.append(str(error))

    threads = [threading.Thread(target=run, args=(number,)) for number in (1, 2, 3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert read(place / "a") in (1, 2, 3)
    assert sorted(path.name for path in place.iterdir()) == ["1", "2", "3", "a"]


_WRITER = """
import sys
from pathlib import Path
from tests.support.directories import KINDS
write, place = KINDS[sys.argv[3]].write, Path(sys.argv[1])
for number in range(1, 10000):
    write(place / "same", number % 2 + 1, overwrite=number > 1)
    write(place / f"new-{number}", number % 2 + 1)
    print(number, flush=True)
"""


def test_processes_killed_at_a_random_moment(tmp_path: Path) -> None:
    """Real processes and SIGKILL; adapters have a test of their own, with three writers."""
    kinds = ["bank", "PEFT", "merged"]
    environment = {**os.environ, "PYTHONPATH": str(Path(lnt.__file__).parents[1])}
    writers = {}
    for kind in kinds:
        place = tmp_path / kind / "place"
        place.mkdir(parents=True)
        writers[kind] = subprocess.Popen(
            [sys.executable, "-c", _WRITER, str(place), str(ROOT), kind],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
    draw = random.Random()
    for kind, writer in writers.items():
        assert writer.stdout is not None
        assert writer.stderr is not None
        assert writer.stdout.readline() == "1\n", writer.stderr.read()
        time.sleep(draw.uniform(0, 0.3))
        writer.send_signal(signal.SIGKILL)
        writer.communicate()
        place, (write, read) = tmp_path / kind / "place", KINDS[kind]
        assert read(place / "same") in (1, 2)
        for path in place.glob("new-*"):
            assert read(path) == int(path.name.split("-")[1]) % 2 + 1
        write(place / "same", 2, overwrite=True)
        assert read(place / "same") == 2


_RIVAL = """
import sys
from pathlib import Path
from lntune_jax.storage import directories
from tests.support.directories import KINDS
directories._exchange = lambda new, target: False
write, place = KINDS["PEFT"].write, Path(sys.argv[1])
for number in range(1, 100000):
    write(place / "same", number % 2 + 1, overwrite=True)
    print(number, flush=True)
"""


def test_writers_without_an_exchange_killed_while_they_race(place: Path) -> None:
    """As on a file system that cannot swap two directories: a whole version is there always."""
    write, read = KINDS["PEFT"]
    write(place / "same", 1)
    rivals = [
        subprocess.Popen(
            [sys.executable, "-c", _RIVAL, str(place)],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    draw = random.Random()
    try:
        for rival in rivals:
            assert rival.stdout is not None
            assert rival.stderr is not None
            assert rival.stdout.readline() == "1\n", rival.stderr.read()
        for rival in rivals:
            time.sleep(draw.uniform(0, 0.5))
            assert rival.poll() is None, rival.communicate()
            rival.send_signal(signal.SIGKILL)
    finally:
        for rival in rivals:
            rival.kill()
            rival.communicate()
    assert find_number(place / "same", read) in (1, 2)
    write(place / "same", 2, overwrite=True)
    assert read(place / "same") == 2
    assert [path.name for path in place.iterdir() if ".new-" not in path.name] == ["same"]

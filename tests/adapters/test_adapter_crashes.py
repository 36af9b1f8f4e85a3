"""Nothing is lost or half written: kills, races, full disks, interruptions, flipped bits."""

import itertools
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lntune_jax as lnt
from lntune_jax.adapters import format as _format
from lntune_jax.adapters.format import read_metadata
from lntune_jax.adapters.store import load_adapter, save_adapter
from lntune_jax.errors import AdapterError
from lntune_jax.storage import directories as _files
from tests.support.adapters import (
    CONFIG,
    PARAMS,
    TRAINABLE,
    assert_same_bits,
    save,
)
from tests.support.paths import ROOT


def load_number(path: Path) -> float:
    """The one number in all leaves: two would be a mixture of two saves."""
    values = np.concatenate(list(load_adapter(path).trainable.values()))
    assert (values == values[0]).all()
    return float(values[0])


def _damage(path: Path, file: Path, content: bytes) -> None:
    """A damaged file is an error, or one of Orbax's that says nothing about the values."""
    file.write_bytes(content)
    try:
        found = load_adapter(path).trainable
    except AdapterError:
        return
    assert file.relative_to(path).parts[0] == "arrays"
    for name, value in found.items():
        assert_same_bits(value, TRAINABLE[name])


def test_400_flipped_bits_never_give_another_value(tmp_path: Path) -> None:
    """There are no checksums of Orbax's own files: those of the leaves catch what matters."""
    path = save_adapter(tmp_path / "a", TRAINABLE, CONFIG, base=PARAMS)
    files = [file for file in sorted(path.rglob("*")) if file.is_file()]
    rng = random.Random(0)
    for trial in range(400):
        file = files[trial % len(files)]
        good = file.read_bytes()
        damaged = bytearray(good)
        damaged[rng.randrange(len(good))] ^= 1 << rng.randrange(8)
        _damage(path, file, damaged)
        file.write_bytes(good)
    for name, value in load_adapter(path).trainable.items():
        assert_same_bits(value, TRAINABLE[name])


def test_every_file_truncated_or_missing_is_seen_or_holds_no_value(tmp_path: Path) -> None:
    path = save_adapter(tmp_path / "a", TRAINABLE, CONFIG, base=PARAMS)
    for file in [file for file in sorted(path.rglob("*")) if file.is_file()]:
        good = file.read_bytes()
        for content in (good[: len(good) // 2], b"", good + b"\0", b"\xff" * len(good)):
            _damage(path, file, content)
        file.unlink()
        if file.parent == path:
            with pytest.raises(AdapterError, match=file.name):
                load_adapter(path)
        file.write_bytes(good)
    load_adapter(path)


@pytest.mark.parametrize(
    ("exchange", "error"),
    [(True, KeyboardInterrupt()), (False, OSError(28, "No space left on device"))],
)
def test_an_interruption_at_any_step_leaves_the_old_one_or_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchange: bool, error: BaseException
) -> None:
    if not exchange:
        monkeypatch.setattr(_files, "_exchange", lambda new, target: False)
    save(tmp_path / "a", 1)
    for step in itertools.count(1):
        calls = itertools.count(1)

        def fail(function: Callable[..., Any], calls: Any = calls, step: int = step) -> Any:
            def call(*args: Any) -> Any:
                if next(calls) == step:
                    raise error
                return function(*args)

            return call

        with monkeypatch.context() as patch:
            patch.setattr(_files, "sync", fail(_files.sync))
            patch.setattr(_files, "_exchange", fail(_files._exchange))
            patch.setattr(_files, "_move_in_two_steps", fail(_files._move_in_two_steps))
            patch.setattr(Path, "rename", fail(Path.rename))
            try:
                save(tmp_path / "a", 2, overwrite=True)
            except (AdapterError, KeyboardInterrupt):
                done = False
            else:
                done = True
        number = load_number(tmp_path / "a")
        assert number in (1, 2)
        # An older version stays until the new one is known to be on the disk.
        names = [path.name for path in tmp_path.iterdir() if ".a.old-" not in path.name]
        assert names == ["a"]
        if done:
            assert number == 2
            break
        if number == 2:
            save(tmp_path / "a", 1, overwrite=True)
    assert step > 10
    save(tmp_path / "a", 3, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_the_version_before_is_found_after_a_crash_between_two_moves(tmp_path: Path) -> None:
    save(tmp_path / "a", 1)
    (tmp_path / "a").rename(tmp_path / ".a.old-123456789abc")
    with pytest.warns(UserWarning, match=r"replacing it was interrupted.*\.a\.old-123456789abc"):
        assert load_number(tmp_path / "a") == 1
    save(tmp_path / "a", 2)
    assert load_number(tmp_path / "a") == 2
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_reading_while_another_thread_replaces(tmp_path: Path) -> None:
    save(tmp_path / "a", 1)
    ended = threading.Event()

    def replace() -> None:
        for number in range(2, 12):
            save(tmp_path / "a", number, overwrite=True)
        ended.set()

    thread = threading.Thread(target=replace)
    thread.start()
    numbers = [load_number(tmp_path / "a")]
    while not ended.is_set():
        numbers.append(load_number(tmp_path / "a"))
    thread.join()
    assert numbers == sorted(numbers)


def test_a_link_is_followed_and_stays(tmp_path: Path) -> None:
    save(tmp_path / "real", 1)
    (tmp_path / "latest").symlink_to("real")
    save(tmp_path / "latest", 2, overwrite=True)
    assert (tmp_path / "latest").is_symlink()
    assert load_number(tmp_path / "real") == 2


def test_an_error_in_orbax_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import orbax.checkpoint as ocp

    def fail(*args: Any, **options: Any) -> None:
        raise ValueError("no such thing\nsecond line")

    monkeypatch.setattr(ocp.PyTreeCheckpointHandler, "save", fail)
    with pytest.raises(AdapterError, match=r"Orbax could not write .*: no such thing"):
        save(tmp_path / "a", 1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("overwrite", [False, True])
def test_saves_racing_in_threads(tmp_path: Path, overwrite: bool) -> None:
    errors: list[str] = []

    def run(number: int) -> None:
        try:
            save(tmp_path / "a", number, overwrite)
        except AdapterError as error:
            errors.append(str(error))

    threads = [threading.Thread(target=run, args=(number,)) for number in range(1, 7)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert load_number(tmp_path / "a") in range(1, 7)
    assert len(errors) == (0 if overwrite else 5), errors
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_target_replaced_while_it_is_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The record of one adapter is not held against the files of the one that replaced it."""
    save(tmp_path / "a", 1)
    replaced: list[Path] = []

    def read_then_replace(directory: Path, kind: Any) -> Any:
        metadata = read_metadata(directory, kind)
        if not replaced:
            replaced.append(directory.rename(tmp_path / "before"))
            save(directory, 2)
        return metadata

    monkeypatch.setattr(_format, "read_metadata", read_then_replace)
    save(tmp_path / "a", 3, overwrite=True)
    assert replaced
    assert load_number(tmp_path / "a") == 3


_WRITER = """
import sys
from pathlib import Path
from tests.support.adapters import save
where, writer = Path(sys.argv[1]), int(sys.argv[3])
for number in range(1, 10000):
    save(where / f"new-{writer}-{number}", number)
    save(where / "same", number, overwrite=True)
    print(number, flush=True)
"""


def test_processes_killed_while_they_race_on_one_path(tmp_path: Path) -> None:
    """Writers replace one adapter and make new ones; each dies at a random moment."""
    command = [sys.executable, "-c", _WRITER, str(tmp_path), str(ROOT)]
    environment = {**os.environ, "PYTHONPATH": str(Path(lnt.__file__).parents[1])}
    writers = [
        subprocess.Popen(
            [*command, str(index)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(3)
    ]
    rng = random.Random()
    try:
        for writer in writers:
            assert writer.stdout is not None
            assert writer.stderr is not None
            assert writer.stdout.readline() == "1\n", writer.stderr.read()
            time.sleep(rng.uniform(0, 0.5))
            writer.send_signal(signal.SIGKILL)
            writer.communicate()
            assert load_number(tmp_path / "same") >= 1
    finally:
        for writer in writers:
            writer.kill()
            writer.communicate()
    new = list(tmp_path.glob("new-*"))
    assert len(new) >= 3
    for path in new:
        assert load_number(path) == int(path.name.split("-")[2])
    save(tmp_path / "same", 7, overwrite=True)
    assert load_number(tmp_path / "same") == 7

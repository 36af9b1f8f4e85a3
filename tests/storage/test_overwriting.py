"""What overwriting may delete: what the library wrote, and never a person's files."""

import errno
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lntune_jax as lnt
from lntune_jax.errors import AdapterError
from lntune_jax.storage import directories
from tests.support.directories import KINDS


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A directory of its own for what is written; what is merged lies beside it."""
    made = tmp_path / "place"
    made.mkdir()
    return made


def list_names(place: Path) -> list[str]:
    return sorted(path.name for path in place.iterdir())


def when_synced(patch: pytest.MonkeyPatch, act: Callable[[], Any]) -> None:
    """Acts once, when the new directory is whole and about to take its place."""
    sync_tree = directories.sync_tree

    def sync(directory: Path) -> None:
        sync_tree(directory)
        patch.setattr(directories, "sync_tree", sync_tree)
        act()

    patch.setattr(directories, "sync_tree", sync)


def when_published(patch: pytest.MonkeyPatch, act: Callable[[], Any]) -> None:
    """Acts once, after the last look at the target and before it is replaced."""
    publish = directories._publish

    def act_first(new: Path, target: Path, overwrite: bool) -> None:
        act()
        publish(new, target, overwrite)

    patch.setattr(directories, "_publish", act_first)


@pytest.mark.parametrize("name", ["README.md", "results.csv", "notes/a.txt", "empty/"])
@pytest.mark.parametrize("kind", KINDS)
def test_one_rule_for_a_person_s_files(place: Path, kind: str, name: str) -> None:
    write, read = KINDS[kind]
    write(place / "a", 1)
    mine = place / "a" / name
    mine.parent.mkdir(exist_ok=True)
    mine.mkdir() if name == "empty/" else mine.write_text("mine")
    with pytest.raises(
        AdapterError, match=rf"did not write \('{name.split('/')[0]}'\).*Pass another"
    ):
        write(place / "a", 2, overwrite=True)
    assert mine.is_dir() if name == "empty/" else mine.read_text() == "mine"
    shutil.rmtree(mine.parent) if name.startswith("notes") else None
    mine.rmdir() if name == "empty/" else mine.unlink(missing_ok=True)
    assert read(place / "a") == 1
    write(place / "a", 2, overwrite=True)
    assert read(place / "a") == 2


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_that_comes_while_the_new_one_is_written(
    place: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    write, _ = KINDS[kind]
    write(place / "a", 1)
    write(place / "b", 2)
    file = place / "a" / "results.csv"
    with monkeypatch.context() as patch:
        when_synced(patch, lambda: file.write_text("mine"))
        with pytest.raises(AdapterError, match=r"did not write \('results.csv'\)"):
            write(place / "a", 2, overwrite=True)
    assert file.read_text() == "mine"
    assert list_names(place) == ["a", "b"]
    file.unlink()
    assert KINDS[kind].read(place / "a") == 1


@pytest.mark.parametrize("exchanges", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_a_file_that_comes_at_the_last_moment_is_kept(
    place: Path, monkeypatch: pytest.MonkeyPatch, kind: str, exchanges: bool
) -> None:
    if not exchanges:  # as on a file system without such a call
        monkeypatch.setattr(directories, "_exchange", lambda new, target: False)
    write, read = KINDS[kind]
    write(place / "a", 1)
    write(place / "b", 2)
    with monkeypatch.context() as patch:
        when_published(patch, lambda: (place / "a" / "results.csv").write_text("mine"))
        with pytest.warns(UserWarning, match=r"'results.csv' appeared in .*kept in .*a\.kept-"):
            write(place / "a", 2, overwrite=True)
    assert read(place / "a") == 2
    (kept,) = place.glob("a.kept-*")
    assert list_names(kept) == ["results.csv"]
    assert (kept / "results.csv").read_text() == "mine"
    assert list_names(place) == ["a", kept.name, "b"]


@pytest.mark.parametrize("made", ["file", "link"])
@pytest.mark.parametrize("exchanges", [True, False])
def test_what_takes_the_target_s_name_at_the_last_moment_is_kept(
    place: Path, monkeypatch: pytest.MonkeyPatch, made: str, exchanges: bool
) -> None:
    if not exchanges:
        monkeypatch.setattr(directories, "_exchange", lambda new, target: False)
    write, read = KINDS["PEFT"]
    write(place / "a", 1)
    write(place / "other", 3)

    def take() -> None:
        shutil.rmtree(place / "a")
        if made == "file":
            (place / "a").write_text("mine")
        else:
            (place / "a").symlink_to("other")

    when_published(monkeypatch, take)
    with pytest.warns(UserWarning, match="kept in"):
        write(place / "a", 2, overwrite=True)
    (kept,) = place.glob("a.kept-*")
    assert kept.is_symlink() if made == "link" else kept.read_text() == "mine"
    assert read(place / "a") == 2
    assert read(place / "other") == 3


def test_a_record_of_a_stranger_deletes_nothing_outside(tmp_path: Path) -> None:
    """The files that a record names are deleted only where they are in the directory."""
    (tmp_path / "secret").write_text("mine")

    def write(number: int, overwrite: bool) -> None:
        directories.write_directory(
            tmp_path / "a",
            lambda new: (new / "file").write_text(str(number)) and None,
            noun="letter",
            list_own=lambda _: ["../secret", str(tmp_path / "secret"), "file"],
            overwrite=overwrite,
        )

    write(1, False)
    write(2, True)
    assert (tmp_path / "a" / "file").read_text() == "2"
    assert list_names(tmp_path) == ["a", "secret"]


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EIO])
@pytest.mark.parametrize("kind", KINDS)
def test_a_file_system_that_flushes_no_directories(
    place: Path, monkeypatch: pytest.MonkeyPatch, kind: str, number: int
) -> None:
    """Some network file systems; an error of the disk is an error all the same."""
    fsync = os.fsync

    def refuse(descriptor: int) -> None:
        if os.path.isdir(descriptor):  # noqa: PTH112 - a descriptor
            raise OSError(number, os.strerror(number))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", refuse)
    write, read = KINDS[kind]
    if number == errno.EIO:
        with pytest.raises(AdapterError, match="Input/output error"):
            write(place / "a", 1)
        return
    write(place / "a", 1)
    write(place / "a", 2, overwrite=True)
    assert read(place / "a") == 2
    assert "a" in list_names(place)


def test_a_file_that_cannot_be_flushed_is_an_error(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(descriptor: int) -> None:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(AdapterError, match="Invalid argument"):
        KINDS["PEFT"].write(place / "a", 1)
    assert list_names(place) == []


def test_a_file_system_that_flushes_no_directories_for_checkpoints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lntune_jax.training import open_checkpoints, restore_state, save_state
    from tests.support.states import make_state

    fsync = os.fsync

    def refuse(descriptor: int) -> None:
        if os.path.isdir(descriptor):  # noqa: PTH112 - a descriptor
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", refuse)
    with open_checkpoints(tmp_path) as manager:
        save_state(manager, make_state())
        assert restore_state(manager, make_state()) is not None


def test_two_writers_without_an_exchange_and_one_that_fails(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first takes the second's version aside; the second cleans up; the first then fails."""
    monkeypatch.setattr(directories, "_exchange", lambda new, target: False)
    write, read = KINDS["PEFT"]
    write(place / "a", 1)
    taken, cleaned = threading.Event(), threading.Event()
    rename, list_asides = Path.rename, directories.list_asides
    first = threading.get_ident()

    def move(self: Path, target: Path) -> Path:
        if threading.get_ident() == first and ".new-" in self.name and Path(target).name == "a":
            taken.set()
            assert cleaned.wait(30)
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return rename(self, target)

    def wait_then_list(target: Path) -> list[Path]:
        if threading.get_ident() != first:
            assert taken.wait(30)
        return list_asides(target)

    monkeypatch.setattr(Path, "rename", move)
    monkeypatch.setattr(directories, "list_asides", wait_then_list)

    def second() -> None:
        try:
            write(place / "a", 2, overwrite=True)
        finally:
            cleaned.set()

    thread = threading.Thread(target=second)
    exchange = directories._move_in_two_steps

    def after_the_second(new: Path, target: Path) -> None:
        if threading.get_ident() == first and not thread.ident:
            thread.start()
            while read_number(place) != 2:  # it is in place, and about to clean up
                taken.wait(0.01)
        exchange(new, target)

    def read_number(place: Path) -> float | None:
        try:
            return read(place / "a")
        except lnt.LNTuningError:
            return None

    monkeypatch.setattr(directories, "_move_in_two_steps", after_the_second)
    with pytest.raises(AdapterError, match="Input/output error"):
        write(place / "a", 3, overwrite=True)
    thread.join()
    assert read(place / "a") == 2


@pytest.mark.parametrize("kind", ["adapter", "bank", "PEFT"])
def test_a_save_that_fails_leaves_no_folders_behind(
    place: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    write, _ = KINDS[kind]
    write(place / "a", 1)

    def refuse(directory: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(directories, "sync_tree", refuse)
        with pytest.raises(AdapterError, match="No space left"):
            write(place / "b" / "c" / "d", 1)
    assert list_names(place) == ["a"]


@pytest.mark.parametrize("kind", ["adapter", "bank", "PEFT"])
def test_a_large_directory_of_a_person_is_not_gone_through(
    place: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Overwriting a home directory by mistake is refused at once."""
    (place / "home" / "photos").mkdir(parents=True)

    def refuse(*args: Any, **options: Any) -> None:
        raise AssertionError("it is gone through")

    monkeypatch.setattr(os, "walk", refuse)
    with pytest.raises(AdapterError, match="'photos'"):
        KINDS[kind].write(place / "home", 1, overwrite=True)


def test_what_is_neither_true_nor_false_replaces_nothing(tmp_path):
    params = {"ln": {"scale": np.ones(4, "f4")}}
    leaves, config = {"ln.scale": np.ones(4, "f4")}, lnt.LNTuningConfig()
    bank = lnt.bank.make_bank(params, {"a": leaves})
    writers = {
        "adapter": lambda path, **flag: lnt.save_adapter(path, leaves, config, base=params, **flag),
        "peft": lambda path, **flag: lnt.export_peft(path, leaves, config, **flag),
        "bank": lambda path, **flag: lnt.bank.save_bank(path, bank, base=params, **flag),
    }
    for name, write in writers.items():
        path = write(tmp_path / name)
        with pytest.raises(lnt.errors.ArgumentError, match="overwrite must be True or False"):
            write(path, overwrite="no")
    with pytest.raises(lnt.errors.ArgumentError, match="donate must be True or False"):
        lnt.bank.remove_adapter(bank, "a", donate="no")
    assert bank.names == ("base", "a")


def test_a_target_that_comes_and_goes_is_never_called_a_file(tmp_path):
    """As where another process replaces it in two steps, on a system that cannot exchange two."""
    target, away, ended = tmp_path / "target", tmp_path / "away", threading.Event()
    target.mkdir()
    (target / "own").touch()

    def move():
        while not ended.is_set():
            target.rename(away)
            away.rename(target)

    mover = threading.Thread(target=move)
    mover.start()
    try:
        for _ in range(5000):
            directories.check_target(
                target, noun="letter", list_own=lambda _: ["own"], overwrite=True
            )
    finally:
        ended.set()
        mover.join()

"""A disk that is full or may not be written, and files that are not what was written."""

import errno
import itertools
import json
import os
import random
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lntune_jax as lnt
from lntune_jax.errors import AdapterError
from lntune_jax.storage.sealed import seal_json
from tests.support.directories import CONFIG, KINDS, PARAMS, SIZE, leaves


@pytest.mark.parametrize("kind", KINDS)
def test_a_full_disk_leaves_the_old_one(small_disk: Path, kind: str) -> None:
    """A real disk with more and more room, until one save fits."""
    write, read = KINDS[kind]
    target, filler = small_disk / "place" / "a", small_disk / "filler"
    target.parent.mkdir()
    write(target, 1)
    write(target, 2, overwrite=True)  # what merging needs is there now
    write(target, 1, overwrite=True)
    free = shutil.disk_usage(small_disk).free
    failures = 0
    for room in range(0, free + 1, 4096):
        filler.write_bytes(bytes(free - room))
        message = None
        try:
            write(target, 2, overwrite=True)
        except lnt.LNTuningError as error:
            message = str(error)
        if message is None:
            break
        failures += 1
        assert "No space left" in message
        assert str(target.parent) in message
        assert "pass another path or make this one writable" in message
        assert read(target) == 1
        assert [path.name for path in target.parent.iterdir()] == ["a"]
    assert failures > 2
    assert read(target) == 2


@pytest.mark.parametrize("kind", ["bank", "PEFT", "merged"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_any_call_that_fails_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, number: int
) -> None:
    """What Python writes, without a disk of its own: `write` and `fsync` fail one after another."""
    write, read = KINDS[kind]
    target = tmp_path / "place" / "a"
    target.parent.mkdir()
    write(target, 1)
    write(tmp_path / "place" / "b", 2)
    counted = itertools.count()
    flush = os.fsync
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: (next(counted), flush(descriptor)))
        write(target, 2, overwrite=True)
    last = next(counted)
    write(target, 1, overwrite=True)
    for step in itertools.count(1):
        calls = itertools.count(1)

        def fsync(descriptor: int, calls: Any = calls, step: int = step) -> None:
            if next(calls) == step:
                raise OSError(number, os.strerror(number))

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", fsync)
            message = None
            try:
                write(target, 2, overwrite=True)
            except lnt.LNTuningError as error:
                message = str(error)
        if message is None:
            break
        assert os.strerror(number) in message
        assert "pass another path or make this one writable" in message
        # Only the last call is after the exchange: then the new one is there.
        assert read(target) == (2 if step == last else 1)
        assert sorted(path.name for path in target.parent.iterdir()) == ["a", "b"]
        write(target, 1, overwrite=True)
    assert step == last + 1 > 3
    assert read(target) == 2


@pytest.mark.parametrize("kind", KINDS)
def test_a_read_only_disk_is_read_and_says_so_when_written(small_disk: Path, kind: str) -> None:
    write, read = KINDS[kind]
    target = small_disk / "place" / "a"
    target.parent.mkdir()
    write(target, 1)
    write(target, 2, overwrite=True)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    assert read(target) == 2
    for path in (target, target.parent / "new"):
        with pytest.raises(AdapterError, match=r"Read-only file system .*make this one writ"):
            write(path, 1, overwrite=True)
    assert read(target) == 2
    assert [path.name for path in target.parent.iterdir()] == ["a"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_directory_that_may_not_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Root may write anywhere, so the call that makes a directory is refused here."""
    write, read = KINDS[kind]
    target = tmp_path / "place" / "a"
    target.parent.mkdir()
    write(target, 1)
    write(tmp_path / "place" / "b", 2)
    mkdir = os.mkdir

    def refuse(path: Any, *args: Any, **options: Any) -> None:
        if Path(path).parent == target.parent:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        mkdir(path, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(os, "mkdir", refuse)
        with pytest.raises(AdapterError, match=r"Permission denied .*make this one writable"):
            write(target, 2, overwrite=True)
    assert read(target) == 1


def list_files(path: Path) -> list[Path]:
    return [file for file in sorted(path.rglob("*")) if file.is_file()]


@pytest.mark.parametrize("kind", ["bank", "PEFT"])
def test_200_flipped_bits_never_give_another_value(tmp_path: Path, kind: str) -> None:
    """Adapters have this test in `test_adapter_crashes`; a merged checkpoint has no checksum."""
    write, read = KINDS[kind]
    write(tmp_path / "a", 1)
    files, draw, seen = list_files(tmp_path / "a"), random.Random(0), 0
    for trial in range(200):
        file = files[trial % len(files)]
        good = file.read_bytes()
        damaged = bytearray(good)
        damaged[draw.randrange(len(good))] ^= 1 << draw.randrange(8)
        file.write_bytes(damaged)
        try:
            number = read(tmp_path / "a")
        except lnt.LNTuningError:
            seen += 1
        else:
            # PEFT's config may be edited, and its header holds blanks; not every bit of Orbax's own
            # files says something about the values.
            assert kind == "PEFT" or file.relative_to(tmp_path / "a").parts[0] == "arrays"
            assert number == 1
        file.write_bytes(good)
    assert seen >= 50
    assert read(tmp_path / "a") == 1


def _check_damaged(read: Any, path: Path, file: Path) -> None:
    """An error that names the file; or, of one of Orbax's own, one of the arrays or none."""
    if file.parent == path:
        with pytest.raises(AdapterError, match=file.name):
            read(path)
        return
    try:
        assert read(path) == 1
    except AdapterError as error:
        assert "arrays" in str(error)  # noqa: PT017


@pytest.mark.parametrize("kind", ["bank", "PEFT"])
def test_files_cut_short_missing_or_too_many(tmp_path: Path, kind: str) -> None:
    write, read = KINDS[kind]
    write(tmp_path / "a", 1)
    for file in list_files(tmp_path / "a"):
        good = file.read_bytes()
        for content in (good[: len(good) // 2], good[:-1], b""):
            file.write_bytes(content)
            if kind == "PEFT" and file.suffix == ".json" and content == good[:-1]:
                continue  # the newline at the end
            _check_damaged(read, tmp_path / "a", file)
        file.unlink()
        _check_damaged(read, tmp_path / "a", file)
        file.write_bytes(good)
    (tmp_path / "a" / "extra").write_text("mine")
    if kind == "bank":
        with pytest.raises(AdapterError, match="extra is unexpected"):
            read(tmp_path / "a")
    with pytest.raises(AdapterError, match="'extra'"):
        write(tmp_path / "a", 2, overwrite=True)
    (tmp_path / "a" / "extra").unlink()
    assert read(tmp_path / "a") == 1


def test_a_bank_of_a_later_version_says_which(tmp_path: Path) -> None:
    write, read = KINDS["bank"]
    write(tmp_path / "a", 1)
    file = tmp_path / "a" / "lntune.json"
    fields = json.loads(file.read_text())
    del fields["sha256"]
    file.write_text(seal_json({**fields, "format_version": 3, "library_version": "9.9"}))
    with pytest.raises(AdapterError, match=r"version 3, expected 2.*'9\.9'. Install that"):
        read(tmp_path / "a")


def other(change: str) -> dict[str, Any]:
    """Another base than `PARAMS`: its frozen matrix drawn anew, other widths, a layer more."""
    draw = np.random.default_rng(1)
    size = SIZE // 2 if change == "width" else SIZE
    base: dict[str, Any] = {
        "model": {"norm": {"scale": np.ones(size, np.float32)}},
        "lm_head": {"kernel": np.ones((2, 3), np.float32)},
    }
    if change == "seed":
        base["lm_head"]["kernel"] = draw.normal(size=(2, 3)).astype(np.float32)
    if change == "layer":
        base["layer"] = {"up": {"kernel": np.ones((2, 2), np.float32)}}
    if change == "dtype":
        base["lm_head"]["kernel"] = np.ones((2, 3), np.int8)
    return base


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("seed", "values of 'lm_head.kernel' differ"),
        ("width", rf"shape \({SIZE // 2},\)"),
        ("layer", r"found 'layer\.up\.kernel' \[2,2\]"),
        ("dtype", "float32 expected, int8 found"),
    ],
)
def test_another_base_is_refused_by_adapters_and_banks(
    tmp_path: Path, change: str, message: str
) -> None:
    adapter = lnt.save_adapter(tmp_path / "adapter", leaves(1), CONFIG, base=PARAMS)
    with pytest.raises(AdapterError, match=message):
        lnt.restore_adapter(adapter, other(change))
    bank = lnt.bank.make_bank(PARAMS, {"a": leaves(1)}, on_host=True)
    path = lnt.bank.save_bank(tmp_path / "bank", bank, base=PARAMS)
    expected = "shape" if change == "width" else message
    with pytest.raises(AdapterError, match=expected):
        lnt.bank.load_bank(path, other(change))

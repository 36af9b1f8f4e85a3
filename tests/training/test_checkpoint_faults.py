"""Training checkpoints that are not what was saved: an error that names the file, never a value."""

import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lntune_jax as lnt
from lntune_jax.errors import CheckpointError
from lntune_jax.storage.sealed import describe_files, open_sealed, seal_json
from lntune_jax.training.checkpoints import open_checkpoints, restore_state, save_state


def make_state() -> lnt.TrainState:
    state = lnt.TrainState.create({"ln.scale": jnp.arange(64.0)}, optax.sgd(0.1))
    return lnt.TrainState(state.step + 3, state.trainable, state.opt_state)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    with open_checkpoints(tmp_path) as manager:
        save_state(manager, make_state(), {"seen": 1})
    return tmp_path


def read(directory: Path) -> np.ndarray:
    with open_checkpoints(directory) as manager:
        found = restore_state(manager, make_state())
    assert found is not None
    return np.asarray(found[0].trainable["ln.scale"])


def list_files(directory: Path) -> list[Path]:
    return [path for path in sorted((directory / "3").rglob("*")) if path.is_file()]


def test_files_cut_short_or_missing_are_named(saved: Path) -> None:
    for file in list_files(saved):
        good = file.read_bytes()
        for content in (good[: len(good) // 2], good[:-1]):
            file.write_bytes(content)
            with pytest.raises(CheckpointError, match=f"{file.name}.*delete this step's dir"):
                read(saved)
        file.unlink()
        if file.name == "lntune.json":  # written last: the leaves' own checksums remain
            np.testing.assert_array_equal(read(saved), np.arange(64.0))
        else:
            with pytest.raises(CheckpointError, match=file.name):
                read(saved)
        file.write_bytes(good)
    np.testing.assert_array_equal(read(saved), np.arange(64.0))


def test_a_file_too_many_is_named(saved: Path) -> None:
    (saved / "3" / "extra").write_text("mine")
    with pytest.raises(CheckpointError, match="extra is unexpected"):
        read(saved)


def test_a_later_version_is_named(saved: Path) -> None:
    """With all checksums right, as a later version would have them."""
    (file,) = [
        path for path in list_files(saved) if path.parent.name == "about" and path.suffix == ""
    ]
    about = json.loads(file.read_text())
    fields, _ = open_sealed(about["sealed"].encode())
    file.write_text(json.dumps({"sealed": seal_json({**fields, "format_version": 4})}))
    record = saved / "3" / "lntune.json"
    record.unlink()
    record.write_text(seal_json({"format_version": 3, "files": describe_files(saved / "3")}))
    with pytest.raises(CheckpointError, match=r"format version 4, expected 3.*resume with the v"):
        read(saved)


def test_a_record_of_another_version_is_named(saved: Path) -> None:
    record = saved / "3" / "lntune.json"
    record.write_text(seal_json({"format_version": 4, "files": {}}))
    with pytest.raises(CheckpointError, match=r"format version 4, expected 3.*resume with the v"):
        read(saved)


def test_a_changed_record_is_named(saved: Path) -> None:
    record = saved / "3" / "lntune.json"
    text = record.read_text()
    assert text.endswith("\n}\n")  # lines that a person reads
    record.write_text(text.replace("size", "sizes", 1))
    with pytest.raises(
        CheckpointError, match=r"lntune\.json has a wrong checksum.*delete this step"
    ):
        read(saved)

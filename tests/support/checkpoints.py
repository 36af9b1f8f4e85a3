"""The committed reference checkpoints, and copies of them with changed tensors."""

import shutil
from pathlib import Path

import jax
import numpy as np
from safetensors.numpy import load_file, save_file

from tests.support.paths import REFERENCE


def rewritten(directory: Path, name: str, change) -> Path:
    """Copy a checkpoint, with its dict of tensors as `change` gives it back."""
    shutil.copytree(REFERENCE / name, directory)
    tensors = load_file(directory / "model.safetensors")
    save_file(change(tensors), directory / "model.safetensors")
    return directory


def assert_same(found, expected) -> None:
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, found, expected)

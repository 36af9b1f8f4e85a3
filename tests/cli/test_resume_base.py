"""What a run may go on with: the base it began with, and checkpoints of this version."""

import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from lntune_jax.errors import ConfigError
from lntune_jax.trainer.saves import check_extra


def test_another_base_under_the_same_path_is_refused(model_directory, table, run, tmp_path):
    model = tmp_path / "model"
    shutil.copytree(model_directory, model)
    words = ("train", "--model", model, "--data", table, "--batch-size", "8", "--pooling", "mean")
    words += ("--output", tmp_path / "run", "--max-steps", "4", "--buckets", "1")
    for more in ((), ("--seeds", "2")):
        code, _, complaint = run(*words, *more, "--stop-after-steps", "2", "--overwrite")
        assert (code, complaint) == (0, "")
        weights = load_file(model / "model.safetensors")
        changed = {
            name: -1.7 * value if value.ndim > 1 else value for name, value in weights.items()
        }
        save_file(changed, model / "model.safetensors", metadata={"format": "pt"})
        code, _, complaint = run(*words, *more, "--resume")
        assert code == 2
        assert "is not the one that the run was started with" in complaint
        assert "--overwrite to start again" in complaint


@pytest.mark.parametrize("directory", ["model", "moved"])
def test_one_changed_matrix_is_another_base(model_directory, table, run, tmp_path, directory):
    """Also where the changed model lies elsewhere: the flags are compared, and then the values."""
    model = tmp_path / "model"
    shutil.copytree(model_directory, model)
    words = ("train", "--data", table, "--batch-size", "8", "--pooling", "mean", "--max-steps", "4")
    words += ("--output", tmp_path / "run", "--buckets", "1")
    assert run(*words, "--model", model, "--stop-after-steps", "2")[0] == 0
    if directory == "moved":
        model = model.rename(tmp_path / "moved")
    weights = load_file(model / "model.safetensors")
    weights["encoder.layer.1.output.dense.weight"][:] = 0
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    code, _, complaint = run(*words, "--model", model, "--resume")
    assert code == 2
    told = "--model" if directory == "moved" else "encoder.layer.1.output.dense.kernel"
    assert told in complaint


def test_checkpoints_of_another_version_are_refused(tmp_path):
    for extra in (None, {}, {"base": {}, "tasks": []}):
        with pytest.raises(ConfigError, match="another version of lntune-jax"):
            check_extra(extra, {"w": np.ones(2)}, [], tmp_path)

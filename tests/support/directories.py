"""The directories that the library writes, one interface for all: a number in, the number out."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import lntune_jax as lnt

SIZE = 4096
# Whole numbers, so that adding one more loses nothing, and which hardly compress.
NOISE = np.random.default_rng(0).integers(-(2**20), 2**20, SIZE).astype(np.float32)
PARAMS: dict[str, Any] = {
    "model": {"norm": {"scale": np.ones(SIZE, np.float32)}},
    "lm_head": {"kernel": np.ones((2, 3), np.float32)},
}
CONFIG = lnt.LNTuningConfig(target_modules=["norm"])


class Directory(NamedTuple):
    """How one kind is written and read.

    Attributes:
        write: `write(path, number, overwrite)`.
        read: gives the number back, or raises.
        files: what may be damaged: each byte of these files is checked when they are read.
    """

    write: Callable[..., Any]
    read: Callable[[Path], float]


def leaves(number: float) -> dict[str, np.ndarray]:
    return {"model.norm.scale": NOISE + np.float32(number)}


def number_of(values: Any) -> float:
    """The number in an array of `leaves`: two would be a mixture of two saves."""
    numbers = np.asarray(values, np.float32) - NOISE
    assert (numbers == numbers[0]).all()
    return float(numbers[0])


def write_adapter(path: Path, number: float, overwrite: bool = False) -> None:
    lnt.save_adapter(path, leaves(number), CONFIG, base=PARAMS, overwrite=overwrite)


def read_adapter(path: Path) -> float:
    (value,) = lnt.load_adapter(path).trainable.values()
    return number_of(value)


def write_bank(path: Path, number: float, overwrite: bool = False) -> None:
    bank = lnt.bank.make_bank(PARAMS, {"a": leaves(number)}, on_host=True)
    lnt.bank.save_bank(path, bank, base=PARAMS, overwrite=overwrite)


def read_bank(path: Path) -> float:
    bank = lnt.bank.load_bank(path, PARAMS, on_host=True)
    return number_of(lnt.bank.get_adapter(bank, "a").trainable["model.norm.scale"])


def write_peft(path: Path, number: float, overwrite: bool = False) -> None:
    lnt.export_peft(path, leaves(number), CONFIG, base=PARAMS, overwrite=overwrite)


def read_peft(path: Path) -> float:
    return number_of(lnt.load_peft(path, PARAMS).trainable["model.norm.scale"])


def write_merged(path: Path, number: float, overwrite: bool = False) -> None:
    base, adapter = path.parent.parent / "base", path.parent.parent / f"adapter-{number:g}"
    if not base.exists():
        make_base(base)
    if not adapter.exists():
        write_adapter(adapter, number)
    lnt.models.merge_checkpoint(base, adapter, path, overwrite=overwrite)


def make_base(base: Path) -> None:
    from safetensors.numpy import save_file

    base.mkdir()
    (base / "config.json").write_text(json.dumps({"model_type": "llama"}))
    tensors = {"model.norm.weight": np.ones(SIZE, np.float32)}
    tensors["lm_head.weight"] = np.ones((3, 2), np.float32)
    save_file(tensors, base / "model.safetensors")


def read_merged(path: Path) -> float:
    from safetensors.numpy import load_file

    return number_of(load_file(path / "model.safetensors")["model.norm.weight"])


KINDS = {
    "adapter": Directory(write_adapter, read_adapter),
    "bank": Directory(write_bank, read_bank),
    "PEFT": Directory(write_peft, read_peft),
    "merged": Directory(write_merged, read_merged),
}

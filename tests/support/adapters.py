"""Trees and tuned leaves for tests of adapter directories."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import lntune_jax as lnt
from lntune_jax.adapters.store import save_adapter
from lntune_jax.storage.sealed import seal_json

CONFIG = lnt.LNTuningConfig()


def make_params(seed: int = 0, layers: int = 2, width: int = 8, dtype: Any = np.float32) -> Any:
    rng = np.random.default_rng(seed)

    def draw(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(dtype)

    return {
        "layers": [
            {
                "norm": {"scale": draw(width), "bias": draw(width)},
                "mlp": {"kernel": draw(width, 4 * width), "bias": np.zeros(4 * width, dtype)},
            }
            for _ in range(layers)
        ],
        "embed": {"table": draw(32, width)},
    }


def tune(params: Any, config: lnt.LNTuningConfig = CONFIG) -> dict[str, np.ndarray]:
    trainable, _ = lnt.partition_params(params, config)
    return {name: np.asarray(leaf) * 3 + 1 for name, leaf in trainable.items()}


def assert_same_bits(found: Any, expected: Any) -> None:
    assert found.dtype == expected.dtype
    assert found.shape == expected.shape
    assert np.asarray(found).tobytes() == np.asarray(expected).tobytes()


PARAMS = make_params()
TRAINABLE = tune(PARAMS)


def save(path: Path, number: float, overwrite: bool = False) -> None:
    trainable = {name: np.full_like(value, number) for name, value in TRAINABLE.items()}
    save_adapter(path, trainable, CONFIG, base=PARAMS, overwrite=overwrite)


def reseal(directory: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    """Changes the metadata and makes its own checksum right again."""
    fields = json.loads((directory / "lntune.json").read_text())
    fields.pop("sha256")
    edit(fields)
    (directory / "lntune.json").write_text(seal_json(fields))


def make_base(leaves: int, width: int, seed: int = 0, *, is_random: bool = False) -> dict:
    """A tree of `leaves` norms, and one matrix that stays frozen."""
    draw = np.random.default_rng(seed)

    def scale() -> np.ndarray:
        if not is_random:
            return draw.normal(1, 0.02, width).astype(np.float32)
        bits = draw.integers(0, 2**32, width, dtype=np.uint32)
        return (bits & 0xBFFFFFFF).view(np.float32)  # a bit of the exponent unset: finite

    layers = {str(index): {"input_layernorm": {"weight": scale()}} for index in range(leaves)}
    return {"model": {"layers": layers}, "lm_head": {"kernel": np.ones((8, 8), np.float32)}}

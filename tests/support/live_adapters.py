"""A jitted model whose adapter is swapped, in each way that there is."""

import itertools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import lntune_jax as lnt
from lntune_jax import bank as banks

CONFIG = lnt.LNTuningConfig()
LAYERS, WIDTH, HIDDEN, ROWS = 6, 384, 1536, 16


def make_params() -> dict:
    keys = iter(jax.random.split(jax.random.key(0), 2 * LAYERS))

    def layer() -> dict:
        up = jax.random.normal(next(keys), (WIDTH, HIDDEN)) * WIDTH**-0.5
        down = jax.random.normal(next(keys), (HIDDEN, WIDTH)) * HIDDEN**-0.5
        norm = {"scale": jnp.ones(WIDTH), "bias": jnp.zeros(WIDTH)}
        return {"norm": norm, "up": {"kernel": up}, "down": {"kernel": down}}

    return {"layers": {str(index): layer() for index in range(LAYERS)}}


def apply(params: dict, x: jax.Array) -> jax.Array:
    for layer in params["layers"].values():
        h = (x - x.mean(-1, keepdims=True)) * jax.lax.rsqrt(x.var(-1, keepdims=True) + 1e-6)
        h = h * layer["norm"]["scale"] + layer["norm"]["bias"]
        x = x + jax.nn.gelu(h @ layer["up"]["kernel"]) @ layer["down"]["kernel"]
    return x


def make_swaps(folder: Path) -> tuple[dict, dict]:
    """For each way a function that makes what the model takes, and the jitted model."""
    params, draw = make_params(), np.random.default_rng(0)
    trainable, frozen = lnt.partition_params(params, CONFIG)
    paths, adapters = [], []
    for name in ("a", "b"):
        tuned = {path: leaf + draw.normal(0, 0.1, leaf.shape) for path, leaf in trainable.items()}
        paths.append(lnt.save_adapter(folder / name, tuned, CONFIG, base=params))
        adapters.append({path: jnp.asarray(leaf) for path, leaf in tuned.items()})
    bank = banks.make_bank(params, {"a": adapters[0], "b": adapters[1]})
    base = banks.freeze_base(params, bank)
    ids = [bank.get_ids([name] * ROWS) for name in ("a", "b")]
    turns = itertools.cycle((0, 1))

    def load_and_merge() -> tuple:
        return (lnt.merge_params(lnt.load_adapter(paths[next(turns)]).trainable, frozen),)

    swaps = {
        "restore_adapter from disk": lambda: (lnt.restore_adapter(paths[next(turns)], params),),
        "load_adapter, merge_params": load_and_merge,
        "merge_params, already loaded": lambda: (lnt.merge_params(adapters[next(turns)], frozen),),
        "another id of a bank": lambda: (bank, base, ids[next(turns)]),
    }
    forward = jax.jit(apply)
    programs = dict.fromkeys(swaps, forward)
    programs["another id of a bank"] = jax.jit(
        lambda bank, base, ids, x: banks.apply_per_example(apply, bank, ids, base, x)
    )
    return swaps, programs

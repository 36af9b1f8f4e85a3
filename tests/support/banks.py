"""Banks over the small model, and adapters of random values."""

import jax.numpy as jnp
import numpy as np

import lntune_jax as lnt
from tests.support.small import make_params

CONFIG = lnt.LNTuningConfig()


def make_adapter(params, seed, config=CONFIG):
    """An adapter whose values are the base's and noise."""
    draw = np.random.default_rng(seed)
    trainable = {
        path: np.asarray(value) + draw.normal(0, 0.3, value.shape).astype(value.dtype)
        for path, value in lnt.partition_params(params, config).trainable.items()
    }
    return lnt.Adapter(trainable, config)


def make_small_bank(names="abc", **options):
    """The base's tree, its adapters by name, and their bank."""
    params = make_params()
    adapters = {name: make_adapter(params, seed) for seed, name in enumerate(names)}
    return params, adapters, lnt.bank.make_bank(params, adapters, **options)


def same(left, right):
    """Whether two dicts of arrays are the same bit for bit."""
    return left.keys() == right.keys() and all(
        np.asarray(left[path]).dtype == np.asarray(right[path]).dtype
        and np.asarray(left[path]).tobytes() == np.asarray(right[path]).tobytes()
        for path in left
    )


def row_of(bank, name):
    """One row with all its leaves, as numpy."""
    return {p: np.asarray(jnp.asarray(v)) for p, v in lnt.bank.take_rows(bank, name).items()}

"""What an adapter takes on disk, beside its leaves' own bytes; swapping one compiles nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lntune_jax as lnt
from tests.support import live_adapters
from tests.support.adapters import CONFIG, make_base


def save(path, params):
    trainable = lnt.partition_params(params, CONFIG).trainable
    lnt.save_adapter(path, trainable, CONFIG, base=params)
    return trainable


@pytest.mark.parametrize(
    ("leaves", "width", "is_random"),
    [
        (26, 384, False),
        (65, 4096, False),
        (65, 4096, True),
        (10, 26_214, False),
        (10, 26_214, True),
        (100, 2621, False),
        (1000, 1024, False),
    ],
)
def test_at_most_a_twentieth_and_16_kb_above_the_raw_bytes(tmp_path, leaves, width, is_random):
    """Random bits, which nothing compresses, too, where a leaf is of 9 KB or more."""
    trainable = save(tmp_path / "adapter", make_base(leaves, width, is_random=is_random))
    raw = sum(leaf.nbytes for leaf in trainable.values())
    assert raw == 4 * leaves * width
    files = [file for file in (tmp_path / "adapter").rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) <= 1.05 * raw + 16 * 1024
    # Of ours, a leaf's share: its path, shape, dtypes and checksum.
    assert (tmp_path / "adapter" / "lntune.json").stat().st_size <= 230 * leaves + 6 * 1024


def test_swapping_the_adapter_of_a_live_model_compiles_nothing(tmp_path):
    compiled = []

    def listen(event, *_, **__):
        compiled.extend([event] if event.endswith("backend_compile_duration") else [])

    swaps, programs = live_adapters.make_swaps(tmp_path)
    x = jnp.ones((live_adapters.ROWS, 2, live_adapters.WIDTH))
    results = {}
    for name, swap in swaps.items():
        results[name] = [np.asarray(programs[name](*swap(), x)) for _ in range(2)]
    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        for name, swap in swaps.items():
            for first in (*results[name], *results[name]):
                np.testing.assert_array_equal(np.asarray(programs[name](*swap(), x)), first)
            assert not compiled, name
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    one, other = results["restore_adapter from disk"]
    assert not np.allclose(one, other)  # two adapters in turns

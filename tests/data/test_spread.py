"""What each process of a run does for its share, in one process."""

import jax
import numpy as np
import pytest
from jax.experimental import multihost_utils

from lntune_jax.cli.distributed import _make_mesh
from lntune_jax.data.batches import PlannedBatch, Rows
from lntune_jax.data.share import share_rows
from lntune_jax.data.spread import check_batch_sizes, place_batch, row_devices
from lntune_jax.errors import ConfigError


@pytest.mark.parametrize("count", [0, 1, 2, 5, 8])
def test_each_process_makes_a_share_of_the_rows(monkeypatch, count):
    """Three processes, one after the other: what each would send is looked at first."""
    rows = [np.arange(number % 4, dtype=np.int32) + number for number in range(count)]
    made, sent = {}, {}

    def run_as(process, gather):
        made[process] = []

        def make(numbers):
            made[process] += numbers
            return [rows[number] for number in numbers]

        monkeypatch.setattr(jax, "process_index", lambda: process)
        monkeypatch.setattr(multihost_utils, "process_allgather", gather)
        return share_rows(make, count, "a mesh")

    monkeypatch.setattr(jax, "process_count", lambda: 3)
    for stage in range(2):  # The sizes cross first, and then the tokens.
        for process in range(3):
            calls = []

            def gather(array, process=process, stage=stage, calls=calls):
                calls.append(array)
                if len(calls) <= stage:
                    return np.stack([sent[other, len(calls) - 1] for other in range(3)])
                sent[process, stage] = array
                raise StopIteration

            with pytest.raises(StopIteration):
                run_as(process, gather)
    for process in range(3):
        calls = []

        def gather(array, calls=calls):
            calls.append(array)
            return np.stack([sent[other, len(calls) - 1] for other in range(3)])

        found = run_as(process, gather)
        assert [row.tolist() for row in found] == [row.tolist() for row in rows]
        assert made[process] == list(range(process, count, 3))


def test_what_the_devices_cannot_share():
    mesh = jax.sharding.AbstractMesh((2, 3), ("data", "tensor"))
    check_batch_sizes(mesh, batch_size=8)
    with pytest.raises(ConfigError, match="batch_size is 9, which 2 devices cannot share alike"):
        check_batch_sizes(mesh, batch_size=9)
    with pytest.raises(ConfigError, match="--mesh has 999 devices, and JAX finds"):
        _make_mesh({"fsdp": 999})
    with pytest.raises(ConfigError, match="mesh has the axis 'model'; supported: data, fsdp"):
        _make_mesh({"model": 1})


@pytest.mark.parametrize("batch_size", [4, 6])
def test_a_batch_on_a_mesh_is_the_batch_of_one_process(batch_size):
    rows = Rows(tuple(np.arange(1, 1 + size) for size in (3, 5, 2)), np.array([1, 0, 1]))
    planned = PlannedBatch(np.array([2, 0, 1]), 8)
    mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    alone = place_batch(planned, rows, batch_size, 0, None)
    spread = place_batch(planned, rows, batch_size, 0, mesh)
    assert alone.keys() == spread.keys()
    for name, array in alone.items():
        np.testing.assert_array_equal(array, spread[name], err_msg=name)
        assert array.dtype == spread[name].dtype
    assert row_devices(mesh) == 1

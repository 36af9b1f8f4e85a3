"""A bank laid over a mesh: each device holds its share of the rows. Eight simulated devices."""

from tests.support.devices import run_on_devices

PROGRAM = """
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P
import lntune_jax as lnt
from lntune_jax import bank as banks
from tests.support.banks import make_adapter, make_small_bank, row_of, same
from tests.support.small import apply, make_batch, make_params

mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
rows = NamedSharding(mesh, P("data"))
params, adapters, bank = make_small_bank("abc", capacity=16, sharding=rows)
_, _, alone = make_small_bank("abc", capacity=16)
def check(bank):
    for leaf in bank.leaves.values():
        assert leaf.sharding.is_equivalent_to(rows, leaf.ndim), leaf.sharding
        assert leaf.addressable_shards[0].data.shape[0] == bank.capacity // 8
check(bank)
held = sum(leaf.addressable_shards[0].data.nbytes for leaf in bank.leaves.values())
assert held == banks.bank_bytes(params, 15, devices=8) == alone.nbytes // 8
frozen, x = banks.freeze_base(params, bank), make_batch(8)["x"]
run = jax.jit(lambda leaves, ids, frozen, x: banks.apply_per_example(apply, leaves, ids, frozen, x))
mix = ["a", "c", "base", "b", "a", "a", "c", "base"]
expected = run(alone.leaves, alone.get_ids(mix), frozen, x)
np.testing.assert_allclose(run(bank.leaves, bank.get_ids(mix), frozen, x), expected, atol=1e-5)
replicated = jax.device_put(frozen, NamedSharding(mesh, P()))
spread = jax.device_put(x, NamedSharding(mesh, P("data")))
found = run(bank.leaves, bank.get_ids(mix), replicated, spread)
np.testing.assert_allclose(found, expected, atol=1e-5)
bank = banks.add_adapter(bank, "d", adapters["a"])
check(bank)
bank = banks.remove_adapter(bank, "a", donate=True)
check(bank)
assert same(banks.get_adapter(bank, "d").trainable, adapters["a"].trainable)
bank = banks.grow_bank(bank, 32)
check(bank)
path = banks.save_bank(__import__("sys").argv[1], bank, base=params)
check(banks.load_bank(path, params, sharding=rows))
assert same(row_of(banks.load_bank(path, params), "d"), row_of(bank, "d"))
try:
    make_small_bank("abc", capacity=12, sharding=rows)
except lnt.errors.AdapterError as error:
    assert "12 rows cannot be laid out by" in str(error), error
else:
    raise AssertionError("12 rows over 8 devices")
print("done")
"""


def test_rows_lie_over_eight_devices(tmp_path):
    run_on_devices(PROGRAM, 8, tmp_path / "bank")

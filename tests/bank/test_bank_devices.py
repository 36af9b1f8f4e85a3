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


EXPLICIT = """
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from lntune_jax import bank as banks
from tests.support.banks import make_small_bank, same
from tests.support.small import apply, make_batch

for axis_type in (AxisType.Explicit, AxisType.Auto):
    mesh = jax.make_mesh((2,), ("data",), axis_types=(axis_type,))
    rows, whole = NamedSharding(mesh, P("data")), NamedSharding(mesh, P())
    params, adapters, bank = make_small_bank("ab", capacity=4, sharding=rows)
    frozen, x = banks.freeze_base(params, bank), make_batch(4)["x"]
    stale = bank.get_ids(["a", "b", "base", "b"])
    bank = banks.add_adapter(banks.remove_adapter(bank, "a"), "c", adapters["a"], donate=True)
    bank = banks.grow_bank(banks.add_adapter(bank, "d", adapters["a"]), 8)

    @jax.jit
    def run(leaves, ids, frozen, x):
        return banks.apply_per_example(apply, leaves, ids, frozen, x)

    _, _, alone = make_small_bank("ab")
    expected = np.asarray(run(alone.leaves, stale, frozen, x))
    for ids, batch in ((stale, x), (jax.device_put(stale, rows), jax.device_put(x, rows))):
        found = np.asarray(run(bank.leaves, ids, jax.device_put(frozen, whole), batch))
        assert np.isnan(found[0]).all(), found
        np.testing.assert_allclose(found[1:], expected[1:], atol=1e-5)
    head = {"classifier.bias": np.ones(2, "f")}
    bank = banks.add_adapter(bank, "e", head, params=params)
    assert {leaf.sharding.spec[0] for leaf in bank.leaves.values()} == {"data"}
    path = banks.save_bank(f"{__import__('sys').argv[1]}{axis_type}", bank, base=params)
    bank = banks.load_bank(path, params, sharding=rows)
    assert same(banks.get_adapter(bank, "c").trainable, adapters["a"].trainable)
    assert banks.average(bank, ["c", "b"]).trainable.keys() == adapters["a"].trainable.keys()
print("done")
"""


def test_a_mesh_of_explicit_axes(tmp_path):
    run_on_devices(EXPLICIT, 2, tmp_path / "bank")


def test_rows_lie_over_eight_devices(tmp_path):
    run_on_devices(PROGRAM, 8, tmp_path / "bank")


REFUSED = """
import jax
from jax.sharding import NamedSharding, PartitionSpec as P
import lntune_jax as lnt
from lntune_jax import bank as banks
from tests.support.banks import make_small_bank

mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
params, adapters, bank = make_small_bank(sharding=NamedSharding(mesh, P("data")))
def refuse(call, words):
    try:
        call()
    except lnt.LNTuningError as error:
        assert words in str(error), error
    else:
        raise AssertionError("not refused: " + words)
long = NamedSharding(mesh, P("data", None, None))
refuse(lambda: banks.make_bank(params, sharding=long), "has more axes than a leaf of shape")
host = NamedSharding(mesh, P("data"), memory_kind="pinned_host")
refuse(lambda: banks.make_bank(params, sharding=host), "host's memory: pass on_host=True")
refuse(lambda: banks.grow_bank(bank, 9), "9 rows cannot be laid out")
print("done")
"""


def test_shardings_that_cannot_lay_out_rows_are_refused():
    run_on_devices(REFUSED, 8)

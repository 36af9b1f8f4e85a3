"""An id is one adapter's for ever: after it was removed it gives NaN, whoever has its row."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lntune_jax import bank as banks
from lntune_jax.errors import AdapterError
from tests.support.banks import make_adapter, make_small_bank
from tests.support.small import make_params

PARAMS = {"ln": {"scale": jnp.ones(2)}, "fc": {"kernel": jnp.ones((2, 2))}}


def value(number):
    return {"ln.scale": np.full(2, number, np.float32)}


def make(*names, **options):
    """A bank in which adapter i has the values i + 10."""
    adapters = {name: value(place + 10) for place, name in enumerate(names)}
    return banks.make_bank(PARAMS, adapters, **options)


@jax.jit
def run(leaves, ids):
    return banks.take_rows(leaves, ids)["ln.scale"][:, 0]


def take(bank, ids):
    """What a compiled program takes; of a bank on the host, of its copy on the device."""
    found = run(jax.tree.map(jnp.asarray, bank.leaves), jnp.asarray(ids))
    return [None if np.isnan(number) else int(number) for number in found]


@pytest.mark.parametrize("donate", [False, True])
@pytest.mark.parametrize("on_host", [False, True])
def test_the_next_tenant_of_a_row_does_not_answer_to_the_last_one_s_id(donate, on_host):
    bank = make("a", "b", capacity=3, on_host=on_host)
    stale = bank.get_ids(["a", "b", "base"])
    bank = banks.remove_adapter(bank, "a", donate=donate)
    assert take(bank, stale) == [None, 11, 1]
    bank = banks.add_adapter(bank, "c", value(99), donate=donate)
    assert bank.capacity == 3  # there was no other row
    assert take(bank, stale) == [None, 11, 1]
    assert take(bank, bank.get_ids(["c", "b", "base"])) == [99, 11, 1]
    for given in (bank, bank.leaves):
        with pytest.raises(AdapterError, match="ids holds 1, which no adapter has: it was removed"):
            banks.take_rows(given, stale)
    apply = jax.jit(
        lambda leaves, ids: banks.apply_per_example(
            lambda params, x: x * params["ln"]["scale"],
            leaves,
            ids,
            banks.freeze_base(PARAMS, bank),
            jnp.ones((3, 2)),
        )
    )
    found = np.asarray(apply(jax.tree.map(jnp.asarray, bank.leaves), stale))
    assert np.isnan(found[0]).all()
    assert found[1:].tolist() == [[11, 11], [1, 1]]


def test_the_same_name_again_is_another_adapter():
    bank = make("a", capacity=2)
    stale = bank.get_ids(["a"])
    bank = banks.add_adapter(banks.remove_adapter(bank, "a"), "a", value(99))
    assert take(bank, stale) == [None]
    assert take(bank, bank.get_ids(["a"])) == [99]


def test_what_keeps_an_id():
    bank = make("a", "b", capacity=4)
    ids = bank.get_ids(["a", "b"])
    bank = banks.rename_adapter(bank, "a", "x")
    bank = banks.replace_adapter(bank, "b", value(50))
    bank = banks.grow_bank(bank, 16)
    bank = banks.add_adapter(bank, "c", {"fc.kernel": np.zeros((2, 2), "f")}, params=PARAMS)
    assert take(bank, ids) == [10, 50]
    assert bank.get_ids(["x", "b"]).tolist() == ids.tolist()
    bank = banks.add_adapter(bank, "middle", banks.interpolate(bank, "x", "b", 0.5))
    assert take(bank, [*ids, bank.get_ids("middle")]) == [10, 50, 30]
    mapped = jax.tree.map(lambda leaf: leaf, bank)
    assert take(mapped, ids) == [10, 50]


@pytest.mark.parametrize("on_host", [False, True])
def test_many_cycles_never_give_an_id_twice_and_compile_once(on_host):
    bank, given, current = make(capacity=4, on_host=on_host), {}, {}
    before = run._cache_size()
    draw = np.random.default_rng(0)
    for cycle in range(60):
        if current and (len(current) == 3 or draw.random() < 0.4):
            name = sorted(current)[draw.integers(len(current))]
            bank = banks.remove_adapter(bank, name, donate=bool(draw.integers(2)))
            del current[name]
        else:
            name = f"tenant {cycle % 4}" if f"tenant {cycle % 4}" not in current else f"{cycle}"
            bank = banks.add_adapter(bank, name, value(100 + cycle))
            current[name] = 100 + cycle
            number = int(bank.get_ids(name))
            assert number not in given, "an id was handed out again"
            given[number] = name, 100 + cycle
        expected = [
            number if current.get(name) == number else None for name, number in given.values()
        ]
        ids = np.resize([*given, 0], 64)
        assert take(bank, ids) == np.resize(np.array([*expected, 1], object), 64).tolist()
    assert bank.capacity == 4
    assert run._cache_size() <= before + 1


def test_rows_that_had_no_adapter_come_first_and_worn_ones_go_out_of_use():
    bank = make("a", "b", capacity=4)
    bank = banks.remove_adapter(bank, "a")
    bank = banks.add_adapter(bank, "c", value(20))
    assert bank.names == ("base", "b", "c")
    bank = banks.add_adapter(bank, "d", value(21))
    assert bank.names == ("base", "d", "b", "c")
    # An id is an int32: after 2,048 adapters a row has none left.
    last = int(bank.get_ids("d")) + 2046 * banks.core.MOST_ROWS
    ids = (bank.ids[0], last, *bank.ids[2:])
    leaves = dataclasses.replace(bank.leaves, ids=jnp.asarray(ids, jnp.int32))
    bank = dataclasses.replace(bank, ids=ids, leaves=leaves)
    assert last < 2**31 <= last + banks.core.MOST_ROWS
    assert take(bank, [last]) == [21]
    bank = banks.remove_adapter(bank, "d")
    assert take(bank, [last, -1, -(2**20) + 1, 2**31 - 1]) == [None] * 4
    bank = banks.add_adapter(bank, "e", value(22))
    assert bank.capacity == 8  # rather than an id that was in use before
    assert take(bank, [last, bank.get_ids("e")]) == [None, 22]


@pytest.mark.parametrize("capacity", [None, 9])
def test_ids_outlive_the_disk(tmp_path, capacity):
    bank = make("a", "b", "c")
    old = bank.get_ids(["a", "b", "c"])
    bank = banks.remove_adapter(banks.remove_adapter(bank, "a"), "c")
    banks.save_bank(tmp_path / "bank", bank, base=PARAMS)
    bank = banks.load_bank(tmp_path / "bank", PARAMS, capacity=capacity)
    assert take(bank, old) == [None, 11, None]
    for number in range(8):
        bank = banks.add_adapter(bank, f"new {number}", value(50 + number))
        assert take(bank, old) == [None, 11, None]
    with pytest.raises(AdapterError, match=r"capacity is 2, but there are 4 rows .* had before"):
        banks.load_bank(tmp_path / "bank", PARAMS, capacity=2)
    worn = tuple(
        number + 2048 * banks.core.MOST_ROWS if number == 8 else number for number in bank.ids
    )
    assert worn != bank.ids or bank.capacity == 8


def test_ids_of_other_integer_types_are_not_wrapped_onto_another_one():
    bank = banks.add_adapter(banks.remove_adapter(make("a", "b", capacity=3), "a"), "c", value(99))
    own = int(bank.get_ids("c"))
    assert own > 255
    assert take(bank, np.array([own, 2], np.uint32)) == [99, 11]
    assert take(bank, np.array([1, 2, 257], np.int16)) == [None, 11, None]
    assert take(bank, np.array([1, 2], np.uint8)) == [None, 11]
    assert take(bank, np.array([-1, 2**20, 2**20 + 7], np.int32)) == [None] * 3
    with jax.enable_x64(True):
        wide = jnp.asarray(np.array([own, 2, 2**32 + 2, 2**32 + own, 1], np.int64))
        found = jax.jit(lambda leaves, ids: banks.take_rows(leaves, ids)["ln.scale"][:, 0])(
            bank.leaves, wide
        )
        assert np.isnan(found).tolist() == [False, False, True, True, True]


def test_constant_ids_in_a_program_and_a_whole_bank_as_an_argument():
    bank = banks.add_adapter(banks.remove_adapter(make("a", "b", capacity=3), "a"), "c", value(99))
    own = bank.get_ids(["c", "b"])
    found = jax.jit(lambda leaves: banks.take_rows(leaves, [1, 2])["ln.scale"][:, 0])(bank.leaves)
    assert np.isnan(found[0])
    assert found[1] == 11
    assert jax.jit(lambda bank: banks.take_rows(bank, own)["ln.scale"])(bank)[0, 0] == 99
    with pytest.raises(AdapterError, match="ids holds 1, which no adapter has"):
        jax.jit(lambda bank: banks.take_rows(bank, [1]))(bank)
    with pytest.raises(AdapterError, match="ids holds 3, which no adapter has"):
        jax.jit(lambda leaves: banks.take_rows(leaves, [3]))(bank.leaves)
    one = jax.vmap(lambda number: banks.take_rows(bank.leaves, number)["ln.scale"][0])
    assert np.isnan(one(jnp.array([1, own[0]]))).tolist() == [True, False]
    # What scales a whole bank scales its ids too; names still find their rows.
    scaled = jax.tree.map(lambda leaf: 2 * leaf, bank)
    assert banks.take_rows(scaled, "b")["ln.scale"].tolist() == [22, 22]


def test_the_models_native_path_gives_nan_too():
    params, _, bank = make_small_bank("ab", capacity=3)
    stale = bank.get_ids(["a", "b"])
    bank = banks.add_adapter(banks.remove_adapter(bank, "a"), "c", make_adapter(make_params(), 5))
    frozen = banks.freeze_base(params, bank)
    tree = jax.jit(lambda leaves, ids: banks.merge_rows(banks.take_rows(leaves, ids), frozen))(
        bank.leaves, stale
    )
    assert np.isnan(tree["ln_f"]["scale"][0]).all()
    assert np.isfinite(tree["ln_f"]["scale"][1]).all()

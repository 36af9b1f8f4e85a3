"""Banks: rows come and go, and the others stay bit for bit."""

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings

import lntune_jax as lnt
from lntune_jax import bank as banks
from lntune_jax.errors import AdapterError, ConfigError
from tests.support.banks import CONFIG, make_adapter, make_small_bank, row_of, same
from tests.support.small import make_params
from tests.support.trees import llama

PARAMS = make_params()
ADAPTERS = [make_adapter(PARAMS, seed) for seed in range(6)]


@settings(max_examples=15)
@given(
    st.lists(
        st.tuples(st.sampled_from(["add", "replace", "remove", "rename"]), st.integers(0, 5)),
        max_size=9,
    ),
    st.booleans(),
)
def test_any_edits_keep_the_other_rows_bitwise(edits, on_host):
    bank = banks.make_bank(PARAMS, capacity=2, on_host=on_host)
    expected, fresh = {}, iter(range(100))
    for edit, seed in edits:
        adapter, names = ADAPTERS[seed], sorted(expected)
        before = bank
        if edit == "add":
            name = f"adapter {next(fresh)}"
            bank, expected[name] = banks.add_adapter(bank, name, adapter), adapter
        elif names:
            name = names[seed % len(names)]
            if edit == "replace":
                bank, expected[name] = banks.replace_adapter(bank, name, adapter), adapter
            elif edit == "remove":
                bank = banks.remove_adapter(bank, name)
                del expected[name]
            else:
                new = f"adapter {next(fresh)}"
                bank = banks.rename_adapter(bank, name, new)
                expected[new] = expected.pop(name)
        assert before.names == ("base", *before.names[1:])
        assert set(bank.names) == {"base", *expected}
        for name, adapter in expected.items():
            found = banks.get_adapter(bank, name)
            assert same(found.trainable, adapter.trainable)
            assert found.config == adapter.config
        assert same(row_of(bank, "base"), lnt.partition_params(PARAMS, CONFIG).trainable)
    assert bank.on_host == on_host
    assert bank.capacity & (bank.capacity - 1) == 0


def test_what_a_bank_was_stays_as_it_was():
    _, adapters, bank = make_small_bank(on_host=True)
    copies = {path: leaf.copy() for path, leaf in bank.leaves.items()}
    banks.remove_adapter(bank, "a")
    banks.add_adapter(bank, "d", adapters["a"])
    assert same(bank.leaves, copies)


def add(bank, adapter):
    return banks.add_adapter(bank, "d", adapter, donate=True)


EDITS = {
    "add": add,
    "add with a new leaf": lambda bank, adapter: banks.add_adapter(
        bank, "d", {"classifier.bias": np.ones(2, "f")}, params=make_params(), donate=True
    ),
    "replace": lambda bank, adapter: banks.replace_adapter(bank, "b", adapter, donate=True),
    "remove": lambda bank, adapter: banks.remove_adapter(bank, "b", donate=True),
}


@pytest.mark.parametrize("edit", EDITS)
@pytest.mark.parametrize("capacity", [4, 8])
@pytest.mark.parametrize("on_host", [False, True])
def test_a_donated_bank_is_given_up_whole(edit, capacity, on_host, tmp_path):
    params, adapters, bank = make_small_bank(on_host=on_host, capacity=capacity)
    renamed, leaves = banks.rename_adapter(bank, "c", "x"), bank.leaves
    edited = EDITS[edit](bank, adapters["a"])
    assert same(banks.get_adapter(edited, "a").trainable, adapters["a"].trainable)
    for use in (
        lambda: banks.take_rows(bank, "a"),
        lambda: banks.take_rows(leaves, [1]),
        lambda: banks.take_rows(renamed, ["x"]),
        lambda: banks.get_adapter(bank, "a"),
        lambda: banks.freeze_base(params, bank),
        lambda: banks.add_adapter(bank, "e", adapters["a"]),
        lambda: banks.remove_adapter(bank, "a"),
        lambda: banks.grow_bank(bank, 32),
        lambda: banks.average(bank, ["a"]),
        lambda: banks.save_bank(tmp_path / "bank", bank, base=params),
        lambda: bank.nbytes,
        lambda: bank.leaves["ln_f.scale"],
        lambda: jax.jit(lambda leaves: banks.take_rows(leaves, [1]))(bank.leaves),
    ):
        with pytest.raises(AdapterError, match="given up by an edit with donate=True"):
            use()


@pytest.mark.parametrize("on_host", [False, True])
def test_a_donated_edit_writes_in_place_and_a_refused_one_changes_nothing(on_host):
    _, adapters, bank = make_small_bank(on_host=on_host)
    row, array = banks.take_rows(bank, "b"), bank.leaves["ln_f.scale"]
    with pytest.raises(AdapterError, match="not finite"):
        add(bank, {"ln_f.scale": np.full(32, np.nan, "f")})
    assert same(banks.get_adapter(bank, "a").trainable, adapters["a"].trainable)
    edited = banks.remove_adapter(bank, "b", donate=True)
    assert edited.leaves["ln_f.scale"] is array if on_host else array.is_deleted()
    assert same(row, adapters["b"].trainable)  # rows that were taken before are copies
    # What shares arrays without the bank's own dict says so too.
    if not on_host:
        copy = jax.tree.map(lambda leaf: leaf, edited)
        banks.remove_adapter(edited, "a", donate=True)
        with pytest.raises(AdapterError, match="donated and are gone"):
            banks.take_rows(copy, "a")


def test_ids_stay_while_adapters_come_and_go():
    _, adapters, bank = make_small_bank()
    assert bank.get_ids(["base", "a", "b", "c", "a"]).tolist() == [0, 1, 2, 3, 1]
    assert bank.get_ids("b") == 2
    bank = banks.remove_adapter(bank, "a")
    assert bank.get_ids(["b", "c"]).tolist() == [2, 3]
    assert np.isnan(bank.leaves["ln_f.scale"][1]).all()
    bank = banks.add_adapter(bank, "d", adapters["a"])
    assert bank.names == ("base", "b", "c", "d")  # rows that had no adapter come first
    assert bank.get_ids("d") == 4


def test_a_full_bank_doubles():
    params, adapters, bank = make_small_bank(capacity=4)
    assert bank.capacity == 4
    grown = banks.add_adapter(bank, "d", make_adapter(params, 9))
    assert grown.capacity == 8
    assert grown.names == ("base", "a", "b", "c", "d")
    for name, adapter in adapters.items():
        assert same(banks.get_adapter(grown, name).trainable, adapter.trainable)


def test_adapters_that_tune_different_leaves_share_a_bank():
    params = make_params()
    only = {"last": lnt.LNTuningConfig(target_modules=["ln_f"]), "first": CONFIG}
    head = lnt.LNTuningConfig(target_modules=["ln_1"], modules_to_save=["classifier"])
    adapters = {name: make_adapter(params, 1, config) for name, config in only.items()}
    bank = banks.make_bank(params, adapters)
    with pytest.raises(AdapterError, match=r"'classifier.bias'.*no rows: pass params="):
        banks.add_adapter(bank, "head", make_adapter(params, 2, head))
    bank = banks.add_adapter(bank, "head", make_adapter(params, 2, head), params=params)
    assert np.array_equal(row_of(bank, "last")["classifier.kernel"], params["classifier"]["kernel"])
    assert np.array_equal(row_of(bank, "last")["layers.0.ln_1.scale"], np.ones(32))
    assert set(banks.get_adapter(bank, "last").trainable) == {"ln_f.scale", "ln_f.bias"}
    assert "classifier.kernel" in banks.get_adapter(bank, "head").trainable
    assert same(
        row_of(bank, "head"), {**row_of(bank, "base"), **make_adapter(params, 2, head).trainable}
    )


def test_a_dict_of_leaves_gets_a_config_that_selects_them(tmp_path):
    params = make_params()
    leaves = {"ln_f.scale": np.full(32, 2, "f"), "classifier.kernel": np.ones((32, 2), "f")}
    leaves["classifier.bias"] = np.ones(2, "f")
    found = banks.get_adapter(banks.make_bank(params, {"a": leaves}), "a")
    lnt.save_adapter(tmp_path / "a", found.trainable, found.config, base=params)
    assert same(lnt.load_adapter(tmp_path / "a").trainable, found.trainable)


def test_the_dtype_of_rows():
    params, adapters, bank = make_small_bank(dtype="bfloat16")
    assert {leaf.dtype.name for leaf in bank.leaves.values()} == {"bfloat16"}
    rounded = adapters["a"].trainable["ln_f.bias"].astype(jnp.bfloat16)
    assert np.array_equal(banks.get_adapter(bank, "a").trainable["ln_f.bias"], rounded)
    narrow = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
    assert banks.make_bank(narrow).leaves["ln_f.scale"].dtype == jnp.float32
    with pytest.raises(ConfigError, match="expected a floating one"):
        banks.make_bank(params, dtype="int8")


def test_the_memory_of_ten_thousand_adapters():
    tree = llama(4096, 32, 11008, 32000, 4096)
    assert banks.bank_bytes(tree, 10_000) == 10_001 * 266_240 * 4 == 10_650_664_960
    assert banks.bank_bytes(tree, 9_999, dtype="bfloat16") == 10_000 * 266_240 * 2
    assert banks.bank_bytes(tree, 9_999, devices=8) * 8 == banks.bank_bytes(tree, 9_999)
    _, _, bank = make_small_bank(capacity=16)
    assert bank.nbytes == banks.bank_bytes(make_params(), 15)


@pytest.mark.parametrize(
    ("adapter", "message"),
    [
        ({"ln_f.scale": np.ones(31, "f")}, r"'ln_f.scale' has shape \(31,\), expected \(32,\)"),
        ({"ln_f.scale": np.full(32, np.inf, "f")}, "not finite in the bank's dtype"),
        ({"ln_f.scale": np.full(32, 1e60)}, "not finite in the bank's dtype"),
        ({"ln_f.scale": np.ones(32, np.int32)}, "dtype int32, expected a floating one"),
        ({"ln_f.scale": 1.0}, "is a float, not an array"),
        ({"ln_9.scale": np.ones(32, "f")}, "tunes 'ln_9.scale', for which the bank has no rows"),
        ({}, "hold a leaf"),
        ([1], "must be an Adapter, a dict of leaf paths or a path"),
        (None, "must be an Adapter, a dict of leaf paths or a path"),
        ({"ln_f": {"scale": np.ones(32, "f")}}, "a flat dict {leaf path: array}; found 'ln_f'"),
        ({1: np.ones(32, "f")}, "a flat dict {leaf path: array}; found 1"),
        ({"ln_f.scale": [1.0] * 32}, "is a list, not an array"),
        ("no/such/directory", "pass params=, the base's tree"),
    ],
)
def test_adapters_that_do_not_fit(adapter, message):
    _, _, bank = make_small_bank()
    for change in (banks.add_adapter, banks.replace_adapter):
        name = "d" if change is banks.add_adapter else "a"
        with pytest.raises(AdapterError, match=message):
            change(bank, name, adapter)


def test_names_that_cannot_be():
    params, adapters, bank = make_small_bank()
    adapter = adapters["a"]
    with pytest.raises(AdapterError, match="has an adapter 'a': use another name, or call rep"):
        banks.add_adapter(bank, "a", adapter)
    with pytest.raises(AdapterError, match="no adapter 'z'; it has 'base', 'a', 'b', 'c'"):
        banks.remove_adapter(bank, "z")
    for change in (banks.add_adapter, banks.replace_adapter):
        with pytest.raises(AdapterError, match="that of row 0, the base itself"):
            change(bank, "base", adapter)
    with pytest.raises(AdapterError, match="row 0"):
        banks.remove_adapter(bank, "base")
    with pytest.raises(AdapterError, match="has an adapter 'b' already"):
        banks.rename_adapter(bank, "a", "b")
    with pytest.raises(AdapterError, match="must be a string with letters, not ''"):
        banks.make_bank(params, {"": adapter})
    for name in (None, 5, b"a", ("a",), "\ud800"):
        with pytest.raises(AdapterError, match=r"an adapter's name must be"):
            banks.add_adapter(bank, name, adapter)
    for names in (3, None, [None], ["a", 3], [["a"]], b"a"):
        with pytest.raises(AdapterError, match=r"has no adapter|a name or a sequence of names"):
            bank.get_ids(names)
    assert bank.get_ids(np.array(["a", "b"])).tolist() == [1, 2]


def test_what_a_bank_cannot_be_made_of():
    params, adapters, bank = make_small_bank()
    with pytest.raises(AdapterError, match="capacity is 3, but there are 4 rows"):
        banks.make_bank(params, adapters, capacity=3)
    for capacity in (2.5, "8", True):
        with pytest.raises(AdapterError, match="expected a whole number of rows"):
            banks.make_bank(params, capacity=capacity)
    for capacity in (None, 2.5):
        with pytest.raises(AdapterError, match="expected a whole number of rows"):
            banks.grow_bank(bank, capacity)
    with pytest.raises(AdapterError, match="a bank has at most 1,048,576 rows"):
        banks.grow_bank(bank, 2**20 + 1)
    for wrong in ([adapters["a"]], adapters["a"], "a"):
        with pytest.raises(AdapterError, match="adapters must be a dict of adapters by name, not"):
            banks.make_bank(params, wrong)
    for base in (bank, bank.leaves):
        with pytest.raises(AdapterError, match="params must be the base's tree of arrays"):
            banks.make_bank(base)
    for sharding in ("data", jax.devices()[0], jax.sharding.PartitionSpec("data")):
        with pytest.raises(AdapterError, match=r"expected a jax.sharding.Sharding"):
            banks.make_bank(params, sharding=sharding)
    chosen = lnt.select(params, lnt.LNTuningConfig(target_modules=["ln_f"]))
    assert list(banks.make_bank(params, config=chosen).leaves) == ["ln_f.bias", "ln_f.scale"]
    with pytest.raises(AdapterError, match="more than capacity=2"):
        banks.grow_bank(bank, 2)
    with pytest.raises(AdapterError, match=r"the base lacks 'x\.scale', which an adapter tunes"):
        banks.make_bank(params, {"a": {"x.scale": np.ones(3)}})
    with pytest.raises(AdapterError, match="has no values"):
        banks.make_bank(jax.eval_shape(lambda: params))


def test_a_bank_is_a_pytree_that_keeps_its_names():
    _, adapters, bank = make_small_bank()
    doubled = jax.tree.map(lambda leaf: leaf * 2, bank)
    assert doubled.names == bank.names
    found = banks.get_adapter(doubled, "b").trainable["ln_f.scale"]
    assert np.array_equal(found, 2 * adapters["b"].trainable["ln_f.scale"])


@pytest.mark.parametrize("edit", [banks.add_adapter, banks.replace_adapter])
def test_new_leaves_come_from_the_bank_s_own_base(edit):
    base = {"ln": {"scale": np.ones(2, "f")}, "fc": {"kernel": np.ones((2, 2), "f")}}
    other = {"ln": {"scale": np.full(2, 7, "f")}, "fc": {"kernel": np.full((2, 2), 9, "f")}}
    bank = banks.make_bank(base, {"a": {"ln.scale": np.zeros(2, "f")}})
    name = "a" if edit is banks.replace_adapter else "b"
    head = {"fc.kernel": np.zeros((2, 2), "f")}
    with pytest.raises(AdapterError, match=r"params is another base than the bank's: 'ln\.sc"):
        edit(bank, name, head, params=other)
    assert not row_of(edit(bank, name, head, params=base), name)["fc.kernel"].any()


def test_arguments_of_other_kinds_are_refused():
    params, adapters, bank = make_small_bank()
    frozen, x = banks.freeze_base(params, bank), np.ones((1, 2))
    refused = [
        (lambda: banks.get_adapter(bank, ["a"]), r"no adapter \['a'\]"),
        (lambda: banks.average(bank, None), "names must be a name or a sequence"),
        (lambda: banks.average(bank, 3), "names must be a name or a sequence"),
        (lambda: banks.average(bank, [["a"]]), r"no adapter \['a'\]"),
        (lambda: banks.interpolate(bank, ["a"], "b", 0.5), r"no adapter \['a'\]"),
        (lambda: banks.compare_adapters(bank, 3), "names must be a name or a sequence"),
        (lambda: banks.compare_adapters(bank, paths=3), "paths must be leaf paths, not int"),
        (lambda: banks.greedy_soup(bank, None), "evaluate must be a function"),
        (lambda: banks.greedy_soup(bank, lambda _: None), "evaluate gave None .*one number"),
        (lambda: banks.greedy_soup(bank, lambda _: "x"), "evaluate gave 'x' .*one number"),
        (lambda: banks.greedy_soup(bank, lambda _: np.ones(2)), "evaluate gave .*one number"),
        (lambda: banks.apply_per_example(None, bank, [0], frozen, x), "apply_fn must be a functi"),
        (lambda: banks.apply_ensemble(None, bank, [0], frozen, x), "apply_fn must be a function"),
        (lambda: banks.bank_bytes(params, "3"), "adapters is '3'; expected a whole number"),
        (lambda: banks.bank_bytes(params, 1.5), r"adapters is 1\.5; expected a whole number"),
        (lambda: banks.bank_bytes(params, 1, devices=True), "devices is True; expected a whole"),
        (lambda: banks.make_bank(params, on_host="no"), "on_host must be True or False"),
        (lambda: banks.make_bank(params, config={}), "config must be an LNTuningConfig .*not dict"),
        (lambda: banks.bank_bytes(params, 1, config={}), "config must be an LNTuningConfig"),
        (
            lambda: banks.add_adapter(bank, "x", lnt.Adapter(adapters["a"].trainable, None)),
            "config must be an LNTuningConfig",
        ),
    ]
    for call, message in refused:
        with pytest.raises(lnt.LNTuningError, match=message):
            call()


NO_BANKS = {
    "None": None,
    "a dict": {"ln_f.scale": np.ones(32, "f")},
    "a path": "bank",
    "an adapter": make_adapter(make_params(), 1),
    "leaves": make_small_bank()[2].leaves,
}
CALLS = {
    "add_adapter": lambda bank: banks.add_adapter(bank, "x", {"ln_f.scale": np.ones(32, "f")}),
    "replace_adapter": lambda bank: banks.replace_adapter(bank, "a", {"ln_f.scale": np.ones(32)}),
    "remove_adapter": lambda bank: banks.remove_adapter(bank, "a"),
    "rename_adapter": lambda bank: banks.rename_adapter(bank, "a", "x"),
    "get_adapter": lambda bank: banks.get_adapter(bank, "a"),
    "grow_bank": lambda bank: banks.grow_bank(bank, 32),
    "save_bank": lambda bank: banks.save_bank("nowhere", bank, base={}),
    "freeze_base": lambda bank: banks.freeze_base({"a": np.ones(2)}, bank),
    "take_rows": lambda bank: banks.take_rows(bank, [0]),
    "apply_per_example": lambda bank: banks.apply_per_example(len, bank, [0], {}, np.ones((1, 2))),
    "apply_ensemble": lambda bank: banks.apply_ensemble(len, bank, [0], {}, np.ones((1, 2))),
    "weighted_sum": lambda bank: banks.weighted_sum(bank, {"a": 1.0}),
    "average": lambda bank: banks.average(bank, ["a"]),
    "interpolate": lambda bank: banks.interpolate(bank, "base", "a", 0.5),
    "negate": lambda bank: banks.negate(bank, "a"),
    "uniform_soup": lambda bank: banks.uniform_soup(bank),
    "greedy_soup": lambda bank: banks.greedy_soup(bank, lambda leaves: 1.0),
    "compare_adapters": lambda bank: banks.compare_adapters(bank),
}
TAKE_LEAVES = ("freeze_base", "take_rows", "apply_per_example", "apply_ensemble")


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("given", NO_BANKS)
def test_what_is_no_bank_is_refused(call, given):
    if given == "leaves" and call in TAKE_LEAVES:
        return
    kind = type(NO_BANKS[given]).__name__
    with pytest.raises(AdapterError, match=f"bank: expected a bank.*, not {kind}: "):
        CALLS[call](NO_BANKS[given])


@pytest.mark.parametrize("call", CALLS)
def test_a_bank_whose_arrays_are_gone_is_refused(call):
    _, adapters, bank = make_small_bank()
    banks.add_adapter(bank, "d", adapters["a"], donate=True)
    with pytest.raises(AdapterError, match="given up by an edit with donate=True"):
        CALLS[call](bank)
    _, _, bank = make_small_bank()
    jax.tree.map(lambda leaf: leaf.delete(), bank.leaves)
    with pytest.raises(AdapterError, match="donated and are gone"):
        CALLS[call](bank)

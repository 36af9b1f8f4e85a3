"""Mixed batches through vmap: as one by one, compiled once, the same matmuls."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lntune_jax as lnt
from lntune_jax import bank as banks
from lntune_jax.errors import AdapterError, TreeError
from tests.support.banks import make_adapter, make_small_bank, row_of
from tests.support.programs import list_dots
from tests.support.small import apply, make_batch, make_params

X = make_batch(6)["x"]
MIX = ["c", "base", "a", "a", "b", "c"]


def one_by_one(params, bank, names, x=X, apply_fn=apply, **options):
    frozen = banks.freeze_base(params, bank)
    rows = [
        apply_fn(lnt.merge_params(row_of(bank, name), frozen, **options), x[i : i + 1])
        for i, name in enumerate(names)
    ]
    return np.concatenate(rows)


@pytest.mark.parametrize("on_host", [False, True])
def test_a_mixed_batch_is_its_rows_one_by_one(on_host):
    params, _, bank = make_small_bank(on_host=on_host)
    frozen = banks.freeze_base(params, bank)
    expected = one_by_one(params, bank, MIX)
    for ids in (MIX, bank.get_ids(MIX), jnp.asarray(bank.get_ids(MIX))):
        found = banks.apply_per_example(apply, bank, ids, frozen, X)
        np.testing.assert_allclose(found, expected, atol=1e-5)
    alone = apply(params, X)
    np.testing.assert_allclose(found[1], alone[1], atol=1e-5)
    assert np.abs(found - alone)[[0, 2, 3, 4, 5]].max(axis=1).min() > 0.01  # adapters do something
    rows = banks.take_rows(bank, MIX)
    assert all(isinstance(row, np.ndarray) == on_host for row in rows.values())
    np.testing.assert_allclose(banks.apply_rows(apply, rows, frozen, X), expected, atol=1e-5)


def test_one_program_for_every_mix_and_every_adapter():
    params, adapters, bank = make_small_bank()
    frozen, traces = banks.freeze_base(params, bank), []

    @jax.jit
    def run(leaves, ids, frozen, x):
        traces.append(1)
        return banks.apply_per_example(apply, leaves, ids, frozen, x)

    def check(bank, names):
        found = run(bank.leaves, bank.get_ids(names), frozen, X)
        np.testing.assert_allclose(found, one_by_one(params, bank, names), atol=1e-5)

    check(bank, MIX)
    check(bank, ["a"] * 6)
    bank = banks.add_adapter(bank, "d", make_adapter(params, 7))
    check(bank, ["d", "a", "d", "b", "base", "c"])
    bank = banks.rename_adapter(banks.remove_adapter(bank, "a"), "b", "x")
    bank = banks.replace_adapter(bank, "c", adapters["a"])
    check(bank, ["d", "x", "c", "base", "x", "c"])
    assert len(traces) == run._cache_size() == 1
    check(banks.grow_bank(bank, 16), ["d", "x", "c", "base", "x", "c"])
    assert len(traces) == 2  # other shapes: once


def test_a_whole_bank_as_an_argument_compiles_for_other_names():
    _, _, bank = make_small_bank()
    run = jax.jit(lambda bank: banks.take_rows(bank, [1])["ln_f.scale"])
    for other in (bank, banks.rename_adapter(bank, "a", "x")):
        assert np.array_equal(run(other), bank.leaves["ln_f.scale"][1:2])
    assert run._cache_size() == 2  # which is why programs take bank.leaves


def test_edits_themselves_compile_once():
    params, _, bank = make_small_bank(capacity=32)
    adapters = [make_adapter(params, seed) for seed in range(4)]
    last = lnt.LNTuningConfig(target_modules=["ln_f"])
    from lntune_jax.bank.core import _write_copy

    bank = banks.add_adapter(bank, "warm", adapters[0])
    before = _write_copy._cache_size()
    for number, adapter in enumerate([*adapters, make_adapter(params, 9, last)]):
        bank = banks.add_adapter(bank, f"adapter {number}", adapter)
    bank = banks.remove_adapter(bank, "adapter 1")
    assert _write_copy._cache_size() == before


def test_the_same_matmuls_as_one_adapter():
    params, _, bank = make_small_bank()
    frozen, ids = banks.freeze_base(params, bank), bank.get_ids(MIX)

    def single(row, frozen, x):
        return apply(lnt.merge_params(row, frozen), x)

    def mixed(leaves, ids, frozen, x):
        return banks.apply_per_example(apply, leaves, ids, frozen, x)

    dots = list_dots(single, row_of(bank, "a"), frozen, X)
    assert len(dots) == 5  # two layers of two, and the classifier
    assert list_dots(mixed, bank.leaves, ids, frozen, X) == dots


def test_saved_heads_cost_a_matmul_for_each_row():
    params = make_params()
    config = lnt.LNTuningConfig(modules_to_save=["classifier"])
    adapters = {name: make_adapter(params, seed, config) for seed, name in enumerate("abc")}
    bank = banks.make_bank(params, adapters)
    frozen, ids = banks.freeze_base(params, bank), bank.get_ids(MIX)
    found = banks.apply_per_example(apply, bank, MIX, frozen, X)
    np.testing.assert_allclose(found, one_by_one(params, bank, MIX), atol=1e-5)

    def mixed(leaves, ids, frozen, x):
        return banks.apply_per_example(apply, leaves, ids, frozen, x)

    dots = list_dots(mixed, bank.leaves, ids, frozen, X, stage="lowered")
    assert sum("6x32x2xf32" in operands for operands in dots) == 1  # a kernel for each row
    assert len(dots) == 5


def test_keywords_and_inputs_without_a_batch_axis():
    params, _, bank = make_small_bank()
    frozen = banks.freeze_base(params, bank)

    def tilted(params, x, shift=None, *, factor=1.0, key=None, double=False, nothing=None):
        assert nothing is None
        assert isinstance(double, bool)
        shift = 0 * x[:, :1] if shift is None else shift
        assert x.shape[0] == shift.shape[0] == 1
        noise = 0.0 if key is None else jax.random.normal(key, ())
        return {"y": apply(params, x) * factor * (1 + double) + shift[:, :1] + noise, "n": None}

    shift, keys = jnp.arange(6.0)[:, None], jax.random.split(jax.random.key(0), 6)
    found = banks.apply_per_example(
        tilted, bank, MIX, frozen, X, shift, factor=jnp.float32(2), key=keys, double=True
    )
    expected = 4 * one_by_one(params, bank, MIX) + np.arange(6)[:, None]
    noise = [jax.random.normal(key, ()) for key in keys]
    np.testing.assert_allclose(found["y"], expected + np.array(noise)[:, None], atol=1e-5)
    with pytest.raises(AdapterError, match=r"has shape \(5, 1\), but there are 6 ids"):
        banks.apply_per_example(tilted, bank, MIX, frozen, X, shift[:5])
    with pytest.raises(AdapterError, match=r"keyword 'key' has shape \(5,\), .*functools.partial"):
        banks.apply_per_example(tilted, bank, MIX, frozen, X, key=keys[:5])
    with pytest.raises(AdapterError, match="a value without a batch axis"):
        banks.apply_per_example(lambda p, x: apply(p, x).mean(), bank, MIX, frozen, X)


def scale_all(params, x, *more, **named):
    x = jnp.asarray(x)
    rest = [jnp.sum(jnp.asarray(leaf, "float32")) for leaf in jax.tree.leaves((more, named))]
    return x * params["ln"]["scale"] + sum(rest)


TWO = banks.make_bank({"ln": {"scale": jnp.ones(2)}}, {"a": {"ln.scale": jnp.full(2, 10.0)}})
FROZEN_TWO = banks.freeze_base({"ln": {"scale": jnp.ones(2)}}, TWO)
ONES = jnp.ones((2, 2))


def run_two(*batch, apply_fn=scale_all, **options):
    ids = ["a", "base"]
    direct = banks.apply_per_example(apply_fn, TWO, ids, FROZEN_TWO, *batch, **options)
    rows = banks.take_rows(TWO, ids)
    taken = banks.apply_rows(apply_fn, rows, FROZEN_TWO, *batch, **options)
    assert np.array_equal(direct, taken)
    return direct.tolist()


@pytest.mark.parametrize(
    "nested",
    [
        [1.0, 2.0],
        (1, 2),
        [[1.0, 2.0], [3.0, 4.0]],
        [True, False],
        [np.float32(1), np.float32(2)],
        [jnp.float32(1), jnp.float32(2)],
        ["a text", "another"],
        [{"x": 1.0}, {"x": 2.0}],
        {"x": [1.0, 2.0]},
    ],
    ids=repr,
)
def test_a_list_of_numbers_is_no_batch(nested):
    """Each row would get the whole list: [[10, 10], [10, 10]] where the array gives [[10, 20]]."""
    message = "is a sequence that holds .* cannot be split into rows: pass an array"
    with pytest.raises(AdapterError, match=f"input 0 after frozen {message}"):
        run_two(nested)
    with pytest.raises(AdapterError, match=f"input 1 after frozen {message}"):
        run_two(ONES, nested, in_axes=(0, 0))
    with pytest.raises(AdapterError, match=f"the keyword 'shift' {message}"):
        run_two(ONES, shift=nested)


def test_in_axes_say_what_is_split():
    split, shift = jnp.array([[1.0, 1.0], [2.0, 2.0]]), jnp.array([1.0, 2.0])
    assert run_two(split) == [[10, 10], [2, 2]]
    # As long as the batch, and meant for every row.
    assert run_two(ONES, shift) == [[11, 11], [3, 3]]
    assert run_two(ONES, shift, in_axes=(0, None)) == [[13, 13], [4, 4]]
    assert run_two(ONES, [1.0, 2.0], in_axes=[0, None]) == [[13, 13], [4, 4]]
    assert run_two(ONES, {"a": shift, "b": shift}, in_axes=(0, {"a": 0, "b": None})) == [
        [14, 14],
        [6, 6],
    ]
    whole = functools.partial(scale_all, shift=shift)
    assert run_two(ONES, apply_fn=whole) == [[13, 13], [4, 4]]
    assert run_two(ONES, None, 3, in_axes=(0, None, 0)) == [[13, 13], [4, 4]]
    assert run_two(ONES, None, 3) == [[13, 13], [4, 4]]
    # Another axis than the first: one row at a time keeps it, as an axis of length one.
    wide = jnp.arange(6.0).reshape(3, 2)

    def see(params, x):
        assert x.shape == (3, 1)
        return x.sum(0, keepdims=True) * params["ln"]["scale"]

    for axis in (1, -1):
        assert run_two(wide, apply_fn=see, in_axes=axis) == [[60, 60], [9, 9]]
    everywhere = run_two(jnp.ones((1, 2)), in_axes=None)
    assert everywhere == [[10, 10], [1, 1]]


@pytest.mark.parametrize(
    ("in_axes", "message"),
    [
        ((0,), r"in_axes does not fit the 2 inputs after frozen: .* as to jax.vmap"),
        ((0, 0, 0), "in_axes does not fit the 2 inputs"),
        ({"x": 0}, "in_axes does not fit the 2 inputs"),
        ((0, "batch"), "in_axes holds 'batch'; expected integers and None"),
        ((0, True), "in_axes holds True"),
        ((0, 1), r"input 1 after frozen has shape \(2,\), which has no axis 1"),
        ((0, -2), r"input 1 after frozen has shape \(2,\), which has no axis -2"),
    ],
)
def test_in_axes_that_fit_nothing(in_axes, message):
    with pytest.raises(AdapterError, match=message):
        run_two(ONES, jnp.ones(2), in_axes=in_axes)


def test_names_in_any_sequence():
    for names in (["a", "base"], ("a", "base"), np.array(["a", "base"])):
        found = banks.apply_per_example(scale_all, TWO, names, FROZEN_TWO, ONES)
        assert found.tolist() == [[10, 10], [1, 1]]
    for ids in ((1, 0), np.array([1, 0], np.uint8), jnp.array([1, 0], jnp.int8)):
        found = banks.apply_per_example(scale_all, TWO.leaves, ids, FROZEN_TWO, ONES)
        assert found.tolist() == [[10, 10], [1, 1]]
    for ids in ([], np.zeros(0, np.int32)):
        assert banks.apply_per_example(scale_all, TWO, ids, FROZEN_TWO, ONES[:0]).shape == (0, 2)


def test_a_bfloat16_base_takes_its_own_dtype_or_the_bank_s():
    params, _, bank = make_small_bank()
    narrow = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
    frozen = banks.freeze_base(narrow, bank)
    for cast in (True, False):
        found = banks.apply_per_example(apply, bank, MIX, frozen, X, cast=cast)
        expected = one_by_one(narrow, bank, MIX, cast=cast)
        assert found.dtype == jnp.bfloat16
        np.testing.assert_allclose(found.astype("f"), expected.astype("f"), atol=0.05)


def test_stacked_layers_are_rows_like_any_other():
    def scanned(params, x):
        def layer(x, leaves):
            return jnp.tanh(x @ leaves["kernel"]) * leaves["ln"]["scale"], None

        return jax.lax.scan(layer, x, params["layers"])[0]

    kernels = jax.random.normal(jax.random.key(0), (3, 32, 32))
    params = {"layers": {"ln": {"scale": jnp.ones((3, 32))}, "kernel": kernels}}
    bank = banks.make_bank(params, {name: make_adapter(params, i) for i, name in enumerate("abc")})
    assert bank.leaves["layers.ln.scale"].shape == (8, 3, 32)
    found = banks.apply_per_example(scanned, bank, MIX, banks.freeze_base(params, bank), X)
    np.testing.assert_allclose(found, one_by_one(params, bank, MIX, apply_fn=scanned), atol=1e-5)


def test_an_ensemble_is_each_adapter_on_the_whole_batch():
    params, _, bank = make_small_bank()
    frozen = banks.freeze_base(params, bank)
    votes = banks.apply_ensemble(apply, bank, ["a", "base", "c"], frozen, X)
    for vote, name in zip(votes, ["a", "base", "c"], strict=True):
        np.testing.assert_allclose(vote, one_by_one(params, bank, [name] * 6), atol=1e-5)


def test_gradients_reach_the_rows_that_were_used():
    params, _, bank = make_small_bank()
    frozen, ids = banks.freeze_base(params, bank), bank.get_ids(["a", "c"])

    def loss(arrays):
        leaves = dataclasses.replace(bank.leaves, arrays=arrays)
        return banks.apply_per_example(apply, leaves, ids, frozen, X[:2]).sum()

    grads = jax.grad(loss)(bank.leaves.arrays)["ln_f.bias"]
    assert np.abs(grads[ids]).max(axis=1).min() > 0
    assert not np.delete(np.asarray(grads), ids, axis=0).any()


def test_ids_that_have_no_adapter():
    params, _, bank = make_small_bank()
    bank, frozen = banks.remove_adapter(bank, "b"), banks.freeze_base(params, bank)
    for ids, message in (
        ([0, 8], "ids holds 8, which no adapter has"),
        ((-1, 0), "ids holds -1, which no adapter has"),
        ([0, 2], "ids holds 2, .*: it was removed, or never added. Look ids up by name"),
        ([0, 4], "ids holds 4, which no adapter has"),
        ([0, 2**31 + 1], "ids holds 2147483649, which no adapter has"),
        (np.array([2**63 + 1], np.uint64), "which no adapter has"),
        ([True, False], r"dtype bool; expected integers \(batch,\), or names"),
        ([[0], [0, 1]], "ids is no array of integers"),
        ({"a", "b"}, "ids is .*without an axis|dtype object"),
        (["a", 1], "the bank has no adapter 1"),
        ([["a"], ["b"]], "the bank has no adapter|dtype"),
        (["a", "b"], "the bank has no adapter 'b'"),
        ([0.0, 1.0], "expected integers"),
        ([[0]], r"ids has shape \(1, 1\)"),
    ):
        with pytest.raises(AdapterError, match=message):
            banks.apply_per_example(apply, bank, ids, frozen, X[:2])
    with pytest.raises(AdapterError, match=r"names need a bank: pass bank.get_ids"):
        banks.take_rows(bank.leaves, ["a"])
    with pytest.raises(AdapterError, match=r"expected a bank or bank\.leaves, not int"):
        banks.take_rows(3, [0])
    with pytest.raises(AdapterError, match=r"expected a bank or bank\.leaves, not dict"):
        banks.take_rows(dict(bank.leaves), [0])
    with pytest.raises(AdapterError, match=r"ids has dtype bfloat16; .*leaves.arrays alone"):
        banks.take_rows(jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), bank.leaves), [0])
    with pytest.raises(AdapterError, match="rows must hold arrays with one batch axis first"):
        banks.apply_rows(apply, {"ln_f.scale": jnp.float32(1)}, frozen, X)

    # Traced ids cannot be looked at: NaN, never the values of another adapter.
    run = jax.jit(lambda leaves, ids: banks.apply_per_example(apply, leaves, ids, frozen, X[:4]))
    found = np.asarray(run(bank.leaves, jnp.array([1, 2, 8, -1])))
    assert np.isfinite(found[0]).all()
    assert np.isnan(found[1:]).all()


def test_a_bank_on_the_host_moves_only_the_rows_of_the_batch():
    params, _, bank = make_small_bank(on_host=True)
    frozen = banks.freeze_base(params, bank)
    with pytest.raises(AdapterError, match=r"in the host.s memory .*call take_rows outside"):
        jax.jit(lambda ids: banks.apply_per_example(apply, bank, ids, frozen, X))(jnp.zeros(6, int))
    run = jax.jit(lambda rows, frozen, x: banks.apply_rows(apply, rows, frozen, x))
    for names in (MIX, MIX[::-1]):
        rows = banks.take_rows(bank, names)
        found = run(rows, frozen, X)
        np.testing.assert_allclose(found, one_by_one(params, bank, names), atol=1e-5)
    assert run._cache_size() == 1
    sizes = run.lower(rows, frozen, X).in_avals[0][0]
    assert {shape.shape[0] for shape in sizes.values()} == {6}


def test_halves_that_do_not_fit():
    params, _, bank = make_small_bank()
    with pytest.raises(TreeError, match=r"no leaf 'layers\.0\.ln_1\.bias', which the bank has row"):
        banks.freeze_base({"ln_f": params["ln_f"]}, bank)
    other = {**params, "ln_f": {"scale": jnp.ones(3), "bias": jnp.ones(3)}}
    with pytest.raises(TreeError, match=r"'ln_f.bias' has shape \(3,\), the bank's rows"):
        banks.freeze_base(other, bank)
    with pytest.raises(TreeError, match="in both halves"):
        banks.apply_per_example(apply, bank, MIX, params, X)
    rows = {**banks.take_rows(bank, MIX), "ln_f.scale": np.ones((6, 3), "f")}
    with pytest.raises(TreeError, match=r"has shape \(6, 3\) in trainable, but \(6, 32\)"):
        banks.merge_rows(rows, banks.freeze_base(params, bank))

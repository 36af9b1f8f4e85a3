"""Arithmetic on adapters: exact at its ends, and as plain numpy has it between them."""

import hypothesis.strategies as st
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis.extra.numpy import arrays

import lntune_jax as lnt
from lntune_jax import bank as banks
from lntune_jax.errors import AdapterError
from tests.support.banks import make_adapter, make_small_bank, same
from tests.support.small import apply, make_batch, make_params

VALUES = arrays(np.float32, 4, elements=st.floats(-1e6, 1e6, width=32))


def make_vectors(base, **vectors):
    adapters = {name: {"ln.scale": vector} for name, vector in vectors.items()}
    params = {"ln": {"scale": base}, "fc": {"kernel": np.ones((4, 4), "f")}}
    return banks.make_bank(params, adapters, on_host=True)


@given(VALUES, VALUES, VALUES)
def test_the_ends_are_exact(base, left, right):
    bank = make_vectors(base, a=left, b=right, again=left, third=left)

    def bits(adapter):
        return (adapter.trainable["ln.scale"] + 0).tolist()  # between, a zero may lose its sign

    for adapter, end in (
        (banks.weighted_sum(bank, {"a": 1.0, "b": 0.0}), left),
        (banks.weighted_sum(bank, {"a": 1.0}), left),
        (banks.weighted_sum(bank, {"a": 0.0}), base),
        (banks.average(bank, ["a"]), left),
        (banks.average(bank, ["a", "again", "third"]), left),
        (banks.weighted_sum(bank, {"a": 0.3, "again": 0.7}), left),
        (banks.uniform_soup(bank, "a"), left),
        (banks.interpolate(bank, "a", "b", 0.0), left),
        (banks.interpolate(bank, "a", "b", -0.0), left),
        (banks.interpolate(bank, "a", "b", 1.0), right),
        (banks.interpolate(bank, "a", "a", 0.3), left),
        (banks.interpolate(bank, "a", "again", 0.3), left),
        (banks.interpolate(bank, "base", "b", 1), right),
        (banks.interpolate(bank, "base", "b", np.float32(0)), base),
        (banks.greedy_soup(bank, lambda leaves: 0.0, ["a"]).adapter, left),
    ):
        assert adapter.trainable["ln.scale"].tobytes() == end.tobytes()
    exact = base.astype("d") + 0.5 * (left.astype("d") - base) - 2 * (right.astype("d") - base)
    found = banks.weighted_sum(bank, {"a": 0.5, "b": -2.0}).trainable["ln.scale"]
    np.testing.assert_allclose(found, exact, rtol=1e-6, atol=1e-6)
    mean = (left.astype("d") + right) / 2
    assert bits(banks.average(bank, ["a", "b"])) == (mean.astype("f") + 0).tolist()
    negated = 2 * base.astype("d") - left
    assert bits(banks.negate(bank, "a")) == (negated.astype("f") + 0).tolist()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("on_host", [False, True])
def test_zeros_keep_their_signs(dtype, on_host):
    zero, none = np.array([0.0, -0.0, -0.0], "f"), np.array([-0.0, 0.0, -0.0], "f")
    adapters = {name: {"ln.scale": none} for name in ("a", "b")}
    bank = banks.make_bank({"ln": {"scale": zero}}, adapters, dtype=dtype, on_host=on_host)

    def signs(adapter):
        return np.signbit(adapter.trainable["ln.scale"]).tolist()

    assert signs(banks.interpolate(bank, "a", "base", 0.0)) == [True, False, True]
    assert signs(banks.interpolate(bank, "base", "a", 1.0)) == [True, False, True]
    assert signs(banks.average(bank, ["a", "b"])) == [True, False, True]
    assert signs(banks.weighted_sum(bank, {"a": 0.0})) == [False, True, True]
    assert signs(banks.negate(bank, "a"))[2]  # where the adapter is the base
    twice = banks.add_adapter(bank, "negated", banks.negate(bank, "a"))
    assert signs(banks.negate(twice, "negated"))[2]


def test_an_end_is_exact_whatever_the_other_one_is():
    """Times 0, a value that is too large for a sum would be NaN; a wide bank, no other digits."""
    most = np.full(2, np.finfo("f").max, "f")
    bank = banks.make_bank({"ln": {"scale": -most}}, {"a": {"ln.scale": most}})
    assert same(banks.interpolate(bank, "base", "a", 1.0).trainable, {"ln.scale": most})
    with pytest.raises(AdapterError, match="too large for float32"):
        banks.interpolate(bank, "base", "a", 2.0)
    wide = {"ln": {"scale": np.full(2, 0.1)}}
    adapters = {name: {"ln.scale": np.full(2, 1 / 3)} for name in ("a", "b")}
    bank = banks.make_bank(wide, adapters, on_host=True)
    mean = banks.weighted_sum(bank, {"a": 0.1, "b": 0.9}).trainable
    assert same(mean, {"ln.scale": np.full(2, 1 / 3)})
    with pytest.raises(AdapterError, match="too large to be added"):
        banks.weighted_sum(bank, {"a": 1e308, "b": 1e308})


@given(VALUES, VALUES, VALUES)
def test_distance_and_cosine_are_numpy_s(base, left, right):
    related = banks.compare_adapters(make_vectors(base, a=left, b=right))
    changes = left.astype("d") - base, right.astype("d") - base
    # Of two changes, each rounded at the base's size.
    rounding = 1e-15 * (1 + np.abs([base, left, right]).max())
    expected = np.linalg.norm(left.astype("d") - right)
    np.testing.assert_allclose(related.distance[0, 1], expected, atol=rounding)
    np.testing.assert_allclose(related.moved[:, 0], [np.sqrt((c**2).mean()) for c in changes])
    assert related.distance[0, 0] == 0
    lengths = [np.linalg.norm(change) for change in changes]
    if min(lengths) > 1e-3:
        expected = changes[0] @ changes[1] / lengths[0] / lengths[1]
        np.testing.assert_allclose(related.cosine[0, 1], expected, atol=1e-9)
        np.testing.assert_allclose(related.cosine[1, 1], 1)
    elif min(lengths) == 0:
        assert np.isnan(related.cosine[0, 1])


def test_leaves_that_one_does_not_tune_count_as_the_base_s():
    params = make_params()
    last = lnt.LNTuningConfig(target_modules=["ln_f"])
    adapters = {"all": make_adapter(params, 1), "last": make_adapter(params, 2, last)}
    bank = banks.make_bank(params, adapters)
    mean = banks.average(bank, ["all", "last"])
    assert mean.trainable.keys() == adapters["all"].trainable.keys()
    scale = adapters["all"].trainable["layers.0.ln_1.scale"]
    np.testing.assert_allclose(mean.trainable["layers.0.ln_1.scale"], (scale + 1) / 2, rtol=1e-6)
    assert set(banks.weighted_sum(bank, {"last": 2.0}).trainable) == {"ln_f.scale", "ln_f.bias"}
    related = banks.compare_adapters(bank)
    assert related.leaf_distance.shape == (6, 2, 2)
    np.testing.assert_allclose(np.square(related.leaf_distance).sum(0), np.square(related.distance))
    only = banks.compare_adapters(bank, paths=["layers.0.ln_1.scale"])
    assert only.moved[1, 0] == 0
    assert np.isnan(only.cosine[0, 1])


def test_a_sum_is_an_adapter_like_any_other(tmp_path):
    params, adapters, bank = make_small_bank()
    mean = banks.average(bank, ["a", "b"])
    assert mean.config == adapters["a"].config
    bank = banks.add_adapter(bank, "mean", mean)
    assert same(banks.get_adapter(bank, "mean").trainable, mean.trainable)
    lnt.save_adapter(tmp_path / "mean", *mean, base=params)
    assert same(lnt.load_adapter(tmp_path / "mean").trainable, mean.trainable)
    last = make_adapter(params, 2, lnt.LNTuningConfig(target_modules=["ln_f"]))
    mixed = banks.average(banks.add_adapter(bank, "last", last), ["a", "last"])
    lnt.save_adapter(tmp_path / "mixed", *mixed, base=params)


def test_a_config_for_many_leaves_of_different_adapters(tmp_path):
    paths = [f"model.layers.{number}.input_layernorm.scale" for number in range(120)]
    params = {path: np.ones(2, "f") for path in paths} | {"model.norm.scale": np.ones(2, "f")}
    adapters = {"a": {path: np.zeros(2, "f") for path in paths}, "b": {paths[0]: np.zeros(2, "f")}}
    mean = banks.average(banks.make_bank(params, adapters), ["a", "b"])
    assert list(lnt.partition_params(params, mean.config).trainable) == sorted(paths)
    lnt.save_adapter(tmp_path / "mean", *mean, base=params)


def test_soups_keep_what_helps():
    params, adapters, bank = make_small_bank("abcd")
    frozen, batch = banks.freeze_base(params, bank), make_batch(8)
    target = apply(lnt.merge_params(adapters["a"].trainable, frozen), batch["x"])
    tried = []

    def evaluate(leaves):
        tried.append(leaves)
        logits = apply(lnt.merge_params(leaves, frozen), batch["x"])
        return -jnp.square(logits - target).mean()

    soup = banks.greedy_soup(bank, evaluate)
    assert soup.names == ("a",)
    assert soup.score == soup.scores["a"] == 0
    assert same(soup.adapter.trainable, adapters["a"].trainable)
    assert len(tried) == 4 + 3
    constant = banks.greedy_soup(bank, lambda leaves: 1.0)
    assert constant.names == ("a", "b", "c", "d")
    assert same(constant.adapter.trainable, banks.uniform_soup(bank).trainable)
    assert banks.greedy_soup(bank, evaluate, ["c", "b"]).score >= max(
        soup.scores["b"], soup.scores["c"]
    )


def test_what_cannot_be_combined():
    params, _, bank = make_small_bank()
    for call, message in (
        (lambda: banks.weighted_sum(bank, {"a": float("nan")}), "finite numbers by name"),
        (lambda: banks.weighted_sum(bank, {}), "finite numbers by name"),
        (lambda: banks.weighted_sum(bank, {"a": "much"}), "finite numbers by name"),
        (lambda: banks.weighted_sum(bank, ["a"]), "finite numbers by name"),
        (lambda: banks.uniform_soup(banks.make_bank(params)), "the base alone"),
        (lambda: banks.greedy_soup(bank, len, ["a", "a"]), "each once"),
        (lambda: banks.greedy_soup(bank, len, "ab"), "no adapter 'ab'"),
        (lambda: banks.compare_adapters(bank, "ab"), "no adapter 'ab'"),
        (lambda: banks.interpolate(bank, "a", "b", "half"), "expected a finite number"),
        (lambda: banks.weighted_sum(bank, {"a": 1e300}), "too large for float32 in"),
        (lambda: banks.average(bank, ["a", "a"]), "each once"),
        (lambda: banks.average(bank, []), "each once"),
        (lambda: banks.interpolate(bank, "a", "b", float("inf")), "expected a finite number"),
        (lambda: banks.negate(bank, "z"), "no adapter 'z'"),
        (lambda: banks.compare_adapters(bank, paths=["x"]), "no leaf 'x'"),
        (lambda: banks.compare_adapters(banks.make_bank(params)), "the base alone"),
        (lambda: banks.greedy_soup(banks.make_bank(params), len), "the base alone"),
        (lambda: banks.greedy_soup(bank, lambda _: float("nan")), "evaluate gave NaN"),
    ):
        with pytest.raises(AdapterError, match=message):
            call()

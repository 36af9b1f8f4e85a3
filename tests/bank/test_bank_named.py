"""Named adapters as in PEFT, and the cases in which PEFT fails (peft#3574, peft#3423)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lntune_jax as lnt
from lntune_jax import bank as banks
from lntune_jax.errors import AdapterError
from tests.support.banks import CONFIG, make_adapter, make_small_bank, row_of, same
from tests.support.small import apply, make_batch, make_params

X = make_batch(4)["x"]


def active(bank, name, frozen):
    """The counterpart of set_adapter: the whole tree with one adapter in place."""
    return lnt.merge_params(banks.take_rows(bank, name), frozen)


def test_two_adapters_with_different_targets():
    """PEFT refuses the second (peft#3574)."""
    params = make_params()
    first = lnt.LNTuningConfig(target_modules=["ln_1"])
    last = lnt.LNTuningConfig(target_modules=["ln_f"], modules_to_save=["classifier"])
    adapters = {"first": make_adapter(params, 1, first), "last": make_adapter(params, 2, last)}
    bank = banks.make_bank(params, adapters)
    frozen = banks.freeze_base(params, bank)
    for name, adapter in adapters.items():
        own, rest = lnt.partition_params(params, adapter.config)
        expected = apply(lnt.merge_params(adapter.trainable, rest), X)
        assert own.keys() == adapter.trainable.keys()
        assert np.array_equal(apply(active(bank, name, frozen), X), expected)
    mixed = banks.apply_per_example(apply, bank, ["first", "last"] * 2, frozen, X)
    assert np.abs(mixed - apply(params, X)).max(axis=1).min() > 0.01


def test_an_adapter_added_while_another_is_active_starts_from_the_base():
    """In PEFT it starts from the values of the merged one (peft#3423)."""
    params, _, bank = make_small_bank("a")
    frozen = banks.freeze_base(params, bank)
    merged = active(bank, "a", frozen)
    new = lnt.partition_params(params, CONFIG).trainable
    bank = banks.add_adapter(bank, "new", new)
    assert same(row_of(bank, "new"), row_of(bank, "base"))
    assert np.array_equal(apply(active(bank, "new", frozen), X), apply(params, X))
    assert np.abs(apply(merged, X) - apply(params, X)).max() > 0.01


def test_disabling_gives_the_base_bit_for_bit():
    params, _, bank = make_small_bank("ab")
    frozen = banks.freeze_base(params, bank)
    active(bank, "a", frozen)
    disabled = active(bank, "base", frozen)
    jax.tree.map(np.testing.assert_array_equal, disabled, params)
    some = banks.apply_per_example(apply, bank, ["base", "a", "base", "b"], frozen, X)
    np.testing.assert_allclose(some[::2], apply(params, X)[::2], atol=1e-6)
    assert np.abs(some - apply(params, X))[1::2].max() > 0.01


def test_deleting_one_leaves_the_others_and_the_base():
    params, adapters, bank = make_small_bank("ab")
    frozen, before = banks.freeze_base(params, bank), apply(params, X)
    bank = banks.remove_adapter(bank, "a")
    assert same(banks.get_adapter(bank, "b").trainable, adapters["b"].trainable)
    assert np.array_equal(apply(active(bank, "base", frozen), X), before)


def test_an_adapter_trains_on_and_goes_back_under_its_name():
    params, adapters, bank = make_small_bank("ab")
    trainable, config = banks.get_adapter(bank, "a")
    frozen = lnt.partition_params(params, config).frozen

    def loss(trainable):
        return apply(lnt.merge_params(trainable, frozen), X).sum()

    grads = jax.grad(loss)(trainable)
    tuned = jax.tree.map(lambda leaf, grad: leaf - 0.1 * grad, trainable, grads)
    bank = banks.replace_adapter(bank, "a", lnt.Adapter(tuned, config))
    assert same(banks.get_adapter(bank, "a").trainable, tuned)
    assert same(banks.get_adapter(bank, "b").trainable, adapters["b"].trainable)


@pytest.mark.parametrize("ids", ["a", 1, np.int32(1), jnp.int32(1)])
@pytest.mark.parametrize("apply_many", [banks.apply_per_example, banks.apply_ensemble])
def test_one_id_is_no_batch(apply_many, ids):
    """As wide as the batch is long, so that the width would pass for the batch."""
    params = {"ln": {"scale": jnp.ones(4)}}
    bank = banks.make_bank(params, {"a": {"ln.scale": jnp.arange(4.0)}})
    frozen = banks.freeze_base(params, bank)
    with pytest.raises(AdapterError, match="without an axis: pass a sequence of ids or names"):
        apply_many(lambda p, x: x * p["ln"]["scale"], bank, ids, frozen, jnp.ones((4, 4)))

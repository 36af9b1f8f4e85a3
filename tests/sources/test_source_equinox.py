"""Equinox: modules that hold functions, Nones and static fields; filter_jit, partition, combine."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lntune_jax as lnt
from lntune_jax.errors import TreeError
from tests.support.small import relax
from tests.support.source_checks import (
    assert_moved_only,
    assert_same_bits,
    check_source,
    read_arrays,
    run_page,
)

CONFIG = lnt.LNTuningConfig()
X = jax.random.normal(jax.random.key(1), (8, 6))


class Block(eqx.Module):
    first: eqx.nn.LayerNorm  # a name that says nothing
    norm: eqx.nn.GroupNorm  # a name that misleads
    norm_mix: eqx.nn.Linear
    activation: object
    missing: object
    width: int = eqx.field(static=True)

    def __init__(self, key):
        self.first = eqx.nn.LayerNorm(6)
        self.norm = eqx.nn.GroupNorm(2, 6)
        self.norm_mix = eqx.nn.Linear(6, 6, key=key)
        self.activation, self.missing, self.width = jax.nn.gelu, None, 6

    def __call__(self, x):
        return x + self.norm(self.activation(self.norm_mix(self.first(x))))


class Model(eqx.Module):
    blocks: list
    stack: Block  # two more, made by filter_vmap and run by scan
    last: eqx.nn.RMSNorm
    plain: eqx.nn.LayerNorm  # has no leaves at all
    head: eqx.nn.Linear
    name: str = "a string"

    def __init__(self, seed=0):
        keys = jax.random.split(jax.random.key(seed), 4)
        self.blocks = [Block(keys[0])]
        self.stack = eqx.filter_vmap(Block)(keys[1:3])
        self.last = eqx.nn.RMSNorm(6)
        self.plain = eqx.nn.LayerNorm(6, use_weight=False, use_bias=False)
        self.head = eqx.nn.Linear(6, 2, key=keys[3])

    def __call__(self, x):
        for block in self.blocks:
            x = block(x)
        arrays, static = eqx.partition(self.stack, eqx.is_array)

        def layer(x, arrays):
            return eqx.combine(arrays, static)(x), None

        x, _ = jax.lax.scan(layer, x, arrays)
        return self.head(self.plain(self.last(x)))


def loss_of(model):
    return jnp.square(jax.vmap(model)(X) - 1).mean()


def list_norms(model):
    """The leaves of Equinox's own norms, by type: the truth to compare with."""
    norms = (eqx.nn.LayerNorm, eqx.nn.RMSNorm)
    found, _ = jax.tree_util.tree_flatten_with_path(model, is_leaf=lambda x: isinstance(x, norms))
    return {
        f"{jax.tree_util.keystr(path, simple=True, separator='.')}.{name}"
        for path, module in found
        if isinstance(module, norms)
        for name in ("weight", "bias")
        if getattr(module, name) is not None
    }


def test_which_leaves():
    model = Model()
    expected = list_norms(model)
    assert len(expected) == 2 + 2 + 2  # a block, the stack, the last
    trainable, frozen = lnt.partition_params(model, CONFIG)
    assert set(trainable) == expected
    assert trainable["stack.first.weight"].shape == (2, 6)
    assert isinstance(frozen, Model)
    assert frozen.blocks[0].activation is jax.nn.gelu
    assert frozen.name == "a string"
    assert lnt.norm_modules(model) >= {"blocks.0.first", "stack.first", "last"}
    arrays, _ = eqx.partition(model, eqx.is_array)
    assert set(lnt.partition_params(arrays, CONFIG).trainable) == expected
    abstract = eqx.filter_eval_shape(Model)
    assert set(lnt.partition_params(abstract, CONFIG).trainable) == expected


def test_tuning_and_the_adapter(tmp_path):
    """The arrays alone go through jax.jit; functions stay outside."""
    arrays, static = eqx.partition(Model(), eqx.is_array)
    fresh, _ = eqx.partition(Model(), eqx.is_array)

    def apply(arrays):
        return jax.vmap(eqx.combine(arrays, static))(X)

    def loss_fn(arrays):
        return loss_of(eqx.combine(arrays, static))

    paths = check_source(tmp_path, arrays, fresh, loss_fn, apply, CONFIG)
    assert paths == sorted(list_norms(Model()))
    # The adapter fits the module with its functions too.
    whole = lnt.restore_adapter(tmp_path / "adapter", Model())
    restored = lnt.restore_adapter(tmp_path / "adapter", fresh)
    assert whole.blocks[0].activation is jax.nn.gelu
    assert_same_bits(read_arrays(whole), read_arrays(restored))


def test_filter_jit_takes_both_halves_with_their_functions():
    model = Model()
    before = read_arrays(model)
    trainable, frozen = lnt.partition_params(model, CONFIG)
    tx = relax(optax.adam(3e-2))
    opt_state, compiled = tx.init(trainable), []

    @eqx.filter_jit
    def step(trainable, opt_state, frozen):
        compiled.append(1)
        loss, grads = lnt.value_and_grad(loss_of)(trainable, frozen)
        updates, opt_state = tx.update(grads, opt_state, trainable)
        return eqx.apply_updates(trainable, updates), opt_state, loss

    losses = []
    for _ in range(12):
        trainable, opt_state, loss = step(trainable, opt_state, frozen)
        losses.append(float(loss))
    assert losses[-1] < 0.95 * losses[0]
    assert len(compiled) == 1
    merged = lnt.merge_params(trainable, frozen)
    assert jax.tree.structure(merged) == jax.tree.structure(model)
    named = {f".{path}".replace(".0.", "[0].") for path in trainable}
    assert_moved_only(before, read_arrays(merged), named)


def test_a_filter_spec_for_equinox_s_own_loop():
    """Labels as booleans: what eqx.partition and eqx.filter_value_and_grad's users have."""
    model = Model()
    labels = lnt.label_params(model, CONFIG)
    spec = jax.tree.map(lambda label: label == "trainable", labels)
    mine, rest = eqx.partition(model, spec)
    trainable, _ = lnt.partition_params(model, CONFIG)
    for found, expected in zip(jax.tree.leaves(mine), trainable.values(), strict=True):
        assert found is expected

    @eqx.filter_jit
    @eqx.filter_value_and_grad
    def gradient(mine, rest):
        return loss_of(eqx.combine(mine, rest))

    _, grads = gradient(mine, rest)
    gradient = eqx.filter_jit(lnt.value_and_grad(loss_of))
    _, expected = gradient(*lnt.partition_params(model, CONFIG))
    for found, path in zip(jax.tree.leaves(grads), trainable, strict=True):
        np.testing.assert_allclose(found, expected[path], rtol=1e-5, atol=1e-7)


def test_functions_in_a_compiled_step_are_refused_with_the_cure():
    trainable, frozen = lnt.partition_params(Model(), CONFIG)
    tx = optax.sgd(0.1)
    step = lnt.make_train_step(loss_of, tx, CONFIG)
    with pytest.raises(TreeError, match=r"eqx\.partition\(frozen, eqx\.is_array\)"):
        step(lnt.TrainState.create(trainable, tx), frozen)


def test_the_page(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {"make_model": Model, "x": X, "y": jnp.ones((8, 2))}
    names = run_page("equinox", names)
    apply = eqx.filter_jit(lambda model: jax.vmap(model)(X))
    tuned = lnt.merge_params(names["trainable"], names["frozen"])
    np.testing.assert_array_equal(apply(names["restored"]), apply(tuned))

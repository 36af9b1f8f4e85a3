"""Flax Linen: params, variables, FrozenDict, nn.scan, nn.remat, and flax.training's TrainState."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax.core import FrozenDict, freeze
from flax.training.train_state import TrainState

import lntune_jax as lnt
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


class Block(nn.Module):
    @nn.compact
    def __call__(self, x):
        y = nn.LayerNorm(name="first")(x)  # a name that says nothing
        y = nn.BatchNorm(use_running_average=True, name="norm")(y)  # a name that misleads
        y = nn.Dense(6, name="norm_mix")(y)
        return x + nn.GroupNorm(num_groups=2, name="groups")(nn.gelu(y))


class Step(nn.Module):
    """A block as nn.scan wants it."""

    @nn.compact
    def __call__(self, x, _):
        return Block()(x), None


def plain(x):
    return Block()(Block()(x))


def remat(x):
    block = nn.remat(Block)
    return block()(block()(x))


def scan(x):
    axes = {"params": 0, "batch_stats": 0}
    layers = nn.scan(Step, variable_axes=axes, split_rngs={"params": True}, length=3)
    return layers(name="layers")(x, None)[0]


def remat_scan(x):
    axes = {"params": 0, "batch_stats": 0}
    layers = nn.scan(nn.remat(Step), variable_axes=axes, split_rngs={"params": True}, length=3)
    return layers(name="layers")(x, None)[0]


BODIES = {body.__name__: body for body in (plain, remat, scan, remat_scan)}
NORMS = {
    "plain": {"Block_0.first", "Block_1.first", "RMSNorm_0"},
    "remat": {"CheckpointBlock_0.first", "CheckpointBlock_1.first", "RMSNorm_0"},
    "scan": {"layers.Block_0.first", "RMSNorm_0"},
    "remat_scan": {"layers.Block_0.first", "RMSNorm_0"},
}


class Model(nn.Module):
    body: str = "plain"

    @nn.compact
    def __call__(self, x):
        return nn.Dense(2, name="head")(nn.RMSNorm()(BODIES[self.body](x)))


def make(body="plain"):
    model = Model(body)
    return model, jax.jit(model.init)(jax.random.key(0), X)


def list_leaves(norms):
    leaves = {f"{module}.scale" for module in norms}
    return leaves | {f"{module}.bias" for module in norms if "RMSNorm" not in module}


def make_functions(model, wrap):
    def apply(params):
        return model.apply(wrap(params), X)

    return lambda params: jnp.square(apply(params) - 1).mean(), apply


@pytest.mark.parametrize(
    ("body", "container"),
    [
        ("plain", "variables"),
        ("remat", "frozen params"),
        ("scan", "params"),
        ("remat_scan", "frozen variables"),
    ],
)
def test_each_body_in_a_container(tmp_path, body, container):
    model, variables = make(body)
    norms = lnt.norm_modules(model, X)
    assert norms == NORMS[body]
    tree = freeze(variables) if "frozen" in container else variables
    whole = tree
    if "params" in container:
        tree = tree["params"]

    def wrap(tree):
        return {**whole, "params": tree} if "params" in container else tree

    loss_fn, apply = make_functions(model, wrap)
    fresh = jax.tree.map(jnp.array, tree)
    paths = check_source(tmp_path, tree, fresh, loss_fn, apply, CONFIG, norms=norms)
    assert paths == sorted(list_leaves(NORMS[body]))
    if "frozen" in container:
        assert isinstance(lnt.restore_adapter(tmp_path / "adapter", fresh), FrozenDict)


def test_by_names_alone_where_names_say_it():
    class Named(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.BatchNorm(use_running_average=True)(nn.Dense(6)(nn.LayerNorm()(x)))
            x = nn.BatchNorm(use_running_average=True, name="norm1")(x)
            return nn.RMSNorm()(nn.GroupNorm(num_groups=2)(x))

    model = Named()
    variables = jax.eval_shape(model.init, jax.random.key(0), X)
    named = set(lnt.partition_params(variables, CONFIG).trainable)
    assert named == {"LayerNorm_0.scale", "LayerNorm_0.bias", "RMSNorm_0.scale"}
    typed = lnt.partition_params(variables, CONFIG, norms=lnt.norm_modules(model, X))
    assert set(typed.trainable) == named
    # Without the statistics nobody can tell, which the page says.
    alone = set(lnt.partition_params(variables["params"], CONFIG).trainable)
    assert alone == named | {"norm1.scale", "norm1.bias"}


def test_other_collections_stay_as_they_are():
    model, variables = make()
    variables = {**variables, "cache": {"norm": {"scale": jnp.ones(6)}}, "own": {"ln": jnp.ones(6)}}
    norms = lnt.norm_modules(model, X)
    trainable, frozen = lnt.partition_params(variables, CONFIG, norms=norms)
    changed = {path: leaf + 1 for path, leaf in trainable.items()}
    merged = lnt.merge_params(changed, frozen)
    for collection in ("batch_stats", "cache", "own"):
        before, after = (jax.tree.leaves(tree[collection]) for tree in (variables, merged))
        assert all(x is y for x, y in zip(before, after, strict=True)), collection
    report = lnt.report_params(variables, CONFIG, norms=norms)
    assert report.total == sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))


def test_a_mutable_collection_is_carried_over_as_aux():
    class Trained(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.LayerNorm()(x)
            return nn.Dense(2)(nn.BatchNorm(use_running_average=False)(x))

    model = Trained()
    variables = jax.jit(model.init)(jax.random.key(0), X)
    trainable, frozen = lnt.partition_params(variables["params"], CONFIG)

    def loss_fn(params, statistics):
        out, new = model.apply({"params": params, **statistics}, X, mutable=["batch_stats"])
        return jnp.square(out - 1).mean(), new

    tx = relax(optax.sgd(0.1))
    step = lnt.make_train_step(loss_fn, tx, CONFIG, has_aux=True)
    state = lnt.TrainState.create(trainable, tx)
    statistics = {"batch_stats": variables["batch_stats"]}
    state, metrics = step(state, frozen, statistics)
    _, expected = jax.jit(lambda v: model.apply(v, X, mutable=["batch_stats"]))(variables)
    found = metrics["aux"]["batch_stats"]["BatchNorm_0"]
    for name, value in expected["batch_stats"]["BatchNorm_0"].items():
        np.testing.assert_allclose(found[name], value, rtol=1e-6)


def test_train_state_of_flax(tmp_path):
    model, variables = make("remat_scan")
    norms = lnt.norm_modules(model, X)
    statistics = variables["batch_stats"]
    before = read_arrays(variables["params"])
    tx = lnt.make_optimizer(relax(optax.adam(3e-2)), CONFIG, norms=norms)
    state = TrainState.create(apply_fn=model.apply, params=variables["params"], tx=tx)
    trainable, _ = lnt.partition_params(state.params, CONFIG, norms=norms)
    trained = sum(leaf.nbytes for leaf in trainable.values())
    held = sum(leaf.nbytes for leaf in jax.tree.leaves(state.opt_state))
    assert held == 2 * trained + 4  # two moments, and the count of steps

    @jax.jit
    def step(state):
        def loss_fn(params):
            out = state.apply_fn({"params": params, "batch_stats": statistics}, X)
            return jnp.square(out - 1).mean()

        loss, grads = jax.value_and_grad(loss_fn)(state.params)
        with jax.numpy_dtype_promotion("standard"):  # Flax counts steps in Python's integers
            return state.apply_gradients(grads=grads), loss

    losses = []
    for _ in range(15):
        state, loss = step(state)
        losses.append(float(loss))
    assert losses[-1] < 0.95 * losses[0]
    labels = lnt.label_params(state.params, CONFIG, norms=norms)
    named, _ = jax.tree_util.tree_flatten_with_path(labels)
    trains = [jax.tree_util.keystr(path) for path, label in named if label == "trainable"]
    assert_moved_only(before, read_arrays(state.params), trains)

    trainable, _ = lnt.partition_params(state.params, CONFIG, norms=norms)
    path = lnt.save_adapter(tmp_path / "adapter", trainable, CONFIG, base=state.params, norms=norms)
    restored = lnt.restore_adapter(path, make("remat_scan")[1]["params"])
    assert_same_bits(read_arrays(restored), read_arrays(state.params))


def test_the_adapter_of_params_fits_the_variables(tmp_path):
    model, variables = make()
    norms = lnt.norm_modules(model, X)
    trainable, _ = lnt.partition_params(variables["params"], CONFIG, norms=norms)
    changed = {path: leaf + 1 for path, leaf in trainable.items()}
    path = lnt.save_adapter(
        tmp_path / "adapter", changed, CONFIG, base=variables["params"], norms=norms
    )
    restored = lnt.restore_adapter(path, freeze(variables))
    assert restored["params"]["Block_0"]["first"]["scale"].tolist() == [2.0] * 6
    assert isinstance(restored, FrozenDict)


def test_the_page(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model, _ = make()
    names = run_page("linen", {"model": model, "x": X, "y": jnp.ones((8, 2))})
    restored = {**names["variables"], "params": names["restored"]}
    tuned = {**names["variables"], "params": names["state"].params}
    apply = jax.jit(model.apply)
    np.testing.assert_array_equal(apply(restored, X), apply(tuned, X))

"""Flax NNX: the filter of a config, where NNX takes filters, and what must not change."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import lntune_jax as lnt
from lntune_jax.errors import ConfigError, SelectionError, TreeError
from tests.support.nnx_paths import list_norms, list_paths
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


class Scale(nnx.Module):
    """A norm of a person's own: known by its name and shape."""

    def __init__(self, width):
        self.weight = nnx.Param(jnp.ones(width))

    def __call__(self, x):
        return x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + 1e-6) * self.weight[...]


class Block(nnx.Module):
    def __init__(self, rngs):
        self.first = nnx.LayerNorm(6, rngs=rngs)  # a name that says nothing
        self.norm = nnx.BatchNorm(6, rngs=rngs)  # a name that misleads
        self.norm_mix = nnx.Linear(6, 6, rngs=rngs)
        self.ln_group = nnx.GroupNorm(6, num_groups=2, rngs=rngs)
        self.dropout = nnx.Dropout(0.1, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(2, 6, decode=False, normalize_qk=True, rngs=rngs)

    def __call__(self, x):
        x = x + self.dropout(self.norm_mix(self.norm(self.first(x))))
        return x + self.attention(self.ln_group(x)[None])[0]


class Model(nnx.Module):
    def __init__(self, seed=0):
        rngs = nnx.Rngs(seed)
        self.blocks = nnx.List([Block(rngs)])
        self.last_norm = Scale(6)
        self.head = nnx.Linear(6, 2, rngs=rngs)

    def __call__(self, x):
        for block in self.blocks:
            x = block(x)
        return self.head(self.last_norm(x))


def loss_fn(model):
    return jnp.square(model(X) - jnp.ones((8, 2))).mean()


def test_the_filter_is_what_partition_params_selects():
    model = Model()
    chosen = lnt.integrations.nnx.make_filter(CONFIG, model)
    expected = list_norms(model) | {"last_norm.weight"}
    assert len(expected) == 5  # first: 2, query_ln and key_ln: 1 each, last_norm: 1
    assert list_paths(nnx.state(model, chosen)) == expected
    assert set(lnt.partition_params(model, CONFIG).trainable) == expected
    _, mine, rest = nnx.split(model, chosen, ...)
    assert list_paths(mine) == expected
    assert list_paths(mine) | list_paths(rest) == list_paths(nnx.state(model))


@pytest.mark.parametrize(
    "config",
    [
        lnt.LNTuningConfig(target_modules=["first"]),
        lnt.LNTuningConfig(target_modules=r"blocks\.0\..*"),
        lnt.LNTuningConfig(target_modules=["ln_group"]),  # a GroupNorm, named
        lnt.LNTuningConfig(exclude_modules=["blocks.0.first"]),
        lnt.LNTuningConfig(modules_to_save=["head"]),
        lnt.LNTuningConfig(target_modules=r".*\.scale"),
    ],
)
def test_they_agree_for_every_config(config):
    model = Model()
    found = list_paths(nnx.state(model, lnt.integrations.nnx.make_filter(config, model)))
    assert found == set(lnt.partition_params(model, config).trainable)


def test_by_names_where_there_is_a_state_alone():
    model = Model()
    state = nnx.state(model)
    config = lnt.LNTuningConfig(
        target_modules=[".*query_ln", "last_norm"], exclude_modules=["first"]
    )
    chosen = lnt.integrations.nnx.make_filter(config, state)
    assert list_paths(nnx.state(model, chosen)) == set(
        lnt.partition_params(state, config).trainable
    )
    typed = lnt.integrations.nnx.make_filter(CONFIG, state, norms=lnt.norm_modules(model))
    assert list_paths(nnx.state(model, typed)) == list_norms(model)


def test_an_abstract_model_gives_the_same_filter():
    abstract = nnx.eval_shape(Model)
    chosen = lnt.integrations.nnx.make_filter(CONFIG, abstract)
    assert chosen == lnt.integrations.nnx.make_filter(CONFIG, Model())
    assert hash(chosen) == hash(lnt.integrations.nnx.make_filter(CONFIG, Model(3)))


def train(model, optimizer, steps=12):
    """By `nnx.DiffState`, which takes the filter in graph mode alone."""
    with nnx.set_graph_mode(True), nnx.set_graph_updates(True):

        @nnx.jit
        def step(model, optimizer):
            wrt = nnx.DiffState(0, optimizer.wrt)
            loss, grads = nnx.value_and_grad(loss_fn, argnums=wrt)(model)
            optimizer.update(model, grads)
            return loss

        return [float(step(model, optimizer)) for _ in range(steps)]


def test_nnx_s_own_optimizer_moves_norms_alone():
    model = Model()
    model.eval()  # statistics and random state are read, not written
    before = read_arrays(nnx.state(model))
    optimizer = lnt.integrations.nnx.make_optimizer(model, relax(optax.adam(3e-2)), CONFIG)
    losses = train(model, optimizer)
    assert losses[-1] < 0.95 * losses[0]
    chosen = nnx.state(model, optimizer.wrt)
    assert_moved_only(before, read_arrays(nnx.state(model)), read_arrays(chosen))
    trained = sum(leaf.nbytes for leaf in jax.tree.leaves(chosen))
    held = sum(leaf.nbytes for leaf in jax.tree.leaves(optimizer.opt_state))
    assert held == 2 * trained + 4  # two moments, and the count of steps


def test_statistics_and_random_state_are_the_model_s_own():
    """In training mode the model writes them itself; neither half's update touches them."""
    model, other = Model(), Model()
    optimizer = lnt.integrations.nnx.make_optimizer(model, relax(optax.sgd(0.0)), CONFIG)
    train(model, optimizer, steps=2)
    forward = nnx.jit(loss_fn)
    for _ in range(2):
        forward(other)
    ours, theirs = (read_arrays(nnx.state(m, nnx.Not(nnx.Param))) for m in (model, other))
    assert ours.keys() == theirs.keys()
    for path, value in theirs.items():
        np.testing.assert_allclose(ours[path], value, rtol=1e-5, err_msg=path)
    assert any("mean" in path for path in ours)
    assert any("count" in path for path in ours)


def make_evaluated(seed=0):
    model = Model(seed)
    model.eval()
    return model


def test_tuning_and_the_adapter(tmp_path):
    """The split form: the module as a tree, in the library's own step."""

    def apply(model):
        return model(X)

    paths = check_source(tmp_path, make_evaluated(), make_evaluated(), loss_fn, apply, CONFIG)
    assert paths == sorted(list_norms(Model()) | {"last_norm.weight"})


def test_an_adapter_saved_from_a_state_fits_the_plain_dict_of_it(tmp_path):
    """That holds the counts of random streams, and does not say that they are no weights."""

    class Model(nnx.Module):
        def __init__(self, rngs):
            self.norm = nnx.LayerNorm(4, rngs=rngs)
            self.fc = nnx.Linear(4, 4, rngs=rngs)
            self.drop = nnx.Dropout(0.1, rngs=rngs)

    config, state = lnt.LNTuningConfig(), nnx.state(Model(nnx.Rngs(0)))
    plain = nnx.to_pure_dict(state)
    counts = [path for path, _ in nnx.traversals.flatten_mapping(plain).items() if "count" in path]
    assert counts
    trainable, _ = lnt.partition_params(state, config)
    path = lnt.save_adapter(tmp_path / "a", trainable, config, base=state)
    assert lnt.restore_adapter(path, plain)["norm"]["scale"].tolist() == [1.0] * 4
    path = lnt.save_adapter(tmp_path / "b", trainable, config, base=plain)
    assert isinstance(lnt.restore_adapter(path, state), nnx.State)


def test_a_state_is_updated_in_place(tmp_path):
    model = make_evaluated()
    norms = lnt.norm_modules(model)
    graphdef, state = nnx.split(model)

    def apply(state):
        return nnx.merge(graphdef, state)(X)

    def loss(state):
        return jnp.square(apply(state) - 1).mean()

    check_source(tmp_path, state, nnx.state(make_evaluated()), loss, apply, CONFIG, norms=norms)
    fresh = make_evaluated()
    chosen = lnt.integrations.nnx.make_filter(CONFIG, state, norms=norms)
    nnx.update(fresh, lnt.restore_adapter(tmp_path / "adapter", nnx.state(fresh)))
    assert_moved_only(
        read_arrays(state), read_arrays(nnx.state(fresh)), read_arrays(nnx.state(fresh, chosen))
    )


def test_what_is_no_model_is_refused():
    for wrong in ({"ln": {"scale": jnp.ones(2)}}, None, nnx.LayerNorm):
        with pytest.raises(TreeError, match=r"needs an nnx\.Module or its nnx\.State, not"):
            lnt.integrations.nnx.make_filter(CONFIG, wrong)
    with pytest.raises(TreeError, match=r"make_optimizer needs an nnx\.Module, not State"):
        lnt.integrations.nnx.make_optimizer(nnx.state(Model()), optax.sgd(1.0), CONFIG)
    with pytest.raises(ConfigError, match="inference_mode"):
        lnt.integrations.nnx.make_optimizer(
            Model(), optax.sgd(1.0), CONFIG.replace(inference_mode=True)
        )
    with pytest.raises(SelectionError, match="nothing trains"):
        lnt.integrations.nnx.make_filter(CONFIG, nnx.Linear(2, 2, rngs=nnx.Rngs(0)))


@pytest.mark.parametrize("graph_mode", [True, False], ids=["graph mode", "tree mode"])
def test_the_page(tmp_path, monkeypatch, graph_mode):
    """The loop of the page carries statistics and random state, and moves norms alone."""
    monkeypatch.chdir(tmp_path)

    def make_model():
        rngs = nnx.Rngs(0)
        layers = nnx.LayerNorm(6, rngs=rngs), nnx.BatchNorm(6, rngs=rngs)
        return nnx.Sequential(*layers, nnx.Dropout(0.1, rngs=rngs), nnx.Linear(6, 2, rngs=rngs))

    before = read_arrays(nnx.state(make_model()))
    with nnx.set_graph_mode(graph_mode), nnx.set_graph_updates(graph_mode):
        names = run_page("nnx", {"make_model": make_model, "x": X, "y": jnp.ones((8, 2))})
    model, chosen = names["model"], names["norms"]
    norms = read_arrays(nnx.state(model, chosen))
    statistics = read_arrays(nnx.state(model, nnx.Any(nnx.BatchStat, nnx.RngCount)))
    assert (len(norms), len(statistics)) == (2, 3)
    assert_moved_only(before, read_arrays(nnx.state(model)), norms | statistics)
    assert_same_bits(read_arrays(nnx.state(names["restored"], chosen)), norms)

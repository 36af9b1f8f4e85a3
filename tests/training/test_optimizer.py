"""The whole-tree optimizer: frozen leaves bitwise unchanged, state for trainable leaves only."""

import cProfile
import pstats
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lntune_jax as lnt
from lntune_jax.errors import ArgumentError, ConfigError, TreeError, UnmatchedPatternWarning
from lntune_jax.precision import MastersState
from tests.support.small import loss_fn, make_batch, make_params, relax
from tests.support.trees import norm

CONFIG = lnt.LNTuningConfig(modules_to_save=["classifier"])
HEAD = lnt.LNTuningConfig(modules_to_save=["head"])
OPTIMIZERS = {
    "sgd with a learning rate of 1": optax.sgd(1.0),
    "adamw with weight decay": optax.adamw(1e-2, weight_decay=0.1),
    "clipping": optax.chain(optax.clip_by_global_norm(0.1), optax.adam(1e-2)),
    "accumulation": optax.MultiSteps(optax.adam(1e-2), 2),
    "if finite": optax.apply_if_finite(optax.adam(1e-2), 3),
    "ours": lnt.adamw(CONFIG, 1e-2, head_learning_rate=1e-3, weight_decay=0.1, clip_norm=1.0),
    "schedule": optax.adamw(optax.warmup_cosine_decay_schedule(0, 1e-2, 2, 10)),
}


def run_whole_tree(tx, params, steps=4, under_jit=True):
    def step(params, state, batch):
        grads = jax.grad(loss_fn)(params, batch)
        updates, state = tx.update(grads, state, params)
        with jax.numpy_dtype_promotion("standard"):
            return optax.apply_updates(params, updates), state

    step = jax.jit(step) if under_jit else step
    state = tx.init(params)
    for index in range(steps):
        params, state = step(params, state, make_batch(seed=index))
    return params, state


def run_split(tx, params, steps=4):
    trainable, frozen = lnt.partition_params(params, CONFIG)
    state = tx.init(trainable)
    for index in range(steps):
        _, grads = lnt.value_and_grad(loss_fn)(trainable, frozen, make_batch(seed=index))
        updates, state = tx.update(grads, state, trainable)
        trainable = optax.apply_updates(trainable, updates)
    return trainable, state


def count(tree):
    return sum(np.size(leaf) for leaf in jax.tree.leaves(tree) if np.ndim(leaf))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_frozen_leaves_stay_bitwise_and_updates_equal_the_split(name):
    tx = relax(OPTIMIZERS[name])
    params = make_params()
    params["layers"]["0"]["up"]["bias"] = params["layers"]["0"]["up"]["bias"].at[0].set(-0.0)
    new, state = run_whole_tree(relax(lnt.make_optimizer(tx, CONFIG)), params)
    trainable, frozen = lnt.partition_params(new, CONFIG)
    for was, now in zip(
        jax.tree.leaves(lnt.partition_params(params, CONFIG).frozen),
        jax.tree.leaves(frozen),
        strict=True,
    ):
        assert np.asarray(was).tobytes() == np.asarray(now).tobytes()
    expected, split_state = run_split(tx, params)
    for path, leaf in expected.items():
        np.testing.assert_allclose(trainable[path], leaf, rtol=2e-5, atol=2e-6, err_msg=path)
        assert np.any(np.asarray(leaf) != np.asarray(lnt.partition_params(params, CONFIG)[0][path]))
    assert count(state) == count(split_state)


def test_minus_zero_survives_outside_jit():
    params = {"ln": {"scale": jnp.ones(2)}, "w": jnp.array([-0.0, 0.0]), "n": jnp.arange(2)}
    tx = lnt.make_optimizer(optax.sgd(1.0), lnt.LNTuningConfig())
    updates, _ = tx.update(jax.tree.map(jnp.ones_like, params), tx.init(params), params)
    new = optax.apply_updates(params, updates)
    assert np.asarray(new["w"]).tobytes() == np.asarray(params["w"]).tobytes()
    np.testing.assert_array_equal(new["n"], [0, 1])


def test_the_state_holds_trainable_leaves_only():
    params = make_params()
    trainable = lnt.partition_params(params, CONFIG).trainable
    elements = count(trainable)
    assert count(relax(lnt.make_optimizer(optax.adamw(1e-3), CONFIG)).init(params)) == 2 * elements
    narrow = make_params("bfloat16")  # and one float32 residual for each narrow leaf
    tx = relax(lnt.make_optimizer(optax.adamw(1e-3), CONFIG))
    assert count(tx.init(narrow)) == 3 * elements


def test_keeps_bfloat16_trees_moving():
    """Steps of 1e-4 on a bfloat16 tree: lost by Optax alone, kept by ours."""
    params = grads = {"ln": {"scale": jnp.ones(8, "bfloat16")}}
    ends = {}
    for name, tx in {
        "plain": optax.adam(1e-4),
        "ours": lnt.make_optimizer(optax.adam(1e-4), lnt.LNTuningConfig()),
    }.items():
        tx, tree = relax(tx), params
        state = tx.init(tree)
        for _ in range(100):
            updates, state = tx.update(grads, state, tree)
            with jax.numpy_dtype_promotion("standard"):
                tree = optax.apply_updates(tree, updates)
        assert tree["ln"]["scale"].dtype == jnp.bfloat16
        ends[name] = float(tree["ln"]["scale"][0])
    assert ends["plain"] == 1.0
    assert ends["ours"] == float(jnp.bfloat16(1.0 - 100 * 1e-4))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_masters_follow_the_float32_run_under_jit(dtype):
    """The leaf and what rounding took from it are the float32 run, step for step."""
    config, rate = lnt.LNTuningConfig(), 1e-3
    tx = relax(lnt.make_optimizer(optax.adam(rate), config))
    ends, states = [], []
    for kind in ("float32", dtype):
        tree = {"ln": {"scale": jnp.ones(64, kind), "bias": jnp.zeros(64, kind)}}

        def step(carry, key):
            tree, state = carry
            grads = jax.tree.map(
                lambda leaf: jax.random.normal(key, leaf.shape).astype(leaf.dtype), tree
            )
            # The same gradients in both runs: those that the narrow dtype can hold.
            grads = jax.tree.map(lambda g: g.astype(dtype).astype(g.dtype), grads)
            updates, state = tx.update(grads, state, tree)
            with jax.numpy_dtype_promotion("standard"):
                return (optax.apply_updates(tree, updates), state), None

        keys = jax.random.split(jax.random.key(0), 300)
        (tree, state), _ = jax.jit(lambda carry, k, f=step: jax.lax.scan(f, carry, k))(
            (tree, tx.init(tree)), keys
        )
        ends.append(jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), tree))
        states.append(state)
    (masters,) = (
        leaf
        for leaf in jax.tree.leaves(states[1], is_leaf=lambda x: isinstance(x, MastersState))
        if isinstance(leaf, MastersState)
    )
    for name in ("bias", "scale"):
        exact = ends[1]["ln"][name] + np.asarray(masters.residuals["ln"][name])
        np.testing.assert_allclose(exact, ends[0]["ln"][name], rtol=1e-5, atol=1e-6)
        assert np.any(ends[1]["ln"][name] != ends[0]["ln"][name])  # the tree itself is rounded


def test_masters_follow_a_leaf_that_somebody_else_changed():
    tx = lnt.make_optimizer(optax.sgd(1e-3), lnt.LNTuningConfig())
    params = {"ln": {"scale": jnp.ones(4, "bfloat16")}}
    grads = {"ln": {"scale": jnp.ones(4, "bfloat16")}}
    updates, state = tx.update(grads, tx.init(params), params)
    updates, _ = tx.update(grads, state, {"ln": {"scale": jnp.full(4, 2.0, "bfloat16")}})
    assert abs(float(updates["ln"]["scale"][0])) < 0.02


def test_needs_params_only_where_a_leaf_is_narrow():
    config = lnt.LNTuningConfig()
    tx = lnt.make_optimizer(optax.sgd(1e-3), config)
    wide, narrow = ({"ln": {"scale": jnp.ones(4, dtype)}} for dtype in ("float32", "bfloat16"))
    tx.update(wide, tx.init(wide))
    with pytest.raises(TreeError, match=r"tx\.update\(grads, state, params\)"):
        tx.update(narrow, tx.init(narrow))


def test_refuses_a_config_for_inference():
    config = lnt.LNTuningConfig(inference_mode=True)
    with pytest.raises(ConfigError, match=r"config\.replace\(inference_mode=False\)"):
        lnt.make_optimizer(optax.sgd(1.0), config)


def test_warns_once_of_an_unmatched_pattern():
    params = {"ln": {"scale": jnp.ones(4)}}
    tx = lnt.make_optimizer(optax.sgd(1.0), lnt.LNTuningConfig(exclude_modules=["missing"]))
    with pytest.warns(UnmatchedPatternWarning, match="missing"):
        state = tx.init(params)
    tx.update(params, state, params)  # warnings are errors here


class TestAdamW:
    trainable = {  # noqa: RUF012  # never changed
        "ln.scale": jnp.ones(4),
        "ln.bias": jnp.ones(4),
        "head.kernel": jnp.ones((4, 2)),
        "head.bias": jnp.ones(2),
    }

    def one_step(self, config=HEAD, **settings):
        tx = relax(lnt.adamw(config, 1e-3, **settings))
        zeros = jax.tree.map(jnp.zeros_like, self.trainable)
        updates, _ = tx.update(zeros, tx.init(self.trainable), self.trainable)
        return {path: float(jnp.ravel(leaf)[0]) for path, leaf in updates.items()}

    def test_decays_kernels_of_saved_modules_only(self):
        updates = self.one_step(weight_decay=0.1)
        assert updates.pop("head.kernel") == pytest.approx(-1e-4)
        assert set(updates.values()) == {0.0}

    def test_decays_norms_on_request(self):
        assert self.one_step(norm_weight_decay=0.1)["ln.scale"] == pytest.approx(-1e-4)

    def test_the_config_tells_norms_from_heads(self):
        config = lnt.LNTuningConfig(modules_to_save=["ln"])
        updates = self.one_step(head_learning_rate=1e-2, norm_weight_decay=0.1, config=config)
        assert updates["ln.scale"] == 0.0
        assert updates["head.kernel"] == pytest.approx(-1e-4)

    def test_clips_over_all_trainable_leaves_together(self):
        tx = relax(lnt.adamw(HEAD, 1.0, clip_norm=1.0, b1=0.0, b2=0.0, eps=1.0))
        grads = jax.tree.map(lambda leaf: 100 * jnp.ones_like(leaf), self.trainable)
        updates, _ = tx.update(grads, tx.init(self.trainable), self.trainable)
        clipped = 1 / np.sqrt(18)  # 18 equal entries of a vector of length 1
        assert float(updates["ln.scale"][0]) == pytest.approx(-clipped / (1 + clipped))


def test_equinox_trees_and_float0_gradients():
    import equinox as eqx

    class Model(eqx.Module):
        ln: eqx.nn.LayerNorm
        table: jax.Array
        linear: eqx.nn.Linear

        def __call__(self, x):
            return self.linear(self.ln(x))

    model = Model(eqx.nn.LayerNorm(4), jnp.arange(3), eqx.nn.Linear(4, 2, key=jax.random.key(0)))
    params = eqx.filter(model, eqx.is_array)
    tx = lnt.make_optimizer(optax.sgd(1.0), lnt.LNTuningConfig())
    state = tx.init(params)
    grads = jax.grad(lambda m: m(jnp.arange(4.0)).sum(), allow_int=True)(params)
    updates, _ = tx.update(grads, state, params)
    assert not np.any(np.asarray(updates.linear.weight))
    assert np.any(np.asarray(updates.ln.weight))


def test_labels_go_into_multi_transform():
    params = {"ln": norm(), "w": {"kernel": jnp.ones((4, 4))}}
    labels = lnt.label_params(params, lnt.LNTuningConfig())
    assert labels == {
        "ln": {"scale": "trainable", "bias": "trainable"},
        "w": {"kernel": "frozen"},
    }


def count_calls(name, run):
    """How often a function of this name is called."""
    profile = cProfile.Profile()
    profile.runcall(run)
    calls = pstats.Stats(profile).stats  # type: ignore[attr-defined]
    return sum(call[0] for (_, _, own), call in calls.items() if own == name)


class TestLabels:
    """Faults: labels were made again at every update, and for `optax.tree_map_params` refused."""

    def test_are_made_once_for_a_tree(self):
        params = make_params()
        tx = relax(lnt.make_optimizer(optax.sgd(0.1), CONFIG))
        state = tx.init(params)
        tx.update(params, state, params)
        assert count_calls("match_config", lambda: tx.update(params, state, params)) == 0
        narrow = jax.tree.map(lambda leaf: leaf.astype("bfloat16"), params)
        assert count_calls("match_config", lambda: tx.update(narrow, tx.init(narrow), narrow)) > 0

    def test_are_those_of_the_tree_that_is_updated(self):
        """One optimizer for two trees of one structure, whose norms are others by their shapes."""
        tx = relax(lnt.make_optimizer(optax.sgd(1.0), lnt.LNTuningConfig()))
        first = {"ln": {"kernel": jnp.ones(4)}, "norm": {"scale": jnp.ones(4)}}
        second = first | {"ln": {"kernel": jnp.ones((4, 4))}}
        for tree, expected in ((first, -1.0), (second, 0.0), (first, -1.0)):
            updates, _ = tx.update(tree, tx.init(tree), tree)
            assert float(updates["ln"]["kernel"].ravel()[0]) == expected

    @pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
    def test_states_are_mapped_as_optax_maps_them(self, dtype):
        params = jax.tree.map(lambda leaf: leaf.astype(dtype), make_params())
        selection = lnt.select(params, CONFIG)
        groups = {"trainable": optax.adam(1e-3), "frozen": optax.set_to_zero()}
        own = optax.multi_transform(groups, lambda tree: lnt.label_params(tree, CONFIG))
        optimizers = [own, lnt.make_optimizer(optax.adam(1e-3), CONFIG)]
        optimizers += [lnt.make_optimizer(lnt.adamw(selection, 1e-3), selection)]
        for tx in optimizers:
            state = tx.init(params)
            seen = []

            def note(leaf, seen=seen):
                seen.append(leaf.shape)
                return leaf + jnp.ones((), leaf.dtype)

            mapped = optax.tree_map_params(tx, note, state)
            assert jax.tree.structure(mapped) == jax.tree.structure(state)
            trained = [leaf.shape for leaf in selection.partition(params).trainable.values()]
            counts = Counter(trained * (3 if dtype == "bfloat16" and tx is not own else 2))
            assert Counter(seen) == counts

    def test_of_the_trainable_half(self):
        trainable = lnt.partition_params(make_params(), CONFIG).trainable
        tx = lnt.adamw(CONFIG, 1e-3, clip_norm=1.0)
        mapped = optax.tree_map_params(tx, lambda leaf: leaf + 1, tx.init(trainable))
        assert max(float(leaf.max()) for leaf in jax.tree.leaves(mapped)) == 1.0


def test_frozen_subnormals_stay_under_jit():
    params = {"norm": {"scale": jnp.ones(4)}, "fc": {"kernel": jnp.full((4, 4), 1e-45)}}
    params["fc"]["bias"] = jnp.array([-0.0, 0.0, -1e-40, 3.0])
    tx = lnt.make_optimizer(optax.sgd(0.1), lnt.LNTuningConfig())

    @jax.jit
    def step(params, state):
        updates, state = tx.update(params, state, params)
        return optax.apply_updates(params, updates), state

    with jax.numpy_dtype_promotion("standard"):
        new, _ = step(params, tx.init(params))
    for name, leaf in params["fc"].items():
        before, after = (np.asarray(x).view(np.uint32) for x in (leaf, new["fc"][name]))
        assert (before == after).all()


@pytest.mark.parametrize(
    ("arguments", "settings"),
    [
        (("fast",), {}),
        ((True,), {}),
        ((-1.0,), {}),
        ((None,), {}),
        ((1e-3,), {"clip_norm": 0}),
        ((1e-3,), {"clip_norm": True}),
        ((1e-3,), {"weight_decay": "0.1"}),
        ((1e-3,), {"norm_weight_decay": -0.1}),
        ((1e-3,), {"head_learning_rate": float("nan")}),
        (([1e-3, 1e-2],), {}),
    ],
)
def test_a_setting_that_is_no_number_is_named(arguments, settings):
    with pytest.raises(ArgumentError, match="must be a number that is"):
        lnt.adamw(CONFIG, *arguments, **settings)


def test_what_is_no_optimizer_is_refused():
    for wrong in (1e-3, optax.adam, None, "adam", make_params()):
        with pytest.raises(ArgumentError, match="tx must be an Optax optimizer"):
            lnt.make_optimizer(wrong, CONFIG)
    with pytest.raises(ConfigError, match="not GradientTransformation"):
        lnt.make_optimizer(CONFIG, optax.sgd(0.1))

"""A selection is decided once, says what trains and why, and is taken in place of a config."""

import dataclasses
import pickle
import re

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import lntune_jax as lnt
from lntune_jax.errors import (
    ConfigError,
    SelectionError,
    UncertainNormWarning,
    UnmatchedPatternWarning,
)
from tests.support.paths import ROOT
from tests.support.small import loss_fn, make_batch, make_params, relax

CONFIG = lnt.LNTuningConfig(modules_to_save=["classifier"])
TYPICAL = lnt.LNTuningConfig()


def make_tree():
    """A norm whose name says nothing, one that a name says, and a head."""
    return {
        "first": {"scale": jnp.ones(4), "bias": jnp.zeros(4)},
        "ln": {"scale": jnp.ones(4)},
        "fc": {"kernel": jnp.ones((4, 4))},
        "head": {"kernel": jnp.ones((4, 2)), "bias": jnp.zeros(2)},
    }


def select_tree(**fields):
    config = lnt.LNTuningConfig(modules_to_save=["head"], **fields)
    return lnt.select(make_tree(), config, norms=["first", "ln"])


class TestValue:
    def test_is_immutable_and_hashable_and_holds_no_arrays(self):
        one, other = select_tree(), select_tree()
        assert one == other
        assert hash(one) == hash(other)
        assert one != select_tree(exclude_modules=["ln"])
        with pytest.raises(dataclasses.FrozenInstanceError):
            one.config = CONFIG
        assert not any(isinstance(leaf, jax.Array | np.ndarray) for leaf in jax.tree.leaves(one))

    def test_is_the_same_for_abstract_trees(self):
        tree = make_tree()
        config = lnt.LNTuningConfig(modules_to_save=["head"])
        abstract = jax.eval_shape(lambda: tree)
        assert lnt.select(abstract, config, norms=["first", "ln"]) == select_tree()

    def test_may_be_static_under_jit(self):
        tree, calls = make_tree(), []

        @jax.jit(static_argnums=0)
        def merge(selection, params):
            calls.append(1)
            return lnt.merge_params(*selection.partition(params))

        for _ in range(2):
            merged = merge(select_tree(), tree)
        assert len(calls) == 1
        assert jax.tree.all(jax.tree.map(lambda a, b: (a == b).all(), merged, tree))

    def test_a_selection_of_plain_trees_can_be_pickled(self):
        selection = select_tree()
        again = pickle.loads(pickle.dumps(selection.leaves))
        assert again == selection.leaves

    def test_gives_itself_back(self):
        selection = select_tree()
        assert lnt.select(make_tree(), selection) is selection


class TestText:
    def test_says_what_trains_by_which_rule_and_pattern(self):
        text = str(select_tree(target_modules=["first", "ln"]))
        assert text.splitlines()[0].startswith("trainable params: 22 || all params: 38")
        assert "as a norm by norms= (target_modules 'first'):\n  first.bias" in text
        assert "as a saved module (modules_to_save 'head'):\n  head.bias" in text
        assert "fc.kernel" not in text

    def test_says_what_does_not_train_and_why(self):
        tree = {"ln_1": {"scale": jnp.ones(4)}, "ln_2": {"scale": jnp.ones(4)}}
        tree["group_norm"] = {"scale": jnp.ones(4), "bias": jnp.ones(4)}
        tree["ln_3"] = {"scale": jnp.ones(4)}
        config = lnt.LNTuningConfig(target_modules=["ln_1", "ln_2"], exclude_modules=["ln_2"])
        text = str(lnt.select(tree, config))
        assert "trains, as a norm by its name and shape (target_modules 'ln_1'):" in text
        assert "excluded (exclude_modules 'ln_2'):\n  ln_2.scale" in text
        assert "that no target names:\n  ln_3.scale" in text
        assert "frozen, group norm: it trains only where target_modules names it:" in text

    def test_says_that_a_type_or_a_trace_tells(self):
        class Model(nnx.Module):
            def __init__(self):
                self.first = nnx.LayerNorm(4, rngs=nnx.Rngs(0))

        assert "as a norm by its type" in str(lnt.select(Model(), lnt.LNTuningConfig()))
        params, x = {"w": jnp.ones(4)}, jnp.ones((2, 4))
        norms = lnt.discover_norms(lambda p, x: jax.nn.standardize(x) * p["w"], params, x)
        selection = lnt.select(params, lnt.LNTuningConfig(), norms=norms)
        assert "as a norm by a trace (every norm trains):\n  w  float32[4]" in str(selection)

    def test_counts_layers_that_are_alike_on_one_line(self):
        tree = {"h": {str(i): {"ln_1": {"scale": jnp.ones(4)}} for i in range(12)}}
        assert "  h.*.ln_1.scale  float32[4]  x 12" in str(lnt.select(tree, lnt.LNTuningConfig()))


class TestInPlaceOfAConfig:
    """Each function does with a selection what it does with the config, and guesses nothing."""

    def test_partition_labels_report(self):
        params = make_params()
        selection = lnt.select(params, CONFIG)
        for one, other in (
            (selection.partition(params), lnt.partition_params(params, CONFIG)),
            (lnt.partition_params(params, selection), lnt.partition_params(params, CONFIG)),
        ):
            assert one.trainable.keys() == other.trainable.keys()
            assert jax.tree.structure(one.frozen) == jax.tree.structure(other.frozen)
        labels = lnt.label_params(params, CONFIG)
        assert selection.labels() == labels == lnt.label_params(params, selection)
        assert selection.report() == lnt.report_params(params, CONFIG)
        assert lnt.report_params(params, selection) == selection.report()

    def test_another_container_of_the_same_leaves(self):
        params = make_tree()
        flat = {f"{m}/{name}": v for m, own in params.items() for name, v in own.items()}
        trainable, frozen = select_tree().partition(flat)
        assert set(trainable) == {f"{m}.{n}" for m in ("first", "head") for n in params[m]} - {
            "first.kernel"
        } | {"ln.scale"}
        assert frozen["fc/kernel"] is flat["fc/kernel"]

    def test_adamw_takes_a_norm_that_the_caller_named_for_a_norm(self):
        """By its name `first` says nothing: it got the head's rate and weight decay before."""
        selection = select_tree()
        trainable = selection.partition(make_tree()).trainable
        tx = lnt.adamw(selection, 1e-3, head_learning_rate=1e-2, weight_decay=0.5)
        grads = jax.tree.map(jnp.ones_like, trainable)
        with jax.numpy_dtype_promotion("standard"):
            updates, _ = tx.update(grads, tx.init(trainable), trainable)
        rates = {path: round(float(-update.ravel()[0]), 5) for path, update in updates.items()}
        assert rates == {
            "first.scale": 0.001,
            "first.bias": 0.001,
            "ln.scale": 0.001,
            "head.kernel": 0.015,
            "head.bias": 0.01,
        }

    def test_label_groups(self):
        selection = select_tree()
        groups = lnt.label_groups(selection.partition(make_tree()).trainable, selection)
        assert groups["first.scale"] == groups["ln.scale"] == "scale"
        assert groups["first.bias"] == "bias"
        assert groups["head.kernel"] == groups["head.bias"] == "head"

    def test_make_optimizer_goes_by_the_selection(self):
        params = make_tree()
        tx = lnt.make_optimizer(optax.sgd(1.0), select_tree())
        with jax.numpy_dtype_promotion("standard"):
            updates, _ = tx.update(params, tx.init(params), params)
        assert float(updates["first"]["scale"][0]) == -1.0
        assert float(updates["fc"]["kernel"][0, 0]) == 0.0

    def test_files(self, tmp_path):
        params, selection = make_tree(), select_tree()
        trainable, frozen = selection.partition(params)
        tuned = jax.tree.map(lambda leaf: leaf + 1, trainable)
        lnt.save_adapter(tmp_path / "a", tuned, selection, base=params)
        lnt.save_adapter(tmp_path / "b", tuned, selection, base=frozen)
        for name in "ab":
            restored = lnt.restore_adapter(tmp_path / name, params)
            assert restored["first"]["scale"].tolist() == [2.0] * 4
        lnt.export_peft(tmp_path / "p", tuned, selection)
        lnt.export_peft(tmp_path / "q", tuned, selection, base=params)
        for name in "pq":
            back = lnt.load_peft(tmp_path / name, params, norms=["first", "ln"]).trainable
            assert back.keys() == tuned.keys()

    def test_a_part_of_a_norm_needs_the_base_for_peft(self, tmp_path):
        params = make_tree()
        config = lnt.LNTuningConfig(target_modules=["first"], exclude_modules=["first.bias"])
        selection = lnt.select(params, config, norms=["first", "ln"])
        trainable = selection.partition(params).trainable
        assert set(trainable) == {"first.scale"}
        with pytest.raises(lnt.errors.AdapterError, match=r"first\.bias.*base=params"):
            lnt.export_peft(tmp_path / "p", trainable, selection)

    def test_nnx(self):
        class Model(nnx.Module):
            def __init__(self):
                rngs = nnx.Rngs(0)
                self.norm, self.other = nnx.LayerNorm(4, rngs=rngs), nnx.LayerNorm(4, rngs=rngs)

        model = Model()
        selection = lnt.select(model, lnt.LNTuningConfig(target_modules=["other"]))
        own = lnt.integrations.nnx.make_filter(selection, model)
        found = nnx.to_flat_state(nnx.state(model, own))
        assert {path[0] for path, _ in found} == {"other"}
        assert lnt.integrations.nnx.make_optimizer(model, optax.sgd(0.1), selection).wrt == own
        assert lnt.integrations.tunix.mark_trainable(model, selection) == [
            "other.bias",
            "other.scale",
        ]

    def test_training_goes_as_with_the_config(self):
        params, batch = make_params(), make_batch()
        selection, losses = lnt.select(params, CONFIG), []
        for chosen in (selection, CONFIG):
            trainable, frozen = lnt.partition_params(params, chosen)
            tx = relax(lnt.adamw(chosen, 1e-2, head_learning_rate=1e-3))
            step = lnt.make_train_step(loss_fn, tx, chosen)
            state = lnt.TrainState.create(trainable, tx)
            for _ in range(3):
                state, metrics = step(state, frozen, batch)
            losses.append(float(metrics["loss"]))
        assert losses[0] == losses[1]


class TestRefusals:
    def test_another_tree_is_named(self):
        tree = make_tree()
        with pytest.raises(SelectionError, match=r"lacks 'ln\.scale'.*select again"):
            select_tree().partition({k: v for k, v in tree.items() if k != "ln"})
        with pytest.raises(SelectionError, match=r"also has 'more\.scale'"):
            select_tree().partition(tree | {"more": {"scale": jnp.ones(4)}})
        with pytest.raises(SelectionError, match=r"'ln\.scale' has shape \(3,\), but \(4,\)"):
            select_tree().partition(tree | {"ln": {"scale": jnp.ones(3)}})

    def test_what_was_decided_is_not_decided_again(self):
        for names in ({"norms": ["ln"]}, {"name_map": "tunix_llama3"}):
            with pytest.raises(
                ConfigError, match=r"given together with a Selection.*lntune_jax\.sel"
            ):
                lnt.partition_params(make_tree(), select_tree(), **names)

    def test_a_leaf_that_does_not_train_has_no_group(self):
        with pytest.raises(SelectionError, match=r"'fc\.kernel' is not one that the selection"):
            lnt.label_groups({"fc.kernel": jnp.ones((4, 4))}, select_tree())

    @pytest.mark.parametrize("wrong", [None, "ln", {}, True, ["ln"], lnt.LNTuningConfig])
    def test_neither_config_nor_selection(self, wrong):
        tree = make_tree()
        for function in (
            lambda: lnt.select(tree, wrong),
            lambda: lnt.partition_params(tree, wrong),
            lambda: lnt.report_params(tree, wrong),
            lambda: lnt.label_params(tree, wrong),
            lambda: lnt.label_groups({"ln.scale": jnp.ones(4)}, wrong),
            lambda: lnt.adamw(wrong or {}, 1e-3),
            lambda: lnt.make_optimizer(optax.sgd(0.1), wrong or {}),
            lambda: lnt.save_adapter("never", {}, wrong, base=tree),
            lambda: lnt.export_peft("never", {"ln.scale": jnp.ones(4)}, wrong),
            lambda: lnt.integrations.nnx.make_filter(wrong, nnx.LayerNorm(2, rngs=nnx.Rngs(0))),
        ):
            with pytest.raises(ConfigError, match="an LNTuningConfig or the Selection"):
                function()


class TestNoNorm:
    """Fault: a mistyped target with a head to save trained the head alone, without a word."""

    def test_a_mistyped_target_is_an_error_that_names_the_nearest_norms(self):
        tree = {"ln_1": {"scale": jnp.ones(4)}, "in_1": {"kernel": jnp.ones((4, 4))}}
        tree["head"] = {"kernel": jnp.ones((4, 2))}
        config = lnt.LNTuningConfig(target_modules=["ln_l"], modules_to_save=["head"])
        with (
            pytest.warns(
                UnmatchedPatternWarning, match=r"'ln_l'.*nearest module paths are 'ln_1'$"
            ),
            pytest.raises(SelectionError, match=r"no norm trains.*'ln_1'.*target_modules=\[\]"),
        ):
            lnt.select(tree, config)

    def test_no_norm_on_purpose(self):
        selection = select_tree(target_modules=[])
        assert set(selection.trainable) == {"head.kernel", "head.bias"}
        assert lnt.LNTuningConfig.from_dict(selection.config.to_dict()) == selection.config
        with pytest.raises(SelectionError, match="nothing trains"):
            lnt.select(make_tree(), lnt.LNTuningConfig(target_modules=[]))

    def test_a_norm_in_a_saved_module_is_one(self):
        tree = {"encoder": {"ln": {"scale": jnp.ones(4)}}, "fc": {"kernel": jnp.ones((4, 4))}}
        selection = lnt.select(tree, lnt.LNTuningConfig(modules_to_save=["encoder"]))
        assert set(selection.trainable) == {"encoder.ln.scale"}

    def test_everything_excluded_with_a_head(self):
        with pytest.raises(SelectionError, match=r"no norm trains.*exclude_modules.*=\[\]"):
            select_tree(exclude_modules=["first", "ln"])


class TestContainersThatAreExcludedToo:
    """Fault: a container that is target and excluded made the norms below it train."""

    def test_an_excluded_container_is_no_target(self):
        tree = {"LayerNorm": {"encoder": {"norm": {"weight": jnp.ones(4)}}}}
        tree["ln_1"] = {"weight": jnp.ones(4)}
        config = lnt.LNTuningConfig(
            target_modules=["LayerNorm", "ln_1"], exclude_modules=["LayerNorm"]
        )
        assert set(lnt.select(tree, config).trainable) == {"ln_1.weight"}

    def test_a_norm_that_is_excluded_itself_stays_frozen_in_a_target(self):
        tree = {"block": {"ln_1": {"weight": jnp.ones(4)}, "ln_2": {"weight": jnp.ones(4)}}}
        config = lnt.LNTuningConfig(target_modules=["block"], exclude_modules=["ln_2"])
        assert set(lnt.select(tree, config).trainable) == {"block.ln_1.weight"}


def test_equinox():
    class Model(eqx.Module):
        first: eqx.nn.LayerNorm
        fc: eqx.nn.Linear

    key = jax.random.key(0)
    model = Model(eqx.nn.LayerNorm(4), eqx.nn.Linear(4, 4, key=key))
    selection = lnt.select(model, lnt.LNTuningConfig())
    assert set(selection.trainable) == {"first.weight", "first.bias"}
    assert isinstance(lnt.merge_params(*selection.partition(model)), Model)


def test_a_filter_takes_a_param_that_holds_a_dict():
    """Fault: `nnx.make_filter` left out what `partition_params` trains."""

    class Model(nnx.Module):
        def __init__(self):
            self.norm = nnx.LayerNorm(4, rngs=nnx.Rngs(0))
            self.head = nnx.Param({"kernel": jnp.ones((4, 2)), "bias": jnp.zeros(2)})

    model, config = Model(), lnt.LNTuningConfig(modules_to_save=["head"])
    assert {"head.kernel", "head.bias"} <= lnt.partition_params(model, config).trainable.keys()
    found = nnx.to_flat_state(nnx.state(model, lnt.integrations.nnx.make_filter(config, model)))
    assert {path[0] for path, _ in found} == {"head", "norm"}


def test_a_norm_that_modules_share_is_counted_once():
    class Model(nnx.Module):
        def __init__(self):
            self.norm = nnx.LayerNorm(4, rngs=nnx.Rngs(0))
            self.same_norm = self.norm

    report = lnt.report_params(Model(), lnt.LNTuningConfig())
    assert (report.trainable, report.total) == (8, 8)
    config = lnt.LNTuningConfig()
    for split in (lnt.partition_params, lambda m, c: lnt.select(m, c).partition(m)):
        with pytest.raises(lnt.errors.TreeError, match=r"'same_norm.*twice.*nnx\.state\(model\)"):
            split(Model(), config)
        assert len(split(nnx.state(Model()), config).trainable) == 2
    one = jnp.ones(4)  # an array that stands for two parameters of one value is two
    tree = {"ln_1": {"scale": one}, "ln_2": {"scale": one}}
    assert lnt.report_params(tree, lnt.LNTuningConfig()).trainable == 8


class TestWhatIsNoTree:
    def test_one_value(self):
        for wrong in ("model.safetensors", 3, jnp.ones(4), object()):
            with pytest.raises(lnt.errors.TreeError, match="not a tree of named arrays"):
                lnt.select(wrong, CONFIG)

    def test_a_frozen_half(self):
        _, frozen = lnt.partition_params({"ln": {"scale": jnp.ones(4)}, "w": jnp.ones(4)}, TYPICAL)
        with pytest.raises(lnt.errors.TreeError, match=r"is a frozen half.*pass the whole tree"):
            lnt.partition_params(frozen, TYPICAL)

    def test_lists_of_numbers(self):
        with pytest.raises(SelectionError, match=r"'ln\.scale\.0'.*Python numbers.*np\.asarray"):
            lnt.partition_params({"ln": {"scale": [1.0, 1.0]}}, TYPICAL)


def test_the_first_example_of_the_page(capsys):
    page = (ROOT / "docs/selection.md").read_text()
    code, printed = re.findall(r"```(?:python)?\n(.*?)```", page, re.DOTALL)[:2]
    with pytest.warns(UncertainNormWarning, match="'final'"):
        exec(code, {})
    assert capsys.readouterr().out == printed

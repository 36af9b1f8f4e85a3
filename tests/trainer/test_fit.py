"""`trainer.fit`: a loop that people call with functions of their own."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

import lntune_jax as lnt
from lntune_jax import tasks, trainer
from lntune_jax.errors import ConfigError

WIDTH = 8


@pytest.fixture(autouse=True)
def _strict_promotion():
    """Not here: Optax's Adam and schedules mix integers and floats, which strict refuses."""


def loss_of(params, batch):
    wanted = 2 * batch + 0.5
    found = batch * params["norm"]["scale"] + params["norm"]["bias"]
    return jnp.mean((found - wanted) ** 2)


def batch_of(step):
    return np.random.default_rng(step).normal(size=(4, WIDTH)).astype(np.float32)


def evaluate(params):
    loss = loss_of(params, batch_of(10**6))
    return {"loss": float(loss), "closeness": 1 / (1 + float(loss))}


CLOSENESS = tasks.Metric("closeness", "closeness")


def make_task(**changes):
    params = {"norm": {"scale": jnp.ones(WIDTH), "bias": jnp.zeros(WIDTH)}, "kernel": jnp.ones(3)}
    values = {"steps_per_epoch": 10, "evaluate": evaluate, "metrics": (CLOSENESS,)} | changes
    return tasks.FunctionTask(params, lnt.LNTuningConfig(), loss_of, batch_of, **values)


RECIPE = trainer.Recipe(epochs=3, learning_rate=0.2)


def same(left, right):
    return left.keys() == right.keys() and all(
        np.asarray(left[path]).tobytes() == np.asarray(right[path]).tobytes() for path in left
    )


def test_it_trains_keeps_the_best_and_gives_its_figures():
    task = make_task()
    result = trainer.fit(task, RECIPE)
    assert result.finished
    assert (result.step, len(result.history)) == (30, 3)
    assert result.metrics["closeness"] == max(each.figures["closeness"] for each in result.history)
    assert result.metrics["loss"] < 0.2 * evaluate(task.params)["loss"]
    trainable, config = result.adapter
    assert sorted(trainable) == ["norm.bias", "norm.scale"]
    assert config == task.config
    assert task.params["norm"]["scale"].tolist() == [1] * WIDTH


def test_a_run_on_disk_is_resumed_bit_for_bit(tmp_path):
    whole = trainer.fit(make_task(), RECIPE, output=tmp_path / "whole")
    for stop in (7, 6, 100):
        parts = trainer.fit(
            make_task(),
            RECIPE,
            output=tmp_path / "parts",
            resume=True,
            stops=trainer.Stops(after_steps=stop),
        )
        assert parts.finished == (stop == 100)
    assert same(whole.adapter.trainable, parts.adapter.trainable)
    for each in (whole, parts):
        assert [line.step for line in each.history] == [10, 20, 30]
    loaded = lnt.load_adapter(tmp_path / "parts" / "adapter")
    assert same(loaded.trainable, whole.adapter.trainable)
    summary = json.loads((tmp_path / "parts" / "summary.json").read_text())
    assert summary["best"]["closeness"] == whole.metrics["closeness"]
    lines = trainer.read_metrics(tmp_path / "parts" / "metrics.jsonl")
    assert [line["step"] for line in lines if line["split"] == "train"] == list(range(1, 31))


def test_a_run_may_get_more_steps_and_nothing_else(tmp_path):
    recipe = trainer.Recipe(max_steps=10, schedule="constant", learning_rate=0.05)
    trainer.fit(make_task(), recipe, output=tmp_path / "run")
    with pytest.raises(ConfigError, match="holds a finished run"):
        trainer.fit(make_task(), recipe, output=tmp_path / "run")
    longer = trainer.Recipe(max_steps=20, schedule="constant", learning_rate=0.05)
    result = trainer.fit(make_task(), longer, output=tmp_path / "run", resume=True)
    assert result.step == 20
    at_once = trainer.fit(make_task(), longer)
    # The warm-up is a share of the steps: only the number of steps is the same.
    assert at_once.step == result.step
    other = trainer.Recipe(max_steps=30, schedule="constant", learning_rate=0.06)
    with pytest.raises(ConfigError, match=r"started with learning_rate 0\.05, not 0\.06"):
        trainer.fit(make_task(), other, output=tmp_path / "run", resume=True)
    with pytest.raises(ConfigError, match="started with max_steps 20, not 10"):
        trainer.fit(make_task(), recipe, output=tmp_path / "run", resume=True)


def test_what_was_never_a_run_is_left_alone(tmp_path):
    for name in ("checkpoints", "adapters", "tensorboard"):
        (tmp_path / "mine" / name).mkdir(parents=True)
        (tmp_path / "mine" / name / "precious").touch()
    for flags in ({}, {"overwrite": True}, {"resume": True}):
        with pytest.raises(ConfigError, match=r"holds .*checkpoints.* no settings\.json"):
            trainer.fit(make_task(), RECIPE, output=tmp_path / "mine", **flags)
    assert len(list((tmp_path / "mine").rglob("precious"))) == 3


def test_many_adapters_are_those_trained_alone(tmp_path):
    recipes = {
        f"rate-{rate}-seed-{seed}": trainer.Recipe(epochs=3, learning_rate=rate, seed=seed)
        for rate in (0.02, 0.2)
        for seed in (0, 1)
    }
    results = trainer.fit_many(make_task(), recipes, output=tmp_path / "many")
    assert list(results) == list(recipes)
    for name, recipe in recipes.items():
        alone = trainer.fit(make_task(), recipe)
        for path, leaf in alone.adapter.trainable.items():
            np.testing.assert_allclose(results[name].adapter.trainable[path], leaf, rtol=1e-5)
        assert results[name].metrics == pytest.approx(alone.metrics, rel=1e-4)
        saved = lnt.load_adapter(tmp_path / "many" / "adapters" / name)
        assert same(saved.trainable, results[name].adapter.trainable)
    lines = trainer.read_metrics(tmp_path / "many" / "metrics.jsonl", "rate-0.2-seed-1")
    assert all({"learning_rate", "tokens_per_second"} <= set(line) for line in lines[:5])
    assert max(line["learning_rate"] for line in lines if "learning_rate" in line) == 0.2


def test_recipes_that_a_step_cannot_share():
    recipes = [trainer.Recipe(), trainer.Recipe(batch_size=8)]
    with pytest.raises(ConfigError, match="has batch_size = 8 and the first one 32"):
        trainer.fit_many(make_task(), recipes)
    with pytest.raises(ConfigError, match="expected one adapter or more"):
        trainer.fit_many(make_task(), [])


def test_without_an_evaluation_the_last_step_is_kept():
    seen = []

    class Last(trainer.Callback):
        def stepped(self, step, figures, trial=None):
            seen.append((step, figures["loss"]))

    result = trainer.fit(make_task(evaluate=None, metrics=()), RECIPE, callbacks=[Last()])
    assert (result.history, dict(result.metrics)) == ((), {})
    assert [step for step, _ in seen] == list(range(1, 31))
    assert seen[-1][1] < seen[0][1]
    assert not np.array_equal(result.adapter.trainable["norm.scale"], np.ones(WIDTH))


def test_an_average_is_evaluated_and_kept():
    plain = trainer.fit(make_task(), RECIPE)
    averaged = trainer.fit(make_task(), trainer.Recipe(epochs=3, learning_rate=0.2, ema=0.9))
    assert not same(plain.adapter.trainable, averaged.adapter.trainable)
    assert averaged.metrics["loss"] != plain.metrics["loss"]


def test_a_step_in_parts_is_the_same_step():
    whole = trainer.fit(make_task(), RECIPE)
    recipe = trainer.Recipe(epochs=3, learning_rate=0.2, gradient_accumulation=2)
    parts = trainer.fit(make_task(), recipe)
    for path, leaf in whole.adapter.trainable.items():
        np.testing.assert_allclose(parts.adapter.trainable[path], leaf, rtol=1e-4)


def test_callbacks_end_whatever_happens():
    told = []

    class Teller(trainer.Callback):
        def begin(self, run):
            told.append((run.total, run.resumed))

        def evaluated(self, step, figures, trial=None):
            raise RuntimeError("mine")

        def end(self):
            told.append("end")

    with pytest.raises(RuntimeError, match="mine"):
        trainer.fit(make_task(), RECIPE, callbacks=[Teller()])
    assert told == [(30, False), "end"]


def test_a_callback_that_cannot_end_does_not_hide_why_the_run_failed():
    class Full(trainer.Callback):
        def evaluated(self, step, figures, trial=None):
            raise RuntimeError("mine")

        def end(self):
            raise OSError("no space")

    with pytest.raises(RuntimeError, match="mine") as caught:
        trainer.fit(make_task(), RECIPE, callbacks=[Full()])
    assert caught.value.__notes__ == ["Full could not end: no space"]
    Full.evaluated = lambda *values, **names: None
    with pytest.raises(OSError, match="no space"):
        trainer.fit(make_task(), trainer.Recipe(epochs=1), callbacks=[Full()])


@pytest.mark.parametrize(
    ("changes", "recipe", "message"),
    [
        ({}, {"best_by": "closenes"}, r"measures closeness, loss \(did you mean 'closeness'\?\)"),
        ({"evaluate": lambda params: {"loss": 1.0}}, {}, "evaluate gives no 'closeness'"),
    ],
)
def test_figures_that_are_not_there(changes, recipe, message):
    with pytest.raises(ConfigError, match=message):
        trainer.fit(make_task(**changes), trainer.Recipe(epochs=1, **recipe))


def test_a_loss_that_is_no_number_ends_the_run_or_is_skipped():
    def broken(params, batch):
        return loss_of(params, batch) * jnp.where(batch[0, 0] == batch_of(4)[0, 0], jnp.nan, 1.0)

    task = make_task()
    task = tasks.FunctionTask(
        task.params, task.config, broken, batch_of, 10, evaluate, (CLOSENESS,)
    )
    with pytest.raises(lnt.LNTuningError, match="the loss of step 5 is nan"):
        trainer.fit(task, RECIPE)
    result = trainer.fit(task, trainer.Recipe(epochs=3, learning_rate=0.2, on_nan="skip"))
    assert result.finished
    assert all(np.isfinite(leaf).all() for leaf in result.adapter.trainable.values())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 0}, "recipe.epochs is 0; it must be a whole number, 1 or more"),
        ({"batch_size": 2.5}, r"recipe.batch_size is 2\.5; it must be a whole number"),
        ({"max_steps": True}, "recipe.max_steps is True"),
        ({"learning_rate": -1.0}, "recipe.learning_rate is -1.0; it must be a number above 0"),
        ({"learning_rate": "fast"}, "recipe.learning_rate is 'fast'"),
        ({"head_learning_rate": None}, "recipe.head_learning_rate is None"),
        ({"warmup_fraction": 2.0}, "recipe.warmup_fraction is 2.0; it must be 0 or more, and"),
        ({"schedule": "liner"}, "recipe.schedule is 'liner'; it must be one of linear, cosine"),
        ({"on_nan": "skp"}, "recipe.on_nan is 'skp'; it must be one of stop, skip"),
        ({"seed": -1}, "recipe.seed is -1"),
        ({"eval_every": 0}, "recipe.eval_every is 0"),
        ({"ema": 1.5}, "recipe.ema is 1.5"),
        ({"dropout": True}, "the task's loss takes no rng"),
    ],
)
def test_recipes_that_make_no_sense(changes, message):
    with pytest.raises(ConfigError, match=message):
        trainer.fit(make_task(), trainer.Recipe(**changes))
    with pytest.raises(ConfigError, match=message.replace("recipe.", r"recipes\['a'\]\.", 1)[:30]):
        trainer.fit_many(make_task(), {"a": trainer.Recipe(**changes)})


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: trainer.fit(None), "task is NoneType; expected one of lntune_jax.tasks"),
        (lambda: trainer.fit(make_task(), {"epochs": 1}), "recipe is dict; expected a trainer.Re"),
        (lambda: trainer.fit(make_task(), callbacks=[print]), "callbacks has <built-in function"),
        (lambda: trainer.fit(make_task(steps_per_epoch=0)), "no batch in an epoch"),
        (lambda: trainer.fit(make_task(record={"x": object()})), "the task's record is not JSON"),
        (
            lambda: trainer.fit(make_task(), resume=True),
            "go with output, the dir",
        ),
        (
            lambda: trainer.fit(make_task(evaluate=lambda params: None), RECIPE),
            "evaluate gives NoneType; expected figures by name",
        ),
        (
            lambda: trainer.fit(make_task(evaluate=lambda p: {"loss": "x"}, metrics=()), RECIPE),
            "evaluate gives 'loss' = 'x'; expected a number",
        ),
    ],
)
def test_what_is_no_task_or_callback(call, message):
    with pytest.raises(ConfigError, match=message):
        call()


def test_messages_name_arguments_of_python(tmp_path):
    recipe = trainer.Recipe(max_steps=1)
    trainer.fit(make_task(), recipe, output=tmp_path / "run")
    with pytest.raises(ConfigError, match="pass resume=True to go on with it") as caught:
        trainer.fit(make_task(), recipe, output=tmp_path / "run")
    assert "--" not in str(caught.value)

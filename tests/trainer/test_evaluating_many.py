"""A sweep's adapters are evaluated together, in one compiled call a batch."""

from types import SimpleNamespace as Space

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lntune_jax as lnt
from lntune_jax import tasks, trainer
from lntune_jax.data.batches import Rows
from lntune_jax.data.examples import EncodedExamples
from lntune_jax.data.packing import LanguageRows

WIDTH, WORDS, ROWS = 4, 20, 10
RANDOM = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def _strict_promotion():
    """Not here: Optax's Adam and schedules mix integers and floats, which strict refuses."""


def draw(*shape):
    return jnp.asarray(RANDOM.normal(size=shape), jnp.float32)


PARAMS = {"words": draw(WORDS, WIDTH), "norm": {"scale": jnp.ones(WIDTH)}, "out": draw(WIDTH, 3)}
TOKENS = tuple(np.arange(2 + n % 5, dtype=np.int32) + n for n in range(ROWS))
CLASSES = np.arange(ROWS, dtype=np.int32) % 3


def apply(params, ids, *, attention_mask, dropout_rng=None):
    del dropout_rng
    hidden = jnp.sin(params["words"][ids]) * params["norm"]["scale"] * attention_mask[..., None]
    return Space(logits=hidden.mean(axis=1) @ params["out"], last_hidden_state=hidden)


def apply_to_words(params, ids, **options):
    return Space(logits=apply(params, ids, **options).last_hidden_state @ params["out"])


class Counted:
    """What it makes counts the calls of the compiled functions of its evaluators."""

    calls = 0

    def evaluator(self, batch_size):
        jit = jax.jit

        def counting(function, **options):
            compiled = jit(function, **options)

            def call(*arguments):
                Counted.calls += 1
                return compiled(*arguments)

            return call

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(jax, "jit", counting)
            return super().evaluator(batch_size)


def make(kind, rows, record=None, function=apply):
    model = Space(params=PARAMS, apply=function, name_map=None, fresh=())
    given = (model, lnt.LNTuningConfig(), rows, rows, (4, 8), 0, record or {})
    return type("Counted" + kind.__name__, (Counted, kind), {})(*given)


def make_classification():
    return make(tasks.TextClassification, Rows(TOKENS, CLASSES))


def make_words():
    labels = tuple(np.asarray(each % 3, np.int32) for each in TOKENS)
    rows = LanguageRows(TOKENS, labels, None, ((),) * ROWS)
    return make(tasks.TokenClassification, rows, {"labels": ["O", "B-X", "I-X"]}, apply_to_words)


def make_similarity():
    pairs = tuple((row, row[::-1] + 1) for row in TOKENS)
    rows = EncodedExamples("scored", pairs, np.linspace(0, 1, ROWS), np.arange(ROWS))
    return make(tasks.TextSimilarity, rows, {"pooling": "mean"})


@pytest.mark.parametrize(
    ("make_task", "at_once"),
    [
        (make_classification, None),
        (make_classification, 2),
        (make_words, None),
        (make_similarity, None),
    ],
)
def test_the_figures_are_those_of_each_alone_in_a_call_a_batch(make_task, at_once):
    task = make_task()
    _, frozen = lnt.partition_params(task.params, task.config)
    scales = draw(5, WIDTH)
    Counted.calls = 0
    alone = task.evaluator(4)
    expected = [alone({"norm.scale": scale}, frozen) for scale in scales]
    assert Counted.calls % 5 == 0
    batches, Counted.calls = Counted.calls // 5, 0
    together = task.evaluator(4)
    active = [True, True, False, True, True]
    found = together.many({"norm.scale": scales}, frozen, active=active, at_once=at_once)
    assert Counted.calls == batches
    assert together.compilations == alone.compilations
    assert len({each["loss"] for each in expected}) == 5
    assert found[2] == {}
    for one, other, is_active in zip(found, expected, active, strict=True):
        assert not is_active or one == pytest.approx(other, rel=1e-6)


def test_a_sweep_s_evaluation_is_one_call_a_batch_whatever_the_number_of_adapters():
    Counted.calls = 0
    recipes = {
        f"{rate}": trainer.Recipe(
            learning_rate=rate, batch_size=4, eval_batch_size=4, max_steps=6, eval_every=3
        )
        for rate in (1e-3, 1e-2, 1e-1)
    }
    results = trainer.fit_many(make_classification(), recipes)
    batches = Counted.calls / 2  # of two evaluations
    assert batches == 3  # of 10 rows, at most 4 a batch
    alone = trainer.fit(make_classification(), recipes["0.1"])
    for one, other in zip(results["0.1"].history, alone.history, strict=True):
        assert one.figures == pytest.approx(other.figures, rel=1e-6)


def test_the_adapters_of_each_table_see_its_own_rows():
    one = make_classification()
    other = make(tasks.TextClassification, Rows(TOKENS, CLASSES[::-1].copy()))
    Counted.calls = 0
    recipes = [trainer.Recipe(learning_rate=rate, batch_size=4, max_steps=3) for rate in (0.1, 0.2)]
    results = trainer.fit_many([one, other], recipes)
    alone = trainer.fit(other, recipes[1])
    assert results["1-1"].metrics == pytest.approx(alone.metrics, rel=1e-6)
    assert results["1-0"].metrics != results["1-1"].metrics


def test_functions_of_ones_own_are_evaluated_one_after_another():
    seen = []

    def evaluate(params):
        seen.append(np.asarray(params["norm"]["scale"]))
        return {"loss": float(seen[-1].sum())}

    def loss(params, batch):
        return (params["norm"]["scale"] * batch).mean()

    task = tasks.FunctionTask(
        PARAMS, lnt.LNTuningConfig(), loss, lambda step: jnp.ones(WIDTH), evaluate=evaluate
    )
    recipes = [trainer.Recipe(learning_rate=rate, epochs=1) for rate in (0.1, 0.2)]
    results = trainer.fit_many(task, recipes)
    assert [each.shape for each in seen] == [(WIDTH,)] * 2
    assert results["0"].metrics["loss"] > results["1"].metrics["loss"]

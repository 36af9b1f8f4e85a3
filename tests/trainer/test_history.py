import json

from lntune_jax.tasks import LOSS, Metric
from lntune_jax.trainer.history import Evaluation, History

ACCURACY = Metric("accuracy", "accuracy")


def run_through(figures, metric=ACCURACY, patience=None):
    history = History()
    for step, (loss, accuracy) in enumerate(figures, start=1):
        history = history.add(
            Evaluation(step, {"loss": loss, "accuracy": accuracy}), metric, patience
        )
    return history


def test_the_best_is_the_highest_then_the_lower_loss_then_the_earlier():
    figures = [(0.5, 0.8), (0.4, 0.9), (0.3, 0.9), (0.3, 0.9), (0.1, 0.7)]
    assert run_through(figures).best(ACCURACY).step == 3
    assert run_through(figures).best(LOSS).step == 5


def test_patience_counts_evaluations_since_the_best():
    figures = [(0.5, 0.8), (0.5, 0.7), (0.5, 0.7)]
    assert not run_through(figures[:2], patience=2).stopped
    assert run_through(figures, patience=2).stopped
    assert not run_through(figures).stopped


def test_it_comes_back_from_json():
    history = run_through([(0.5, 0.8), (0.4, 0.9)])
    assert History.from_json(json.loads(json.dumps(history.to_json()))) == history

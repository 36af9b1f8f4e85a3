import numpy as np
import pytest

from lntune_jax.tasks.scores import probabilities, score


def test_figures_of_a_small_case_by_hand():
    # Predicted 0 0 1 1, true 0 1 1 1, and a class 2 that never occurs.
    logits = np.array([[2.0, 0, -9], [1, 0, -9], [0, 3, -9], [0, 1, -9]])
    scores = score(logits, np.array([0, 1, 1, 1]))
    assert scores.confusion.tolist() == [[1, 0, 0], [1, 2, 0], [0, 0, 0]]
    assert scores.accuracy == 0.75
    np.testing.assert_allclose(scores.precision, [0.5, 1, 0])
    np.testing.assert_allclose(scores.recall, [1, 2 / 3, 0])
    np.testing.assert_allclose(scores.f1, [2 / 3, 0.8, 0])
    assert scores.macro_f1 == pytest.approx((2 / 3 + 0.8) / 2)
    chances = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    assert scores.loss == pytest.approx(-np.log(chances[[0, 1, 2, 3], [0, 1, 1, 1]]).mean())


def test_large_logits_do_not_overflow():
    logits = np.array([[1000.0, -1000.0]], np.float32)
    np.testing.assert_array_equal(probabilities(logits), [[1, 0]])
    assert score(logits, np.array([1])).loss == pytest.approx(2000)

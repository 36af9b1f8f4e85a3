import numpy as np
import pytest

from lntune_jax.trainer.recipe import Recipe
from lntune_jax.trainer.schedules import learning_rate_schedule


@pytest.mark.parametrize(("name", "end"), [("linear", 0.0), ("cosine", 0.0), ("constant", 2.0)])
def test_it_rises_peaks_and_ends(name, end):
    schedule = learning_rate_schedule(Recipe(schedule=name), peak=2.0, steps=100)
    rates = np.array([float(schedule(step)) for step in (0, 5, 10, 55, 100)])
    np.testing.assert_allclose(rates[[0, 1, 2, 4]], [0, 1, 2, end], atol=1e-6)
    assert rates[3] == pytest.approx(2.0 if name == "constant" else 1.0)


def test_without_a_warm_up_it_starts_at_the_peak():
    recipe = Recipe(warmup_fraction=0.0)
    assert float(learning_rate_schedule(recipe, peak=2.0, steps=10)(0)) == 2.0

"""Choosing a token: what may be drawn, and how often, on logits that are known."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lntune_jax.errors import ModelError
from lntune_jax.models.decoding.sampling import check_sampling, cut, pick

SHARES = np.array([0.05, 0.4, 0.2, 0.3, 0.05])
ROWS = 20_000
choose = jax.jit(pick)


def frequencies(temperature=1.0, top_k=None, top_p=None, shares=SHARES):
    """How often each token is drawn, in as many rows of the same logits."""
    key = jax.random.key(0)
    sampling = check_sampling(temperature, top_k, top_p, len(shares), key)
    # A constant more or less changes no probability.
    logits = np.broadcast_to(np.log(shares) + 7, (ROWS, len(shares))).astype(np.float32)
    return np.bincount(choose(logits, sampling, key), minlength=len(shares)) / ROWS


@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        ({}, [0, 1, 2, 3, 4]),
        ({"top_k": 3}, [1, 2, 3]),
        ({"top_k": 100}, [0, 1, 2, 3, 4]),
        ({"top_p": 1.0}, [0, 1, 2, 3, 4]),
        ({"top_p": 0.69}, [1, 3]),
        ({"top_p": 0.71}, [1, 2, 3]),
        ({"top_p": 0.01}, [1]),
        # The two likeliest are 4/7 and 3/7 of what top_k leaves: top_p looks at these.
        ({"top_k": 2, "top_p": 0.5}, [1]),
        ({"top_k": 3, "top_p": 0.8}, [1, 2, 3]),
        ({"top_k": 3, "top_p": 0.75}, [1, 3]),
    ],
)
def test_the_likeliest_are_drawn_as_often_as_they_should(settings, kept):
    found = frequencies(**settings)
    expected = np.zeros(5)
    expected[kept] = SHARES[kept] / SHARES[kept].sum()
    assert np.flatnonzero(found).tolist() == kept
    spread = np.sqrt(expected * (1 - expected) / ROWS)
    assert (np.abs(found - expected) <= 4 * spread).all()


@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        ({"top_k": 1}, [1]),
        ({"top_k": 2}, [1, 3]),
        ({"top_k": 4}, [0, 1, 2, 3]),
        # Of the likeliest together 0.6: two reach 0.5, three are needed for more than 0.6.
        ({"top_p": 0.5}, [1, 3]),
        ({"top_p": 0.55}, [1, 3]),
        ({"top_p": 0.65}, [0, 1, 3]),
        ({"top_k": 3, "top_p": 0.9}, [0, 1, 3]),
    ],
)
def test_of_equal_tokens_the_first_stay(settings, kept):
    """As a stable sort would have them, in any dtype: bfloat16 logits are often equal."""
    shares = np.array([0.15, 0.3, 0.15, 0.3, 0.1])
    found = frequencies(**settings, shares=shares)
    assert np.flatnonzero(found).tolist() == kept


def test_the_cut_is_that_of_a_sort():
    """Random logits, equal ones, zeros of both signs and minus infinity among them."""
    random = np.random.default_rng(0)
    logits = random.normal(size=(40, 97)).astype(np.float32)
    logits[::2] = logits[::2].round(1)
    logits[1::4, ::5] = -np.inf
    logits[2::4, ::3] *= 0
    key = jax.random.key(0)
    for top_k, top_p in ((None, 0.3), (7, None), (20, 0.8), (97, 0.999), (1, 1.0), (None, 1e-45)):
        sampling = check_sampling(1.5, top_k, top_p, 97, key)
        found = np.isfinite(cut(logits / sampling.temperature, sampling))
        for row, scores in zip(found, logits / np.float32(1.5), strict=True):
            order = np.argsort(-scores, kind="stable")[: top_k or 97]
            shares = np.exp(scores[order] - scores.max())
            shares = shares / shares.sum()
            before = np.cumsum(shares) - shares
            expected = order[(before < (top_p or 1)) | (np.arange(len(order)) == 0)]
            expected = expected[np.isfinite(scores[expected])]
            assert np.flatnonzero(row).tolist() == sorted(expected)


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_temperature(temperature):
    expected = SHARES ** (1 / temperature)
    expected /= expected.sum()
    found = frequencies(temperature)
    assert (np.abs(found - expected) <= 4 * np.sqrt(expected * (1 - expected) / ROWS)).all()


def test_the_lower_the_temperature_the_likelier_the_best():
    best = int(SHARES.argmax())
    for temperature in (1e-3, 1e-30, 1e-38):
        assert frequencies(temperature)[best] == 1
    # Zero, and what a float32 takes for it, draw nothing and need no key.
    for temperature in (0, 0.0, 1e-45):
        assert check_sampling(temperature, 3, 0.5, 5, None) is None


def test_a_row_draws_the_same_however_many_there_are():
    key = jax.random.key(3)
    logits = np.random.default_rng(0).normal(size=(6, 11)).astype(np.float32)
    sampling = check_sampling(1.0, None, None, 11, key)
    together = choose(logits, sampling, key)
    np.testing.assert_array_equal(together[:2], choose(logits[:2], sampling, key))
    np.testing.assert_array_equal(together, choose(logits, sampling, key))
    others = [choose(logits, sampling, jax.random.key(seed)) for seed in range(5)]
    assert any((other != together).any() for other in others)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_best(dtype):
    logits = jnp.array([[1, 3, 3, 0], [2, 1, 0, -1], [0, jnp.nan, 9, 1]], dtype)
    assert choose(logits, None, None).tolist() == [1, 0, -1]
    drawn = choose(logits, check_sampling(1.0, 1, None, 4, 0), jax.random.key(0))
    assert drawn.tolist() == [1, 0, -1]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ((-0.1, None, None), r"temperature is -0\.1; expected a number of at least 0"),
        ((float("nan"), None, None), "temperature is nan"),
        ((float("inf"), None, None), "temperature is inf"),
        (("hot", None, None), "temperature is 'hot'"),
        ((1.0, 0, None), "top_k is 0; expected an integer of at least 1, or None"),
        ((1.0, 2.5, None), r"top_k is 2\.5"),
        ((1.0, None, 0.0), r"top_p is 0\.0; expected a number above 0 and at most 1"),
        ((1.0, None, 1.01), r"top_p is 1\.01"),
        ((0.0, None, 2), "top_p is 2"),
        ((0.7, None, None), r"temperature is 0\.7, but there is no key .* pass key="),
    ],
)
def test_values_out_of_range(values, message):
    with pytest.raises(ModelError, match=message):
        check_sampling(*values, 5, None)

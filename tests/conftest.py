"""Settings for every test: strict dtype promotion, and hypothesis without a clock."""

import os

import hypothesis
import jax
import pytest

hypothesis.settings.register_profile(
    "default", deadline=None, max_examples=int(os.environ.get("LNTUNE_EXAMPLES", "60"))
)
hypothesis.settings.load_profile("default")


@pytest.fixture(autouse=True)
def _strict_promotion():
    with jax.numpy_dtype_promotion("strict"):
        yield

"""Settings for every test: strict dtype promotion, hypothesis without a clock; quick compiling."""

import os

import hypothesis
import jax
import pytest

from tests.support.disks import small_disk  # noqa: F401

hypothesis.settings.register_profile(
    "default", deadline=None, max_examples=int(os.environ.get("LNTUNE_EXAMPLES", "60"))
)
hypothesis.settings.load_profile("default")


@pytest.fixture(autouse=True)
def _strict_promotion():
    with jax.numpy_dtype_promotion("strict"):
        yield


@pytest.fixture(scope="module")
def quick_compilation():
    """For small programs that run a few times: compiling them well takes longer than it saves.

    What was compiled this way is forgotten after the module: it differs in the last bit from what
    another process computes, and jit's cache does not know by which settings it was filled.
    """
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
    jax.clear_caches()

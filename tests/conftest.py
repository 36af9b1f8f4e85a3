"""Settings for every test: strict dtype promotion, hypothesis without a clock; quick compiling."""

import os
import tempfile

import hypothesis
import jax
import pytest

from tests.support.disks import small_disk  # noqa: F401

hypothesis.settings.register_profile(
    "default", deadline=None, max_examples=int(os.environ.get("LNTUNE_EXAMPLES", "60"))
)
hypothesis.settings.load_profile("default")


def pytest_configure(config):
    """Compile quickly, and each program once in a process.

    The programs of tests are small and run a few times: compiling them well takes longer than it
    saves. `JAX_DISABLE_MOST_OPTIMIZATIONS=0` compiles them as users do. Processes that a test
    starts inherit it, since last bits differ by it.
    """
    if "JAX_DISABLE_MOST_OPTIMIZATIONS" not in os.environ:
        os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
        jax.config.update("jax_disable_most_optimizations", True)
    # A folder for each process: JAX reads an entry that another process is still writing.
    folder = tempfile.TemporaryDirectory(prefix="lntune-compiled-", ignore_cleanup_errors=True)
    config.add_cleanup(folder.cleanup)
    # Before anything is compiled: JAX looks once whether there is a cache.
    for name, value in {
        "jax_compilation_cache_dir": folder.name,
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }.items():
        jax.config.update(name, value)


def pytest_collection_modifyitems(items):
    """Files with long tests come first: the short ones fill up what is left at the end."""
    long = {item.path for item in items if item.get_closest_marker("long")}
    items.sort(key=lambda item: item.path not in long)


@pytest.fixture(autouse=True)
def _strict_promotion():
    with jax.numpy_dtype_promotion("strict"):
        yield


@pytest.fixture
def full_optimization():
    """For what runs long: then compiling it well costs less than it saves."""
    was = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", False)
    jax.clear_caches()
    yield
    # jit's own cache does not know by which settings it was filled.
    jax.config.update("jax_disable_most_optimizations", was)
    jax.clear_caches()

"""Page faults of a step on a CPU, counted in a process of its own."""

import platform
import subprocess
import sys

from lntune_jax.training import xla_cpu

_PROGRAM = """
import resource, sys
if sys.argv[1] == "kept":
    from lntune_jax.training.xla_cpu import keep_freed_memory
    assert keep_freed_memory()
import jax, jax.numpy as jnp

@jax.jit
def step(x):  # a temporary of 64 MB
    y = jnp.tanh(jnp.outer(x, x))
    return (y @ y[:, :8]).sum()

def count():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

x = jnp.ones(4096)
for _ in range(20):
    step(x).block_until_ready()
before = count()
for _ in range(8):
    step(x).block_until_ready()
print((count() - before) // 8)
"""


def _count_faults(way: str) -> int:
    command = [sys.executable, "-c", _PROGRAM, way]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def test_a_step_needs_no_new_pages():
    if platform.libc_ver()[0] != "glibc":
        assert xla_cpu.keep_freed_memory() is False
        return
    # Transparent huge pages, where the system gives them unasked, leave little to save.
    assert _count_faults("kept") <= max(_count_faults("as it is") // 2, 200)


def test_another_c_library_is_left_alone(monkeypatch):
    monkeypatch.setattr(xla_cpu.ctypes, "CDLL", lambda name: object())
    assert xla_cpu.keep_freed_memory() is False

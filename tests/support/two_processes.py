"""Processes that are one run of JAX on this machine's CPU, for tests of what they agree on."""

import os
import socket
import subprocess
import sys
from collections.abc import Sequence

from tests.support.paths import ROOT

_START = """
import sys
import jax
rank, port, count = int(sys.argv[1]), sys.argv[2], COUNT
jax.distributed.initialize(f"127.0.0.1:{port}", num_processes=count, process_id=rank)
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
mesh = Mesh(np.array(jax.devices()), ("x",))
def spread(x):
    return jax.make_array_from_callback(x.shape, NamedSharding(mesh, P("x")), lambda i: x[i])
def copy(x):
    return jax.make_array_from_callback(x.shape, NamedSharding(mesh, P()), lambda i: x[i])
"""


def run_two(program: str, arguments: Sequence[object] = (), seconds: int = 200) -> list[list[str]]:
    """Runs a program in two processes, as `run_several` does."""
    return run_several(2, program, arguments, seconds)


def run_several(
    count: int, program: str, arguments: Sequence[object] = (), seconds: int = 200
) -> list[list[str]]:
    """Runs a program in each; gives the lines that each prints and that begin with a `>`.

    The program has `rank` and `count`, a `mesh` over the devices of all (two each), `spread` and
    `copy` to put an array on it, and its arguments from `sys.argv[3]`.

    Raises:
        AssertionError: one of them failed, or did not end in time.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
    }
    start = _START.replace("COUNT", str(count))
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", start + program, str(rank), str(port), *map(str, arguments)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(count)
    ]
    try:
        outputs = [process.communicate(timeout=seconds) for process in processes]
    except subprocess.TimeoutExpired as error:
        for process in processes:
            process.kill()
        ends = [text[-2000:] for process in processes for text in process.communicate()]
        raise AssertionError("the processes wait for one another:\n" + "\n".join(ends)) from error
    assert [process.returncode for process in processes] == [0] * count, outputs
    # Gloo writes to the standard output too.
    return [[line for line in out.splitlines() if line.startswith(">")] for out, _ in outputs]

"""Programs that need several devices, each run in a process of its own with simulated ones."""

import os
import subprocess
import sys

from tests.support.paths import ROOT


def run_on_devices(program: str, count: int, *arguments: object) -> None:
    """Runs Python code with `count` simulated CPU devices; it must end by printing "done".

    The code may import the modules of this folder; `arguments` are its `sys.argv[1:]`.
    """
    environment = os.environ | {
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={count}",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(ROOT),
    }
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.stdout.strip() == "done", done.stderr[-3000:]

"""Programs of a person whose hub is a stand-in on this machine, each in a process of its own.

Processes, since huggingface_hub reads its settings when it is imported.
"""

import os
import subprocess
import sys

from tests.support.hub_server import TOKEN
from tests.support.paths import ROOT


def make_env(home, endpoint="http://127.0.0.1:9", *, offline=False):
    """The environment of a person whose hub is at `endpoint`, with its cache in `home`."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING"))}
    return env | {
        "HF_HOME": str(home),
        "HF_TOKEN": TOKEN,
        "HF_ENDPOINT": endpoint,
        "HF_HUB_OFFLINE": "1" if offline else "0",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "NO_PROXY": "127.0.0.1",
        "no_proxy": "127.0.0.1",
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
    }


START = """
import json, jax, lntune_jax as lnt
from tests.support.small import make_params
hub = lnt.hub
def read(tree):
    return json.dumps([leaf.tolist() for leaf in jax.tree.leaves(tree)])
def attempt(function, *args, **kwargs):
    try:
        return function(*args, **kwargs)
    except lnt.errors.AdapterError as error:
        return f"AdapterError: {error}"
"""


def run_python(arguments, home, env):
    done = subprocess.run(
        [sys.executable, *arguments],
        env=env,
        capture_output=True,
        text=True,
        timeout=300,
        cwd=home,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.strip().splitlines()


def run(code, home, *args, **kwargs):
    """Runs code in a process of its own; gives the lines that it prints."""
    return run_python(["-c", START + code], home, make_env(home, *args, **kwargs))

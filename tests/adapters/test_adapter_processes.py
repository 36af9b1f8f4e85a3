"""Two processes that share one base: both save, one writes, both restore their own shards."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import lntune_jax as lnt
from lntune_jax.adapters.store import load_adapter, restore_adapter
from lntune_jax.errors import AdapterError
from tests.support.adapters import make_params, tune
from tests.support.paths import ROOT

_PROCESS = """
import sys
from pathlib import Path
import jax, numpy as np
where, tests, port, rank = Path(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4])
jax.distributed.initialize(f"127.0.0.1:{port}", num_processes=2, process_id=rank)
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
sys.path.insert(0, tests)
from tests.support.adapters import CONFIG, make_params, tune
import lntune_jax as lnt
from lntune_jax.adapters.store import load_adapter, restore_adapter, save_adapter
mesh = Mesh(np.array(jax.devices()), ("x",))
def spread(x):
    return jax.make_array_from_callback(x.shape, NamedSharding(mesh, P("x")), lambda i: x[i])
params, trainable = jax.tree.map(spread, make_params()), tune(make_params())
save_adapter(where / "a", {k: spread(v) for k, v in trainable.items()}, CONFIG, base=params)
assert set(load_adapter(where / "a").trainable) == set(trainable)
leaf = restore_adapter(where / "a", params)["layers"][0]["norm"]["scale"]
assert not leaf.is_fully_addressable
for shard in leaf.addressable_shards:
    assert np.array_equal(shard.data, trainable["layers.0.norm.scale"][shard.index])
for call in (
    lambda: save_adapter(where / "a", trainable, CONFIG, base=params),
    lambda: restore_adapter(where / "a", jax.tree.map(spread, make_params(seed=1))),
):
    try:
        call()
    except lnt.errors.AdapterError as error:
        print("error:", str(error).replace(str(where), "")[:60], flush=True)
"""


def test_two_processes_save_and_restore(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-c", _PROCESS, str(tmp_path), str(ROOT), str(port)]
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(lnt.__file__).parents[1]),
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
    }
    processes = [
        subprocess.Popen(
            [*command, str(rank)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        outputs = [process.communicate(timeout=100) for process in processes]
    finally:
        for process in processes:
            process.kill()
    # Gloo writes to the standard output too.
    first, second = (
        [line for line in out.splitlines() if line.startswith("error:")] for out, _ in outputs
    )
    assert len(first) == len(second) == 2, outputs
    assert "exists: pass another path" in first[0], outputs
    assert "the first process could not write the adapter" in second[0], outputs
    assert first[1] == second[1]
    assert "the adapter /a was trained on another base" in first[1]
    restore_adapter(tmp_path / "a", make_params())
    with pytest.raises(AdapterError, match="another base"):
        restore_adapter(tmp_path / "a", make_params(seed=1))
    for name, value in tune(make_params()).items():
        np.testing.assert_array_equal(load_adapter(tmp_path / "a").trainable[name], value)

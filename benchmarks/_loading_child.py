"""One process of a run that loads a model; started by `loading_shards.py`, prints JSON."""

import json
import sys
import time
import tracemalloc
from pathlib import Path

import jax

folder, axis, port, count, rank = sys.argv[1:]
count = int(count)
jax.distributed.initialize(f"127.0.0.1:{port}", num_processes=count, process_id=int(rank))

from lntune_jax.models import from_config, from_pretrained  # noqa: E402
from lntune_jax.models.loading.safetensors import Weights  # noqa: E402

asked, view = [], Weights.read


def count_bytes(self, key, index=()):
    part = view(self, key, index)
    asked.append(part.nbytes)
    return part


def read_from_disk() -> int:
    lines = Path("/proc/self/io").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("read_bytes")))


Weights.read = count_bytes
mesh = jax.make_mesh((count,), (axis,), axis_types=(jax.sharding.AxisType.Auto,))
from_config(folder, "CAUSAL_LM")  # what this imports is not the weights
before, start = read_from_disk(), time.process_time()
tracemalloc.start()
model = from_pretrained(folder, "CAUSAL_LM", mesh=mesh, scan_layers=True)
held, peak = tracemalloc.get_traced_memory()
tracemalloc.stop()
leaves = jax.tree.leaves(model.params)
shards = [leaf.addressable_shards[0].data.nbytes for leaf in leaves]
print(
    json.dumps(
        {
            "asked_bytes": sum(asked),
            "from_disk_bytes": read_from_disk() - before,
            "on_the_way_bytes": peak - held,
            "largest_shard_bytes": max(shards),
            "share_bytes": sum(shards),
            "processor_seconds": time.process_time() - start,
        }
    )
)

"""A process that finds JAX's compilation cache filled compiles nothing."""

import json
import os
import subprocess
import sys

from tests.support.paths import ROOT

PROGRAM = """
import json
import jax
import optax

events = []

def listen(event, *_, **__):
    events.append(event.rpartition("/")[2])

jax.monitoring.register_event_listener(listen)
jax.monitoring.register_event_duration_secs_listener(listen)
import lntune_jax as lnt
from tests.support.small import loss_fn, make_batch, make_params

config = lnt.LNTuningConfig(modules_to_save=["classifier"])
params, batch = make_params("bfloat16"), make_batch()
trainable, frozen = lnt.partition_params(params, config)
tx = optax.adamw(1e-3)
step = lnt.make_train_step(loss_fn, tx, config, ema_decay=0.9, clip_norm=1.0)
state = lnt.TrainState.create(trainable, tx, ema=True)
before = events.count("backend_compile_duration")
state, metrics = step(state, frozen, batch)
jax.block_until_ready(state)
print(json.dumps({
    "before": before,
    "programs": events.count("backend_compile_duration"),
    "read": events.count("cache_hits"),
    "missed": events.count("cache_misses"),
    "programs of the step": step.compilations(),
    "loss": float(metrics["loss"]),
}))
"""


def run(cache, seed):
    environment = os.environ | {
        "PYTHONHASHSEED": seed,
        "PYTHONPATH": str(ROOT),
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_the_second_process_reads_every_program_from_the_cache(tmp_path):
    """Whatever the order of sets in each: the program must not depend on it."""
    first, second = run(tmp_path, "1"), run(tmp_path, "2")
    assert first["programs"] > first["before"]  # the step is one
    assert first["missed"] > 0
    assert second["missed"] == 0
    assert second["read"] == second["programs"] == first["programs"]
    assert first["programs of the step"] == second["programs of the step"] == 1
    assert first["loss"] == second["loss"]

"""One process from its start to the end of its second step; run by `start.py`, prints JSON."""

import json
import sys
import time

STARTED = float(sys.argv[1])  # the parent's clock just before this process began
marks = {"python": time.time()}

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402

import lntune_jax as lnt  # noqa: E402

marks["import"] = time.time()
durations: dict[str, float] = {}
events: dict[str, int] = {}


def add_duration(event: str, seconds: float, **_) -> None:
    name = event.rpartition("/")[2]
    durations[name] = durations.get(name, 0.0) + seconds
    events[name] = events.get(name, 0) + 1


def add_event(event: str, **_) -> None:
    name = event.rpartition("/")[2]
    events[name] = events.get(name, 0) + 1


jax.monitoring.register_event_duration_secs_listener(add_duration)
jax.monitoring.register_event_listener(add_event)

directory, task, scans = sys.argv[2], sys.argv[3], sys.argv[4] == "scan"
model = lnt.models.from_pretrained(directory, task, scan_layers=scans)
jax.block_until_ready(model.params)
marks["load"] = time.time()

config = lnt.LNTuningConfig(modules_to_save=["classifier"] if task == "SEQ_CLS" else None)
ids = jnp.ones((4, 64), jnp.int32)


def loss_fn(params, ids):
    if task == "SEQ_CLS":
        return jnp.mean(jnp.square(model.apply(params, ids).logits))
    return lnt.models.causal_lm_loss(model, params, ids)


tx = lnt.adamw(config, 1e-3)
trainable, frozen = lnt.partition_params(model.params, config, name_map=model.name_map)
state = lnt.TrainState.create(trainable, tx)
step = lnt.make_train_step(loss_fn, tx)
marks["split"] = time.time()
state, metrics = step(state, frozen, ids)
jax.block_until_ready((state, metrics))
marks["first step"] = time.time()
state, metrics = step(state, frozen, ids)
jax.block_until_ready((state, metrics))
marks["second step"] = time.time()

previous, seconds = STARTED, {}
for name, at in marks.items():
    seconds[name], previous = at - previous, at
print(
    json.dumps(
        {
            **seconds,
            "to first step": marks["first step"] - STARTED,
            "traced": durations.get("jaxpr_trace_duration", 0.0)
            + durations.get("jaxpr_to_mlir_module_duration", 0.0),
            "compiled or read": durations.get("backend_compile_duration", 0.0),
            "programs": events.get("backend_compile_duration", 0),
            "programs compiled": events.get("backend_compile_duration", 0)
            - events.get("cache_hits", 0),
        }
    )
)

"""LN tuning of 70B and 405B bases on 256 and 4,096 chips, on paper; formulas checked on 8 devices.

First a small Llama, its layers in a loop and in full remat, is compiled for eight simulated
devices, and the formulas' figures are printed beside the compiler's; with `--check` that is all.
Then come the tables: memory by `estimate_memory`, network and operations by `_plan`. Speeds of
chips and networks are the vendors' figures, not measurements; `SHARE` of them is assumed to be
reached.
"""

import argparse
import os
import tempfile
import time

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "")
    + " --xla_force_host_platform_device_count=8 --xla_cpu_experimental_ynn_fusion_type="
)


import jax
import jax.numpy as jnp
import optax
from _plan import (
    Llama,
    Mesh,
    added,
    full_state_bytes,
    gathered,
    norm_gradients,
    operations,
    ring,
    state_bytes,
)
from _results import write_results

import lntune_jax as lnt
from lntune_jax.models import estimate_memory, from_config
from lntune_jax.models.planning.collectives import total
from lntune_jax.training import open_checkpoints, save_state
from tests.support import collectives
from tests.support.mesh_steps import compiled_bytes

MODELS = {
    "70B": Llama(8192, 80, 64, 8, 128, 28672, 128256),
    "405B": Llama(16384, 126, 128, 8, 128, 53248, 128256),
}
LENGTH, SHARE = 4096, 0.4
# Peak operations in bfloat16, bytes of memory, bytes a second that a chip sends to the others of
# its "fsdp" group, and, of a GPU, to those of its own host (8 of them).
CHIPS = {
    "TPU v5p": {"operations": 459e12, "memory": 95e9, "network": 600e9, "host": 600e9},
    "H100": {"operations": 989e12, "memory": 80e9, "network": 50e9, "host": 450e9},
}
MESHES = {
    "70B": (
        (Mesh(1, 256, 1), 1),
        (Mesh(1, 32, 8), 1),
        (Mesh(16, 256, 1), 1),
        (Mesh(128, 32, 1), 1),
        (Mesh(64, 8, 8), 1),
    ),
    "405B": ((Mesh(1, 256, 1), 1), (Mesh(1, 32, 8), 1), (Mesh(16, 256, 1), 1), (Mesh(64, 8, 8), 1)),
}


def config_of(model: Llama) -> dict:
    return {
        "model_type": "llama",
        "vocab_size": model.words,
        "hidden_size": model.width,
        "intermediate_size": model.inner,
        "num_hidden_layers": model.layers,
        "num_attention_heads": model.heads,
        "num_key_value_heads": model.shared,
        "head_dim": model.head,
        "tie_word_embeddings": False,
        "max_position_embeddings": 131072,
    }


def sizes_of(mesh: Mesh) -> dict[str, int]:
    found = {"data": mesh.data, "fsdp": mesh.fsdp, "tensor": mesh.tensor}
    return {name: size for name, size in found.items() if size > 1}


def check() -> list[dict]:
    """The formulas beside the compiler's figures, for a small model in float32."""
    config = collectives.LLAMA
    model = Llama(256, config["num_hidden_layers"], 8, 8, 32, 704, 2048)
    rows = []
    for mesh in (Mesh(8, 1, 1), Mesh(1, 8, 1), Mesh(1, 1, 8), Mesh(1, 4, 2)):
        sizes = sizes_of(mesh)
        found = collectives.measure(sizes, "ln", remat="full", scan_layers=True)
        groups = mesh.data * mesh.fsdp
        own, length = collectives.ROWS // groups, collectives.LENGTH
        planned = {
            "all-gather": gathered(model, mesh, 4),
            "all-reduce": norm_gradients(model, mesh)
            + added(model, mesh, own, length, 4, merged=False),
        }
        options = {"remat": "full", "scan_layers": True}
        built = from_config(config, "CAUSAL_LM", dtype="float32", **options)
        tokens = jax.ShapeDtypeStruct((collectives.ROWS, length), "int32")
        held = compiled_bytes(built, "ln", tokens, collectives.make_mesh(sizes))
        estimate = estimate_memory(
            built, "ln", batch_size=own, length=length, remat="full", mesh=sizes
        ).total
        pairs = {kind: (planned[kind], total(found, kind)) for kind in planned}
        pairs["memory"] = (estimate, held)
        for kind, (plan, compiled) in pairs.items():
            error = plan / compiled - 1 if compiled else float(plan > 0)
            print(f"{sizes!s:26} {kind:10} {plan:>12,} {compiled:>12,} {error:+.1%}", flush=True)
            rows.append({"mesh": sizes, "what": kind, "plan": plan, "compiler": compiled})
    return rows


def plan(name: str, mesh: Mesh, rows: int) -> dict:
    """A row of the table: a step of `rows` texts on each group of devices, in bfloat16."""
    model = MODELS[name]
    memory = estimate_memory(
        config_of(model),
        "ln",
        dtype="bfloat16",
        batch_size=rows,
        length=LENGTH,
        remat="full",
        scan_layers=True,
        mesh=sizes_of(mesh),
    )
    weights = ring(gathered(model, mesh, 2), mesh.fsdp)
    activations = ring(added(model, mesh, rows, LENGTH, 2, merged=True), mesh.tensor, times=2)
    norms = ring(norm_gradients(model, mesh), mesh.data * mesh.fsdp, times=2)
    step = operations(model, rows, LENGTH) / mesh.tensor
    found = {
        "model": name,
        "mesh": sizes_of(mesh),
        "chips": mesh.devices,
        "tokens": rows * LENGTH * mesh.data * mesh.fsdp,
        "memory": memory.total,
        "weights_sent": weights,
        "activations_sent": activations,
        "norms_sent": norms,
        "operations": step,
    }
    for chip, speed in CHIPS.items():
        times = {
            "compute": step / (SHARE * speed["operations"]),
            "gathering": weights / (SHARE * speed["network"]),
            "adding": activations / (SHARE * speed["host"]),
        }
        fits = memory.total < 0.9 * speed["memory"]
        slowest = max(times, key=lambda kind: times[kind])
        found[chip] = times | {"first": slowest if fits else "memory"}
    return found


def measure_save(name: str) -> float:
    """Seconds that a checkpoint of the norms' state takes here."""
    model = MODELS[name]
    leaves = {
        f"layers.{index}.norm": jnp.ones(model.width) for index in range(2 * model.layers + 1)
    }
    state = lnt.TrainState.create(leaves, optax.adamw(1e-3))
    with tempfile.TemporaryDirectory() as folder, open_checkpoints(folder) as manager:
        began = time.perf_counter()
        save_state(manager, state)
        return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="only compare with the compiler")
    options = parser.parse_args()
    checks = check()
    if options.check:
        return
    rows = []
    for name, meshes in MESHES.items():
        model = MODELS[name]
        seconds = measure_save(name)
        print(
            f"\n{name}: {model.total:,} weights, {model.norms:,} in norms; checkpoint "
            f"{state_bytes(model) / 1e6:.0f} MB ({seconds:.2f} s here), full fine-tuning's "
            f"{full_state_bytes(model) / 1e12:.2f} TB"
        )
        for mesh, own in meshes:
            row = plan(name, mesh, own)
            rows.append(row)
            print(
                f"  {row['mesh']!s:40} {row['tokens']:>11,} tokens, {row['memory'] / 1e9:6.1f} GB; "
                f"sent GB: weights {row['weights_sent'] / 1e9:.1f}, activations "
                f"{row['activations_sent'] / 1e9:.1f}, norms {row['norms_sent'] / 1e9:.3f}",
                flush=True,
            )
            for chip in CHIPS:
                times = row[chip]
                shown = ", ".join(
                    f"{kind} {times[kind]:.2f} s" for kind in ("compute", "gathering", "adding")
                )
                print(f"      {chip:8} {shown}: first {times['first']}")
    write_results("paper_plan", {"checks": checks, "plan": rows, "length": LENGTH, "share": SHARE})


if __name__ == "__main__":
    main()

"""How long does a save stop a training loop, and a swap of adapters a live model?

Asynchronous saves (`save_state(wait=False)`) block while the values are copied and handed to
Orbax; the rest is done beside the loop. Medians in turns, with the save that waits and with Orbax's
own asynchronous manager. A model is jitted once; its adapter is swapped from disk
(`restore_adapter`), from disk to a dict and merged, by merging leaves that are already loaded, and
by another id of a bank that is on the device. Each swap is timed with the forward pass after it,
and without; programs compiled meanwhile are counted: the limit is none.
"""

import argparse
import dataclasses
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import optax
import orbax.checkpoint as ocp
from _results import write_results
from _timing import time_in_turns

import lntune_jax as lnt
from lntune_jax.training import checkpoints as checkpoint
from tests.support.live_adapters import ROWS, WIDTH, make_swaps

STATES = {
    "26 leaves x 384": (26, 384),
    "65 leaves x 4,096": (65, 4096),
    "40 x 65,536": (40, 65_536),
}


def compare_saves(leaves: int, width: int, folder: Path, rounds: int) -> dict[str, float]:
    """Milliseconds for which a save of norms and AdamW's state stops its caller."""
    trainable = {f"layers.{index}.norm.scale": jnp.ones(width) for index in range(leaves)}
    state = lnt.TrainState.create(trainable, optax.adamw(1e-3))
    steps = itertools.count(1)
    found: dict[str, list[float]] = {"waits": [], "blocks": [], "finishes": [], "Orbax blocks": []}

    def clock(name: str, run: Callable[[], object]) -> None:
        start = time.perf_counter()
        run()
        found[name].append((time.perf_counter() - start) * 1e3)

    manager = checkpoint.open_checkpoints(folder / "ours")
    orbax = ocp.CheckpointManager(
        folder / "orbax", options=ocp.CheckpointManagerOptions(max_to_keep=2)
    )
    with manager, orbax:
        for _ in range(rounds + 1):
            now = dataclasses.replace(state, step=jnp.asarray(next(steps), jnp.int32))
            clock("waits", lambda now=now: checkpoint.save_state(manager, now))
            now = dataclasses.replace(state, step=jnp.asarray(next(steps), jnp.int32))
            clock("blocks", lambda now=now: checkpoint.save_state(manager, now, wait=False))
            clock("finishes", lambda: checkpoint.finish_saves(manager))
            args = ocp.args.StandardSave(now)  # pyright: ignore[reportCallIssue]
            clock("Orbax blocks", lambda now=now, a=args: orbax.save(int(now.step), args=a))
            orbax.wait_until_finished()
    medians = {name: statistics.median(times[1:]) for name, times in found.items()}
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    return {"state MB": size / 1e6, **{f"{name} ms": ms for name, ms in medians.items()}}


def compare_swaps(folder: Path, rounds: int) -> dict[str, dict[str, float]]:
    swaps, programs = make_swaps(folder)
    x = jax.random.normal(jax.random.key(1), (ROWS, 32, WIDTH))

    def run(name: str) -> None:
        jax.block_until_ready(programs[name](*swaps[name](), x))

    times = time_in_turns(
        {name: lambda n=name: jax.block_until_ready(swaps[n]()) for name in swaps}, rounds
    )
    for name in swaps:  # each model is compiled before, with one of the two adapters
        run(name)
    compiled = dict.fromkeys(swaps, 0)
    running = ""

    def count(event: str, *_, **__) -> None:
        if event.endswith("backend_compile_duration"):
            compiled[running] += 1

    jax.monitoring.register_event_duration_secs_listener(count)
    for running in list(swaps) * 2:
        run(running)
    whole = time_in_turns({name: lambda n=name: run(n) for name in swaps}, rounds)
    return {
        name: {
            "swap ms": statistics.median(times[name]) * 1e3,
            "with forward pass ms": statistics.median(whole[name]) * 1e3,
            "programs compiled": compiled[name],
        }
        for name in swaps
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory(dir=".") as name:
        saves = {}
        for number, (state, (leaves, width)) in enumerate(STATES.items()):
            folder = Path(name).resolve() / str(number)
            folder.mkdir()
            saves[state] = compare_saves(leaves, width, folder, rounds)
        swaps = compare_swaps(Path(name).resolve(), rounds)
    for table in (saves, swaps):
        print("".join(f"{head:>22s}" for head in ("", *next(iter(table.values())))))
        for row, figures in table.items():
            print(f"{row:>30s}" + "".join(f"{figure:22.2f}" for figure in figures.values()))
    figures = {"asynchronous saves": saves, "swapping": swaps, "settings": {"rounds": rounds}}
    print(f"written to {write_results('adapter_live', figures)}")


if __name__ == "__main__":
    main()

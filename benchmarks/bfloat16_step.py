"""What does `make_train_step` ask of XLA on a CPU, and what does it bring?

The same step of LN tuning as a plain `jax.jit`, with the options that keep barriers and stacks of
bfloat16 kernels, and by `make_train_step`, which takes them by itself; in bfloat16 and, to see that
they change nothing there, in float32. Shown are the time (the median of ratios, in turns, to the
plain step's; freed memory is kept for all) and, by the compiler's own account, the temporaries.
"""

import argparse
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from _peft_worker import Shape, make_batch, make_halves, make_loss, parse_shape
from _results import write_results
from _timing import median_ratio, time_in_turns

import lntune_jax as lnt
from lntune_jax.training.xla_cpu import compiler_options, keep_freed_memory

SHAPES = {
    "MiniLM, bfloat16": ("minilm:8x64:bfloat16", False),
    "SmolLM2-135M, bfloat16": ("smollm2:2x96:bfloat16", False),
    "SmolLM2-135M scanned, bfloat16": ("smollm2:2x96:bfloat16", True),
    "MiniLM, float32": ("minilm:8x64:float32", False),
    "SmolLM2-135M scanned, float32": ("smollm2:2x96:float32", True),
}
PLAIN, READY = "jax.jit", "make_train_step"
OPTIMIZER = optax.adamw(1e-4, weight_decay=0.0)


def make_steps(shape: Shape, scanned: bool) -> dict[str, tuple[Callable[[], object], float]]:
    """By variant, a function that takes a step, and the bytes of its temporaries."""
    model, loss = make_loss(shape, scan_layers=scanned)
    trainable, frozen = make_halves(model, shape)
    batch = {name: jnp.asarray(value) for name, value in make_batch(shape).items()}
    gradient = lnt.value_and_grad(loss)

    def step(state, frozen, batch):
        trainable, moments = state
        value, gradients = gradient(trainable, frozen, batch)
        updates, moments = OPTIMIZER.update(gradients, moments, trainable)
        return (optax.apply_updates(trainable, updates), moments), value

    def own(function, options):
        jitted = jax.jit(function, donate_argnums=0, compiler_options=options)
        state = jax.tree.map(jnp.copy, (trainable, OPTIMIZER.init(trainable)))
        return run_steps(jitted, state, frozen, batch)

    ready = lnt.make_train_step(loss, OPTIMIZER)
    copies = jax.tree.map(jnp.copy, trainable)
    return {
        PLAIN: own(step, {}),
        "with its options": own(step, compiler_options()),
        READY: run_steps(ready, lnt.TrainState.create(copies, OPTIMIZER), frozen, batch),
    }


def run_steps(jitted, state, frozen, batch) -> tuple[Callable[[], object], float]:
    held = [state]
    compiled = jitted.lower(state, frozen, batch).compile()

    def run():
        held[0], value = compiled(held[0], frozen, batch)
        jax.block_until_ready(value)

    return run, compiled.memory_analysis().temp_size_in_bytes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--shapes", nargs="+", choices=list(SHAPES), default=list(SHAPES))
    options = parser.parse_args()
    keep_freed_memory()
    figures: dict[str, dict] = {}
    for name in options.shapes:
        text, scanned = SHAPES[name]
        steps = make_steps(parse_shape(text), scanned)
        times = time_in_turns({key: run for key, (run, _) in steps.items()}, options.rounds)
        print(f"{name:34s} {'least s':>8s} {'ratio':>6s} {'temporaries MB':>15s}")
        figures[name] = {}
        for variant, (_, held) in steps.items():
            row = {
                "least_seconds": min(times[variant]),
                "time_to_plain": median_ratio(times, variant, PLAIN),
                "temporary_bytes": held,
            }
            figures[name][variant] = row
            seconds, ratio = row["least_seconds"], row["time_to_plain"]
            print(f"  {variant:32s} {seconds:8.3f} {ratio:6.3f} {held / 1e6:15.1f}", flush=True)
        del steps
        jax.clear_caches()
    path = write_results("bfloat16_step", figures | {"settings": vars(options)})
    print(f"written to {path}")


if __name__ == "__main__":
    main()

"""What does a LayerNorm-tuning step cost, beside full fine-tuning and the usual ways to freeze?

One jitted step of AdamW, 6 layers 384 wide (the shape of all-MiniLM-L6-v2, without its
embeddings), float32, for each variant: matmul FLOPs in the lowered program, the compiler's
temporary and output bytes, optimizer state, and the median time of interleaved runs as a ratio to
full fine-tuning. The limit is forward 2N + activation gradients 2N: 4/6 of full, and a little more
for attention.
"""

import argparse
import re
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
from _results import write_results

import lntune_jax as lnt

LAYERS, WIDTH, HIDDEN, HEADS, CLASSES = 6, 384, 1536, 12, 2
CONFIG = lnt.LNTuningConfig()
LABELS = {"trainable": optax.adamw(1e-3, weight_decay=0.0), "frozen": optax.set_to_zero()}


def make_params() -> dict:
    keys = iter(jax.random.split(jax.random.key(0), 6 * LAYERS + 1))

    def dense(fan_in: int, fan_out: int) -> dict:
        kernel = jax.random.normal(next(keys), (fan_in, fan_out)) * fan_in**-0.5
        return {"kernel": kernel, "bias": jnp.zeros(fan_out)}

    def norm() -> dict:
        return {"scale": jnp.ones(WIDTH), "bias": jnp.zeros(WIDTH)}

    def layer() -> dict:
        names = ("query", "key", "value", "output")
        block = {name: dense(WIDTH, WIDTH) for name in names}
        block |= {"up": dense(WIDTH, HIDDEN), "down": dense(HIDDEN, WIDTH)}
        return block | {"ln_1": norm(), "ln_2": norm()}

    layers = {str(index): layer() for index in range(LAYERS)}
    return {"layers": layers, "ln_f": norm(), "classifier": dense(WIDTH, CLASSES)}


def apply(params: dict, x: jax.Array) -> jax.Array:
    def dense(x, leaves):
        return x @ leaves["kernel"] + leaves["bias"]

    def norm(x, leaves):
        mean = x.mean(-1, keepdims=True)
        variance = jnp.square(x - mean).mean(-1, keepdims=True)
        return (x - mean) * jax.lax.rsqrt(variance + 1e-6) * leaves["scale"] + leaves["bias"]

    def heads(x):
        return x.reshape(*x.shape[:2], HEADS, -1)

    for layer in params["layers"].values():
        h = norm(x, layer["ln_1"])
        query, key, value = (heads(dense(h, layer[name])) for name in ("query", "key", "value"))
        attended = jax.nn.dot_product_attention(query, key, value).reshape(x.shape)
        x = x + dense(attended, layer["output"])
        h = norm(x, layer["ln_2"])
        x = x + dense(jax.nn.gelu(dense(h, layer["up"])), layer["down"])
    return dense(norm(x, params["ln_f"]).mean(1), params["classifier"])


def loss_fn(params: dict, batch: tuple) -> jax.Array:
    losses = optax.softmax_cross_entropy_with_integer_labels(apply(params, batch[0]), batch[1])
    return losses.mean()


def make_whole_tree_step(tx, params):
    def step(params, state, _, batch):
        loss, grads = jax.value_and_grad(loss_fn)(params, batch)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state, loss

    return jax.jit(step, donate_argnums=(0, 1)), (params, tx.init(params), None)


def make_split_step(params):
    tx = optax.adamw(1e-3, weight_decay=0.0)
    trainable, frozen = lnt.partition_params(params, CONFIG)

    def step(trainable, state, frozen, batch):
        loss, grads = lnt.value_and_grad(loss_fn)(trainable, frozen, batch)
        updates, state = tx.update(grads, state, trainable)
        return optax.apply_updates(trainable, updates), state, loss

    jitted = jax.jit(step, donate_argnums=(0, 1))
    return jitted, (jax.tree.map(jnp.copy, trainable), tx.init(trainable), frozen)


def make_variants() -> dict:
    def ten_lines():
        return optax.multi_transform(LABELS, lambda tree: lnt.label_params(tree, CONFIG))

    clip = optax.clip_by_global_norm(1.0)
    whole_tree = {
        "full fine-tuning": optax.adamw(1e-3, weight_decay=0.0),
        "ten lines: multi_transform": ten_lines(),
        "ten lines, clipping outside": optax.chain(clip, ten_lines()),
        "ten lines, MultiSteps outside": optax.MultiSteps(ten_lines(), 2),
        "ours: make_optimizer": lnt.make_optimizer(LABELS["trainable"], CONFIG),
    }
    variants = {name: make_whole_tree_step(tx, make_params()) for name, tx in whole_tree.items()}
    return variants | {"ours: partition_params": make_split_step(make_params())}


def count_flops(lowered) -> float:
    """FLOPs of the matmuls in the program that JAX hands to the compiler."""
    total = 0
    pattern = (
        r"dot_general.*?contracting_dims = \[([\d, ]*)\]"
        r".*?: \(tensor<([\dx]+)xf32>.*?-> tensor<([\dx]+)xf32>"
    )
    for axes, left, out in re.findall(pattern, lowered.as_text()):
        shape = [int(n) for n in left.split("x")]
        inner = np.prod([shape[int(axis)] for axis in axes.split(",") if axis.strip()])
        total += 2 * int(inner) * int(np.prod([int(n) for n in out.split("x")]))
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--length", type=int, default=64)
    options = parser.parse_args()
    x = jax.random.normal(jax.random.key(1), (options.batch, options.length, WIDTH))
    batch = (x, jnp.zeros(options.batch, jnp.int32))
    figures, running = {}, {}
    for name, (step, arguments) in make_variants().items():
        lowered = step.lower(*arguments, batch)
        memory = lowered.compile().memory_analysis()
        figures[name] = {
            "gflops": count_flops(lowered) / 1e9,
            "temporary_mb": memory.temp_size_in_bytes / 1e6,
            "output_mb": memory.output_size_in_bytes / 1e6,
            "state_mb": sum(leaf.nbytes for leaf in jax.tree.leaves(arguments[1])) / 1e6,
        }
        running[name] = (step, arguments)
    times: dict[str, list[float]] = {name: [] for name in running}
    for _ in range(options.rounds + 1):  # the first round compiles
        for name, (step, (params, state, frozen)) in running.items():
            start = time.perf_counter()
            params, state, loss = step(params, state, frozen, batch)
            jax.block_until_ready((params, state, loss))
            times[name].append(time.perf_counter() - start)
            running[name] = (step, (params, state, frozen))
    base = statistics.median(times["full fine-tuning"][1:])
    for name, runs in times.items():
        figures[name]["time_ratio"] = statistics.median(runs[1:]) / base
    head = ("variant", "time", "GFLOP", "temp MB", "outputs MB", "state MB")
    print("{:31s} {:>5s} {:>7s} {:>8s} {:>11s} {:>9s}".format(*head))
    for name, row in figures.items():
        print(
            f"{name:31s} {row['time_ratio']:5.2f} {row['gflops']:7.2f} {row['temporary_mb']:8.1f} "
            f"{row['output_mb']:11.2f} {row['state_mb']:9.2f}"
        )
    print(f"written to {write_results('step', figures | {'shape': vars(options)})}")


if __name__ == "__main__":
    main()

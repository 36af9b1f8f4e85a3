"""What does it cost to train K adapters in one step, beside one after the other?

A small encoder (6 layers, 384 wide, float32), AdamW, norms only, for 1, 4, 16 and 64
adapters and 8 to 512 tokens a step and adapter. Three ways, in alternation: all adapters in one
step (`make_multi_step(adapters=K)`, each with a batch of its own), K steps one after the other,
and the bound: one adapter on all the rows together. Medians, as ratios to one after the other.
`--at-once 8` adds a fourth: eight adapters at a time (`adapters_at_once`), which bounds the memory.
"""

import argparse
import statistics
import time

import jax
import jax.numpy as jnp
import optax
from _results import write_results

import lntune_jax as lnt
from lntune_jax.models.planning.program import count_flops

LAYERS, WIDTH, HIDDEN, HEADS, CLASSES = 6, 384, 1536, 12, 2
CONFIG = lnt.LNTuningConfig()


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


def make_batch(rows: int, length: int, adapters: int | None = None) -> tuple:
    shape = (rows, length, WIDTH) if adapters is None else (adapters, rows, length, WIDTH)
    return jax.random.normal(jax.random.key(1), shape), jnp.zeros(shape[:-2], jnp.int32)


def make_runs(adapters: int, rows: int, length: int, at_once: int | None) -> tuple[dict, dict]:
    """For each way a function of its state that trains every adapter once, and the state."""
    tx = optax.adamw(1e-3, weight_decay=0.0)
    trainable, frozen = lnt.partition_params(make_params(), CONFIG)
    state = lnt.TrainState.create(trainable, tx)
    one = lnt.make_train_step(loss_fn, tx, donate=False)
    many = lnt.make_multi_step(loss_fn, tx, adapters=adapters, own_batches=True, donate=False)
    own, all_rows = make_batch(rows, length), make_batch(adapters * rows, length)
    stacked, batches = lnt.stack_states([state] * adapters), make_batch(rows, length, adapters)

    def one_after_the_other():
        return [one(state, frozen, own)[0].trainable for _ in range(adapters)]

    runs = {
        "one after the other": one_after_the_other,
        "in one step": lambda: many(stacked, frozen, batches)[0].trainable,
        "bound": lambda: one(state, frozen, all_rows)[0].trainable,
    }
    programs = {
        "in one step": many.lower(stacked, frozen, batches),
        "bound": one.lower(state, frozen, all_rows),
    }
    if at_once is not None and at_once < adapters:
        chunked = lnt.make_multi_step(
            loss_fn,
            tx,
            adapters=adapters,
            own_batches=True,
            adapters_at_once=at_once,
            donate=False,
        )
        runs["chunked"] = lambda: chunked(stacked, frozen, batches)[0].trainable
        programs["chunked"] = chunked.lower(stacked, frozen, batches)
    return runs, {
        name: {
            "gflops": count_flops(lowered) / 1e9,
            "temporary_mb": lowered.compile().memory_analysis().temp_size_in_bytes / 1e6,
        }
        for name, lowered in programs.items()
    }


def measure(runs: dict, rounds: int) -> dict[str, float]:
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds + 1):  # the first round compiles
        for name, run in runs.items():
            start = time.perf_counter()
            jax.block_until_ready(run())
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(each[1:]) for name, each in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--adapters", type=int, nargs="+", default=[1, 4, 16, 64])
    parser.add_argument("--tokens", type=int, nargs="+", default=[8, 64, 512])
    parser.add_argument("--at-once", type=int, help="also so many adapters at a time")
    options = parser.parse_args()
    figures = {}
    print("adapters  tokens  in one step   bound  GFLOP (bound)    temp MB (bound)")
    for tokens in options.tokens:
        for adapters in options.adapters:
            rows = max(tokens // 64, 1)
            runs, row = make_runs(adapters, rows, tokens // rows, options.at_once)
            # A round of the largest takes most of a minute on two cores.
            rounds = min(options.rounds, 3) if adapters * tokens > 8192 else options.rounds
            times = measure(runs, rounds)
            base = times["one after the other"]
            for name in row:
                row[name]["time_ratio"] = times[name] / base
            row["one after the other"] = {"seconds": base}
            figures[f"{adapters} adapters, {tokens} tokens"] = row
            many, bound = row["in one step"], row["bound"]
            print(
                f"{adapters:8d}  {tokens:6d}  {many['time_ratio']:11.2f}  "
                f"{bound['time_ratio']:6.2f}"
                f"  {many['gflops']:6.2f} ({bound['gflops']:6.2f}) "
                f"{many['temporary_mb']:9.1f} ({bound['temporary_mb']:.1f})",
                flush=True,
            )
            if "chunked" in row:
                chunked = row["chunked"]
                print(
                    f"{options.at_once:17d} at a time {chunked['time_ratio']:6.2f}"
                    f"{chunked['temporary_mb']:34.1f}",
                    flush=True,
                )
    name = "many_adapters" if options.at_once is None else "many_adapters_chunked"
    print(f"written to {write_results(name, figures)}")


if __name__ == "__main__":
    main()

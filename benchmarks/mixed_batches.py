"""What does a batch cost whose 16 rows use 16 adapters, beside one adapter for the whole batch?

A Llama of 6 layers 384 wide (float32) and a bank of 64 adapters, at 16 x 32 tokens and at decoding
(16 x 1 token, with a cache of 64 slots): the native path, `apply_per_example`, one row after the
other, and LoRA of rank 8 on queries and values, with one adapter and with one for each row. All
are jitted, take the adapters from their bank inside, and run interleaved; the figures are medians
of the ratios within a round to LN tuning with one adapter.
"""

import argparse
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np
from _results import write_results
from transformers import LlamaConfig

import lntune_jax as lnt
from lntune_jax import bank as banks
from lntune_jax.models import empty_cache, from_config
from lntune_jax.models.estimating.lora import TARGETS, run_with_factors

ROWS, RANK = 16, 8
ONE, MIXED = "one adapter for the batch", "mixed batch, native"
SHAPES = {"16 x 32 tokens": 32, "16 x 1 token, decoding": 1}
CONFIG = LlamaConfig(
    vocab_size=8192,
    hidden_size=384,
    intermediate_size=1024,
    num_hidden_layers=6,
    num_attention_heads=6,
    num_key_value_heads=6,
    max_position_embeddings=128,
    tie_word_embeddings=True,
)


def make_params(model) -> dict:
    draw = np.random.default_rng(0)

    def fill(path, leaf):
        values = draw.normal(0, 0.02, leaf.shape).astype("f")
        return jnp.asarray(np.ones(leaf.shape, "f") if path[-1].key == "scale" else values)

    return jax.tree_util.tree_map_with_path(fill, model.params)


def make_bank(params: dict, adapters: int) -> banks.AdapterBank:
    draw = np.random.default_rng(1)
    norms = lnt.partition_params(params, lnt.LNTuningConfig()).trainable

    def adapter() -> dict:
        return {
            p: np.asarray(v) + draw.normal(0, 0.1, v.shape).astype("f") for p, v in norms.items()
        }

    tuned = {f"adapter {number}": adapter() for number in range(adapters - 1)}
    return banks.make_bank(params, tuned, capacity=adapters)


def make_lora_bank(params: dict, adapters: int) -> dict:
    """The factors of each adapted kernel, the adapter's axis first, by leaf path."""
    draw = np.random.default_rng(2)

    def stack(*shape):
        return jnp.asarray(draw.normal(0, 0.05, (adapters, *shape)).astype("f"))

    return {
        jax.tree_util.keystr(path): (stack(leaf.shape[0], RANK), stack(RANK, leaf.shape[1]))
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
        if path[-1].key == "kernel" and path[-2].key in TARGETS
    }


def add_lora(forward, params, *inputs):
    """`f(factors, params, *inputs)`: the low-rank terms beside the products they belong to."""
    closed, shapes = jax.make_jaxpr(forward, return_shape=True)(params, *inputs)
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]

    def adapted(factors, params, *inputs):
        values = jax.tree.leaves((params, *inputs))
        marks = [factors.get(path) for path in paths]
        marks += [None] * (len(values) - len(marks))
        outputs = run_with_factors(closed.jaxpr, closed.consts, values, marks)
        return jax.tree.unflatten(jax.tree.structure(shapes), outputs)

    return adapted


def make_variants(model, params, bank, lora, tokens, cache) -> dict:
    """Each variant as a function without arguments."""
    frozen, draw = banks.freeze_base(params, bank), np.random.default_rng(3)
    ids = draw.permutation(bank.capacity)[:ROWS].astype(np.int32)

    def forward(params, tokens, cache):
        output = model.apply(params, tokens, cache=cache)
        return output.logits, output.cache

    @jax.jit
    def single(leaves, number, frozen, tokens, cache):
        return forward(lnt.merge_params(banks.take_rows(leaves, number), frozen), tokens, cache)

    @jax.jit
    def native(leaves, ids, frozen, tokens, cache):
        return forward(banks.merge_rows(banks.take_rows(leaves, ids), frozen), tokens, cache)

    @jax.jit
    def mapped(leaves, ids, frozen, tokens, cache):
        return banks.apply_per_example(forward, leaves, ids, frozen, tokens, cache)

    with_lora = add_lora(forward, params, tokens, cache)

    @jax.jit
    def low_rank(factors, ids, params, tokens, cache):
        taken = jax.tree.map(lambda leaf: leaf[ids], factors)
        return with_lora(taken, params, tokens, cache)

    rows = [
        jax.tree.map(lambda leaf, row=row: leaf[row : row + 1], (tokens, cache))
        for row in range(ROWS)
    ]
    numbers = [np.int32(number) for number in ids]
    variants = {
        ONE: lambda: single(bank.leaves, numbers[0], frozen, tokens, cache),
        MIXED: lambda: native(bank.leaves, ids, frozen, tokens, cache),
        "mixed batch, apply_per_example": lambda: mapped(bank.leaves, ids, frozen, tokens, cache),
        "one row after the other": lambda: [
            single(bank.leaves, number, frozen, *row)
            for number, row in zip(numbers, rows, strict=True)
        ],
        "LoRA r=8, one adapter": lambda: low_rank(lora, numbers[0], params, tokens, cache),
        "LoRA r=8, one for each row": lambda: low_rank(lora, ids, params, tokens, cache),
    }
    alone = np.concatenate([logits for logits, _ in variants["one row after the other"]()])
    for name in (MIXED, "mixed batch, apply_per_example"):
        np.testing.assert_allclose(variants[name]()[0], alone, atol=1e-4)
    one, each = (
        variants[f"LoRA r=8, {which}"]()[0] for which in ("one adapter", "one for each row")
    )
    np.testing.assert_allclose(each[0], one[0], atol=1e-4)
    assert np.abs(one - forward(params, tokens, cache)[0]).max() > 1e-2  # the factors are read
    return variants


def measure(variants: dict, rounds: int) -> dict:
    times: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(rounds + 2):  # the first two warm up
        for name, call in variants.items():
            start = time.perf_counter()
            jax.block_until_ready(call())
            times[name].append(time.perf_counter() - start)
    kept = {name: seconds[2:] for name, seconds in times.items()}
    return {
        name: {
            "milliseconds": 1e3 * statistics.median(seconds),
            "ratio": statistics.median(a / b for a, b in zip(seconds, kept[ONE], strict=True)),
        }
        for name, seconds in kept.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=41)
    parser.add_argument("--adapters", type=int, default=64)
    parser.add_argument("--quiet", action="store_true", help="say that nothing else was running")
    options = parser.parse_args()
    model = from_config(CONFIG, task="CAUSAL_LM")
    params = make_params(model)
    bank, lora = make_bank(params, options.adapters), make_lora_bank(params, options.adapters)
    sizes = {
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(params)),
        "bank_bytes": bank.nbytes,
        "lora_bank_bytes": sum(leaf.nbytes for leaf in jax.tree.leaves(lora)),
    }
    note = "quiet machine" if options.quiet else "shared machine: others were computing meanwhile"
    figures: dict = {"note": note, "rows": ROWS, "adapters": options.adapters, **sizes}
    print(f"{note}; bank {sizes['bank_bytes']:,} bytes, LoRA's {sizes['lora_bank_bytes']:,}")
    for title, length in SHAPES.items():
        draw = np.random.default_rng(4)
        tokens = jnp.asarray(draw.integers(0, CONFIG.vocab_size, (ROWS, length)), jnp.int32)
        cache = None
        if length == 1:  # 32 tokens are in the cache already
            before = jnp.asarray(draw.integers(0, CONFIG.vocab_size, (ROWS, 32)), jnp.int32)
            cache = model.apply(params, before, cache=empty_cache(model, ROWS, 64)).cache
        variants = make_variants(model, params, bank, lora, tokens, cache)
        figures[title] = measure(variants, options.rounds)
        print(f"\n{title:32s} {'time':>6s} {'ms':>8s}")
        for name, row in figures[title].items():
            print(f"{name:32s} {row['ratio']:6.2f} {row['milliseconds']:8.2f}")
    print(f"\nwritten to {write_results('mixed_batches', figures)}")


if __name__ == "__main__":
    main()

"""What do remat, the chunked loss and packing save, and what do they cost?

One jitted step of LN tuning (AdamW) on the shape of SmolLM2-135M with few layers, float32, random
weights: the compiler's peak (arguments, temporaries and outputs, less what takes the place of
arguments), and the processor time of the step, the least of some interleaved runs, as a ratio to
the first row of each group.

The CPU compiler takes out the barriers that keep recomputed work apart from the first, and merges
the two: remat then does nothing. The pass that takes them out is switched off here; the rows
"as compiled by default" show what is there without that.
"""

import argparse
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
from _results import write_results

import lntune_jax as lnt
from lntune_jax.models import causal_lm_loss, from_config
from lntune_jax.training.xla_cpu import compiler_options

SHAPE = {
    "model_type": "llama",
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
}
LENGTHS = (128, 64, 64, 48, 32, 32, 16, 128)


def make_params(shapes):
    generator = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: jnp.asarray(generator.normal(0, 0.02, leaf.shape), leaf.dtype), shapes
    )


def make_texts(options):
    """The same texts, one a row with padding, and several a row."""
    generator = np.random.default_rng(1)
    texts = [generator.integers(0, 49152, size, np.int32) for size in LENGTHS]
    padded = np.zeros((len(texts), options.length), np.int32)
    mask = np.zeros_like(padded)
    for row, text in enumerate(texts):
        padded[row, : len(text)], mask[row, : len(text)] = text, 1
    ids = [np.full(len(text), number + 1, np.int32) for number, text in enumerate(texts)]
    packed = np.concatenate(texts).reshape(-1, options.length)
    segments = np.concatenate(ids).reshape(packed.shape)
    return {"attention_mask": mask, "ids": padded}, {"segment_ids": segments, "ids": packed}


def make_step(shared, inputs, remat="none", chunk=8192, keep=True, scan_layers=False):
    """A compiled step with its arguments, and the compiler's peak."""
    config, params = shared
    model = from_config(config, "CAUSAL_LM", remat=remat, scan_layers=scan_layers)
    trainable, frozen = lnt.partition_params(params, lnt.LNTuningConfig())
    tx = optax.adamw(1e-3)
    inputs = dict(inputs)
    ids = inputs.pop("ids")

    def loss(params, ids, inputs):
        return causal_lm_loss(model, params, ids, chunk=chunk, **inputs)

    def step(trainable, state, frozen, ids, inputs):
        value, gradients = lnt.value_and_grad(loss)(trainable, frozen, ids, inputs)
        updates, state = tx.update(gradients, state, trainable)
        return optax.apply_updates(trainable, updates), state, value

    arguments = [jax.tree.map(jnp.copy, trainable), tx.init(trainable), frozen, ids, inputs]
    lowered = jax.jit(step, donate_argnums=(0, 1)).lower(*arguments)
    compiled = lowered.compile(compiler_options=compiler_options() if keep else None)
    found = compiled.memory_analysis()
    peak = found.argument_size_in_bytes + found.temp_size_in_bytes
    peak += found.output_size_in_bytes - found.alias_size_in_bytes
    return compiled, arguments, peak


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    config = SHAPE | {"num_hidden_layers": options.layers}
    shared = config, make_params(from_config(config, "CAUSAL_LM").params)
    ids = np.random.default_rng(2).integers(0, 49152, (options.batch, options.length), np.int32)
    rows = {"ids": ids}
    padded, packed = make_texts(options)
    groups = {
        "remat": {
            "none": (rows, {}),
            "dots_with_no_batch_dims_saveable": (
                rows,
                {"remat": "dots_with_no_batch_dims_saveable"},
            ),
            "full": (rows, {"remat": "full"}),
            "full, as compiled by default": (rows, {"remat": "full", "keep": False}),
        },
        "loss": {"whole logits": (rows, {"chunk": 49152}), "chunks of 8,192": (rows, {})},
        "texts": {"one a row, padded": (padded, {}), "packed": (packed, {})},
    }
    figures = {}
    for group, variants in groups.items():
        running = {name: make_step(shared, given, **how) for name, (given, how) in variants.items()}
        times = {name: [] for name in running}
        for _ in range(options.rounds + 1):  # the first round warms up
            for name, (compiled, arguments, _) in running.items():
                start = time.process_time()
                arguments[0], arguments[1], loss = compiled(*arguments)
                jax.block_until_ready((arguments[:2], loss))
                times[name].append(time.process_time() - start)
        first = next(iter(running))
        for name, (_, _, peak) in running.items():
            least = min(times[name][1:])
            ratio = least / min(times[first][1:])
            figures[f"{group}: {name}"] = {
                "peak_mb": peak / 1e6,
                "peak_ratio": peak / running[first][2],
                "processor_seconds": least,
                "time_ratio": ratio,
            }
            print(
                f"{group:6s} {name:30s} {peak / 1e6:8.0f} MB {peak / running[first][2]:6.2f} "
                f"time {ratio:5.2f}",
                flush=True,
            )
    print(f"written to {write_results('decoder_memory', figures | {'shape': vars(options)})}")


if __name__ == "__main__":
    main()

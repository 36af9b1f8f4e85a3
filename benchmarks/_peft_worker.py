"""One side of `peft_step.py` in a process of its own: it takes steps when it is told to.

Each line on standard input is a number of steps; the answer is a line of JSON with the seconds of
one of them, by the wall and by the processor. The loss is read after the last, as training loops
do: until then JAX may prepare a step while another runs. The side "check" prints the loss of both
with one set of weights instead.
"""

import argparse
import importlib.metadata
import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import transformers


class Shape(NamedTuple):
    """One model, one batch.

    Attributes:
        model: a key of `CONFIGS`.
        rows: texts in the batch.
        length: tokens in a text.
        dtype: of weights and activations.
    """

    model: str
    rows: int
    length: int
    dtype: str

    def __str__(self) -> str:
        return f"{self.model}:{self.rows}x{self.length}:{self.dtype}"


MINILM = {
    "hidden_size": 384,
    "num_hidden_layers": 6,
    "num_attention_heads": 12,
    "intermediate_size": 1536,
}
SMOLLM2 = {
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
    "rope_parameters": {"rope_type": "default", "rope_theta": 100000.0},
    "use_cache": False,
}
CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "minilm": ("bert", MINILM),
    "bert": ("bert", {}),
    "smollm2": ("llama", SMOLLM2),
    "gpt2": ("gpt2", {"use_cache": False}),
}


def parse_shape(text: str) -> Shape:
    """From "minilm:8x64:float32"."""
    model, size, dtype = text.split(":")
    rows, length = size.split("x")
    return Shape(model, int(rows), int(length), dtype)


def make_config(shape: Shape) -> Any:
    """The transformers config, without dropout, with torch's own fused attention."""
    kind, fields = CONFIGS[shape.model]
    no_dropout = {
        "bert": {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
        "gpt2": {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
        "llama": {},
    }[kind]
    makers = {
        "bert": transformers.BertConfig,
        "gpt2": transformers.GPT2Config,
        "llama": transformers.LlamaConfig,
    }
    return makers[kind](**fields, **no_dropout, attn_implementation="sdpa")


def is_decoder(shape: Shape) -> bool:
    """Whether the model predicts each next token; the others classify texts."""
    return CONFIGS[shape.model][0] != "bert"


def make_batch(shape: Shape) -> dict[str, np.ndarray]:
    """Tokens; for an encoder a mask that leaves out a quarter of the last row, and labels."""
    random = np.random.default_rng(0)
    tokens = random.integers(5, 1000, (shape.rows, shape.length))
    if is_decoder(shape):
        return {"input_ids": tokens, "labels": tokens}
    mask = np.ones_like(tokens)
    mask[-1, -shape.length // 4 :] = 0
    return {
        "input_ids": tokens,
        "attention_mask": mask,
        "labels": random.integers(0, 2, shape.rows),
    }


LEARNING_RATE = 1e-4


def make_peft_model(shape: Shape):
    """A model with PEFT's LN tuning, in eval mode: nothing drops out."""
    import peft
    import torch
    import transformers

    torch.manual_seed(0)
    kind = "CausalLM" if is_decoder(shape) else "SequenceClassification"
    maker = getattr(transformers, f"AutoModelFor{kind}")
    module = maker.from_config(make_config(shape), dtype=getattr(torch, shape.dtype))
    if is_decoder(shape):
        config = peft.LNTuningConfig(task_type="CAUSAL_LM")
    else:
        config = peft.LNTuningConfig(task_type="SEQ_CLS", target_modules=["LayerNorm"])
    return peft.get_peft_model(module, config).eval()


def make_peft_step(shape: Shape, compiled: bool) -> Callable[[], Any]:
    """Forward, backward and fused AdamW in torch."""
    import torch

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    module = make_peft_model(shape)
    trained = [each for each in module.parameters() if each.requires_grad]
    optimizer = torch.optim.AdamW(trained, LEARNING_RATE, weight_decay=0.0, fused=True)
    batch = {name: torch.from_numpy(value) for name, value in make_batch(shape).items()}
    forward = torch.compile(module) if compiled else module

    def step() -> torch.Tensor:
        loss = forward(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return step


def make_loss(shape: Shape, **options: Any):
    """One of our models and `loss_fn(params, batch)`; the options are `from_config`'s."""
    import jax.numpy as jnp
    import optax

    import lntune_jax as lnt

    task = "CAUSAL_LM" if is_decoder(shape) else "SEQ_CLS"
    model = lnt.models.from_config(make_config(shape), task, dtype=shape.dtype, **options)

    def loss_fn(params, batch):
        if is_decoder(shape):
            return lnt.models.causal_lm_loss(model, params, batch["input_ids"])
        logits = model.apply(params, batch["input_ids"], batch["attention_mask"]).logits
        logits = logits.astype(jnp.float32)
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch["labels"]).mean()

    return model, loss_fn


def make_halves(model: Any, shape: Shape) -> Any:
    """Random parameters of one of our models, split: what trains, and the rest."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    import lntune_jax as lnt

    random = np.random.default_rng(0)

    def draw(path, leaf):
        if path[-1].key == "scale":
            return jnp.ones(leaf.shape, leaf.dtype)
        return jnp.asarray(0.02 * random.standard_normal(leaf.shape, np.float32), leaf.dtype)

    params = jax.tree_util.tree_map_with_path(draw, model.params)
    heads = None if is_decoder(shape) else ["classifier"]
    config = lnt.LNTuningConfig(modules_to_save=heads)
    return lnt.partition_params(params, config, name_map=model.name_map)


def make_our_step(shape: Shape, divided: bool) -> Callable[[], Any]:
    """`make_train_step` over a model of `lntune_jax.models`, with random weights.

    Divided, every device has a copy of the weights and its part of the rows.
    """
    import jax
    import jax.numpy as jnp
    import optax
    from jax.sharding import AxisType, NamedSharding, PartitionSpec

    import lntune_jax as lnt

    model, loss_fn = make_loss(shape)
    trainable, frozen = make_halves(model, shape)
    batch = {name: jnp.asarray(value) for name, value in make_batch(shape).items()}
    if divided:
        mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))
        trainable, frozen = jax.device_put(
            (trainable, frozen), NamedSharding(mesh, PartitionSpec())
        )
        batch = jax.device_put(batch, NamedSharding(mesh, PartitionSpec("data")))
    tx = optax.adamw(LEARNING_RATE, weight_decay=0.0)
    take = lnt.make_train_step(loss_fn, tx)
    state = lnt.TrainState.create(jax.tree.map(jnp.copy, trainable), tx)

    def step() -> jax.Array:
        nonlocal state
        state, metrics = take(state, frozen, batch)
        return metrics["loss"]

    return step


def count_devices(rows: int) -> int:
    """As many as there are cores, or the most below that which divide the rows."""
    cores = os.cpu_count() or 1
    return max(count for count in range(1, cores + 1) if rows % count == 0)


def compare_losses(shape: Shape) -> dict[str, float]:
    """The first loss of both sides, ours with the weights of theirs."""
    import jax
    import jax.numpy as jnp
    import torch

    module = make_peft_model(shape)
    values = dict(module.get_base_model().named_parameters())
    model, loss_fn = make_loss(shape)
    marks = (".base_layer", ".original_module")
    plain = {name.replace(marks[0], "").replace(marks[1], ""): v for name, v in values.items()}

    def find(path, leaf):
        *names, last = (key.key for key in path)
        value = plain[".".join([*names, "bias" if last == "bias" else "weight"])].detach()
        value = value.T if last == "kernel" and shape.model != "gpt2" else value
        assert value.shape == leaf.shape, path
        return jnp.asarray(value.numpy())

    params = jax.tree_util.tree_map_with_path(find, model.params)
    batch = make_batch(shape)
    with torch.no_grad():
        theirs = module(**{name: torch.from_numpy(value) for name, value in batch.items()}).loss
    return {"ours": float(jax.jit(loss_fn)(params, batch)), "peft": theirs.item()}


def measure(step: Callable[[], Any], count: int) -> dict[str, float]:
    start, start_processor = time.perf_counter(), time.process_time()
    for _ in range(count):
        loss = step()
    float(loss)
    return {
        "wall": (time.perf_counter() - start) / count,
        "processor": (time.process_time() - start_processor) / count,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("side", choices=["ours", "kept", "divided", "eager", "compiled", "check"])
    parser.add_argument("shape", type=parse_shape)
    options = parser.parse_args()
    if options.side == "check":
        print(json.dumps(compare_losses(options.shape)))
        return
    start = time.perf_counter()
    if options.side in ("kept", "divided"):
        from lntune_jax.training.xla_cpu import keep_freed_memory

        assert keep_freed_memory(), "not glibc"
    if options.side == "divided":
        import jax

        jax.config.update("jax_num_cpu_devices", count_devices(options.shape.rows))
    if options.side in ("ours", "kept", "divided"):
        step = make_our_step(options.shape, options.side == "divided")
    else:
        step = make_peft_step(options.shape, options.side == "compiled")
    loss = float(step())
    library = "jax" if options.side in ("ours", "kept", "divided") else "torch"
    by = f"{library} {importlib.metadata.version(library)}"
    found = {"first_step": time.perf_counter() - start, "loss": loss, "by": by}
    print(json.dumps(found), flush=True)
    for line in sys.stdin:
        print(json.dumps(measure(step, int(line))), flush=True)


if __name__ == "__main__":
    main()

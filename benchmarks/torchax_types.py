"""How many model types of transformers `from_torch` runs as PyTorch does: values and gradients.

Each type is built small, with random weights, from its own config class, whose sizes are cut by the
names of the fields. The model reads tokens, pixels or sound, whichever it names first. All floating
results, and the gradients of all parameters and floating inputs, are compared with PyTorch's in
eager mode. `torch.export` is the judge of what PyTorch itself can trace.

    python benchmarks/torchax_types.py            # all types, one process each: an hour of a core
    python benchmarks/torchax_types.py llama vit  # those, printed only

A process that hangs or dies counts as a failure and stops nothing.
"""

from __future__ import annotations

import contextlib
import inspect
import json
import multiprocessing
import os
import random
import re
import resource
import signal
import sys
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Compiling is nearly all of the time.
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
os.environ["XLA_FLAGS"] = (
    "--xla_cpu_multi_thread_eigen=false --xla_backend_optimization_level=0 "
    "--xla_llvm_disable_expensive_passes=true"
)

# All is imported before the children are made; JAX's backend, which has threads, starts in each.
import jax
import jax.numpy as jnp
import numpy as np
import torch
import transformers
import transformers.modeling_utils
from _results import write_results
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_MAPPING

from lntune_jax.errors import LNTuningError
from lntune_jax.integrations.torchax import from_torch

SECONDS = 240  # for one type
MINUTES = float(os.environ.get("MINUTES", "600"))  # for all; the order is random
MEMORY = 8 << 30  # bytes of address space, for one type
WORKERS, NICE = 2, int(os.environ.get("NICE", "5"))
BATCH, LENGTH, IMAGE, SOUND, FRAMES = 2, 12, 32, 4000, 64
EXACT_VALUE, EXACT_GRADIENT = 1e-4, 1e-3  # of the norm of PyTorch's

# The first that matches a field's name, and the value that an integer gets there.
SIZES = [
    (r"vocab_size|vocab_size_\w+|n_words", 99),
    (r"num_key_value_heads|num_kv_heads|\w*n_kv_heads|num_key_value_groups", 2),
    (r"\w*(attention_heads|num_heads|n_heads?|attn_heads|_heads)", 4),
    (r"(\w*_)?(num_\w*layers|n_layers?|\w*_layers|num_hidden_layers|depth|num_blocks)", 2),
    (r"kv_channels|head_dim|d_kv|\w*_head_dim|attention_head_size|d_head", 8),
    (
        r"moe_intermediate_size|\w*intermediate\w*|\w*ffn_dim|d_ff|ffn_hidden_size|n_inner|\w*mlp_dim",
        48,
    ),
    (
        r"hidden_size|d_model|dim|n_embd|embed_dim|emb_dim|\w*hidden_dim|\w*hidden_size"
        r"|\w*embed\w*_dim",
        32,
    ),
    (
        r"\w*embedding_size|projection_dim|\w*_proj_dim|word_embed_proj_dim|d_embed|out_hidden_size",
        32,
    ),
    (r"image_size|img_size|input_size", IMAGE),
    (r"patch_size", 8),
    (r"num_(local_|routed_)?experts|n_routed_experts|moe_num_experts", 4),
    (r"num_experts_per_tok\w*|moe_topk?|moe_k|top_k_experts|num_selected_experts", 2),
    (r"max_position_embeddings|n_positions|n_ctx|max_\w*positions|max_source_positions", 64),
    (r"num_mel_bins|feature_size|num_mel_filters", 16),
    (r"rotary_dim|qk_rope_head_dim", 4),
    (r"q_lora_rank|kv_lora_rank", 16),
]
# Fields that follow from others, which a config works out again.
DERIVED = ("transformers_version", "architectures", "_name_or_path", "out_features", "out_indices",
           "stage_names", "head_dim")  # fmt: skip
CUT = ("layer_types", "layers_block_type", "mlp_layer_types", "block_types", "attention_types")


def main(names: list[str]) -> None:
    """Runs over the types, each in a process of its own, and writes the figures."""
    os.nice(NICE)
    torch.export.export(torch.nn.Linear(2, 2), (torch.ones(2),), strict=False)  # its own imports
    kinds = {name for name, config in CONFIG_MAPPING.items() if config in MODEL_MAPPING}
    order = names or sorted(kinds)
    if not names:
        random.Random(0).shuffle(order)
    rows: dict[str, dict[str, Any]] = {}
    end = time.monotonic() + MINUTES * 60

    def work(name: str) -> None:
        if time.monotonic() < end:
            rows[name] = run_apart(name)
            print(len(rows), name, json.dumps(rows[name]), flush=True)

    with ThreadPoolExecutor(WORKERS) as pool:
        list(pool.map(work, order))
    if not names:
        write_results("torchax_types", summarise(rows), others=("torchax", "jax"))
    print(json.dumps(summarise(rows)["summary"], indent=1))


def summarise(rows: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The counts, and the types by what became of them."""
    ran = {name: row for name, row in rows.items() if row["outcome"] != "not built"}
    traceable = [name for name, row in ran.items() if row.get("exports")]
    exact = [name for name in traceable if ran[name]["outcome"] == "exact"]
    counts: dict[str, int] = {}
    for row in ran.values():
        counts[row["outcome"]] = counts.get(row["outcome"], 0) + 1
    return {
        "summary": {
            "types that PyTorch runs": len(ran),
            **{outcome: counts[outcome] for outcome in sorted(counts)},
            "torch.export traces": len(traceable),
            "of these exact": len(exact),
            "share": round(len(exact) / max(len(traceable), 1), 4),
        },
        "types": dict(sorted(ran.items())),
        "not built": sorted(rows.keys() - ran.keys()),
    }


def run_apart(name: str) -> dict[str, Any]:
    """What became of a type, judged in a child that may hang or die."""
    context = multiprocessing.get_context("fork")
    mine, its = context.Pipe(duplex=False)
    child = context.Process(target=_work, args=(name, its))
    child.start()
    its.close()
    row: dict[str, Any] = {"outcome": "not built", "reason": "no answer"}
    end = time.monotonic() + SECONDS
    with contextlib.suppress(EOFError):
        while mine.poll(max(end - time.monotonic(), 0)):
            row = mine.recv()
    if child.is_alive():
        child.kill()
        if row["outcome"] == "running":
            row = {**row, "outcome": "hangs"}
    child.join()
    return {**row, "outcome": "crashes"} if row["outcome"] == "running" else row


def _work(name: str, pipe: Any) -> None:
    # A child whose parent was killed must not live on, nor take the machine's memory.
    signal.alarm(SECONDS)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    try:
        module, batch = build(name)
        expected = run_torch(module, batch)
    except Exception as error:  # whatever a config that was cut does not bear
        pipe.send({"outcome": "not built", "reason": f"{type(error).__name__}: {error}"[:200]})
        os._exit(0)
    row: dict[str, Any] = {"outcome": "running"}
    pipe.send(row)
    start = time.perf_counter()
    row |= judge(module, batch, expected) | {"seconds": round(time.perf_counter() - start, 1)}
    pipe.send(row)
    # What is exact went through torch.export.
    pipe.send(row | {"exports": row["outcome"] == "exact" or can_export(module, batch)})
    pipe.close()
    os._exit(0)


def build(name: str) -> tuple[Any, dict[str, np.ndarray]]:
    """A small model of a type, and what it reads."""
    config_class = CONFIG_MAPPING[name]
    config = shrink(config_class)
    model_class = MODEL_MAPPING[config_class]
    model_class = model_class[0] if isinstance(model_class, tuple) else model_class
    torch.manual_seed(0)
    module = model_class(config).eval()
    if sum(p.numel() for p in module.parameters()) > 3e7:
        raise ValueError("too large")
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1 if parameter.ndim < 2 else 0.02)
    return module, make_batch(module)


def shrink(config_class: Any) -> Any:
    """A config of a class with small sizes."""
    return config_class(**_cut(config_class().to_dict(), config_class))


def _cut(fields: dict[str, Any], config_class: Any) -> dict[str, Any]:
    cut = {}
    for name, value in fields.items():
        if name in DERIVED or (name == "model_type" and config_class is not None):
            continue
        new = value
        if isinstance(value, dict) and name.endswith("_config"):
            new = _cut(value, None)
        elif isinstance(value, int) and not isinstance(value, bool):
            new = next((size for rule, size in SIZES if re.fullmatch(rule, name)), value)
            new = min(new, value) if value > 0 and "head" not in name else new
            if name.endswith("token_id") or name.endswith("token_index"):
                new = value if 0 <= value < 99 else 90 + hash_name(name)
        elif isinstance(value, list) and name in CUT:
            new = value[:2] if len(value) >= 2 else value
            if len(set(map(str, value))) > 1 and len(set(map(str, new))) == 1:
                new = [new[0], next(v for v in value if v != new[0])]
        elif isinstance(value, list) and value and all(type(v) is int for v in value):
            if re.search("depths|layers", name) and "index" not in name:
                new = [1] * len(value)
            elif re.search("hidden_sizes|embed_dims|channels|dims", name):
                new = [32 * (i + 1) for i in range(len(value))]
            elif re.search("heads", name):
                new = [2] * len(value)
        cut[name] = new
    return cut


def hash_name(name: str) -> int:
    """A number below 9 that is the name's own in every process."""
    return sum(map(ord, name)) % 9


def make_batch(module: Any) -> dict[str, np.ndarray]:
    """What `forward` reads, by the names of its arguments."""
    draw, config = np.random.default_rng(0), module.config
    text = config.get_text_config()
    names = list(inspect.signature(module.forward).parameters)
    vocabulary = min(getattr(text, "vocab_size", None) or 99, 80)
    vision = getattr(config, "vision_config", config)
    size = getattr(vision, "image_size", None) or IMAGE
    height, width = size if isinstance(size, list | tuple) else (size, size)
    channels = getattr(vision, "num_channels", None) or getattr(vision, "in_channels", None) or 3
    mels = getattr(config, "num_mel_bins", None) or getattr(config, "feature_size", None) or 16
    main, batch = module.main_input_name, dict[str, np.ndarray]()
    tokens = draw.integers(3, vocabulary, (BATCH, LENGTH))
    pixels = draw.normal(size=(BATCH, channels, height, width)).astype(np.float32)
    if "input_ids" in names:
        batch["input_ids"] = tokens
        if "attention_mask" in names:
            batch["attention_mask"] = np.ones_like(tokens)
            if "pixel_values" not in names:
                batch["attention_mask"][-1, -4:] = 0
    if main == "pixel_values" or ("pixel_values" in names and reads_images(module)):
        batch["pixel_values"] = pixels
        count = count_image_tokens(module, pixels) if "input_ids" in names else 0
        if count:
            images = np.full((BATCH, count), find_image_token(config))
            batch["input_ids"] = np.concatenate([tokens[:, :2], images, tokens[:, 2:]], 1)
            batch["attention_mask"] = np.ones_like(batch["input_ids"])
            if "token_type_ids" in names and "mm_token_type_ids" not in names:
                batch["token_type_ids"] = np.zeros_like(batch["input_ids"])
    elif main == "input_values":
        batch["input_values"] = draw.normal(size=(BATCH, SOUND)).astype(np.float32)
    elif main == "input_features":
        batch["input_features"] = draw.normal(size=(BATCH, mels, FRAMES)).astype(np.float32)
    elif main == "pixel_values_videos":
        frames = getattr(config, "num_frames", None) or 4
        shape = (BATCH, frames, channels, height, width)
        batch["pixel_values_videos"] = draw.normal(size=shape).astype(np.float32)
    is_pair = getattr(config, "is_encoder_decoder", False)
    if "decoder_input_ids" in names and (is_pair or "input_ids" not in batch):
        batch["decoder_input_ids"] = draw.integers(3, vocabulary, (BATCH, LENGTH // 2))
    if not batch:
        raise ValueError(f"reads {main}")
    return batch


def find_image_token(config: Any) -> int | None:
    """The token in whose place a language model puts an image's features."""
    for name in ("image_token_id", "image_token_index"):
        if getattr(config, name, None) is not None:
            return getattr(config, name)
    return None


def reads_images(module: Any) -> bool:
    """Whether a model with two inputs is one of text and images, as CLIP and Llava are."""
    return hasattr(module.config, "vision_config") or hasattr(module, "vision_model")


def count_image_tokens(module: Any, pixels: np.ndarray) -> int:
    """How many tokens stand for one image; 0 where there is no such token."""
    if find_image_token(module.config) is None or not hasattr(module, "get_image_features"):
        return 0
    with torch.no_grad():
        found = module.get_image_features(pixel_values=torch.from_numpy(pixels))
    found = getattr(found, "pooler_output", found)
    tensors = found if isinstance(found, list | tuple) else [found]
    return sum(t.shape[:-1].numel() for t in tensors) // BATCH


def list_floats(output: Any) -> list[Any]:
    """The floating tensors or arrays of a result, in order, at any depth."""
    if isinstance(output, dict) or hasattr(output, "items"):
        return [x for value in output.values() for x in list_floats(value)]
    if isinstance(output, list | tuple):
        return [x for value in output for x in list_floats(value)]
    if not hasattr(output, "dtype") or not hasattr(output, "shape"):
        return []
    return [output] if "float" in str(output.dtype) else []


def make_slopes(values: list[Any]) -> list[np.ndarray]:
    """One weight for each number of the results, for a loss that all of them enter."""
    return [
        np.cos(np.arange(v.size, dtype=np.float64)).reshape(v.shape).astype("float32")
        for v in values
    ]


def get_options(module: Any) -> dict[str, Any]:
    """What `forward` is told beside its inputs."""
    takes = inspect.signature(module.forward).parameters
    return {"use_cache": False} if "use_cache" in takes else {}


def run_torch(module: Any, batch: dict[str, np.ndarray]) -> dict[str, list[np.ndarray]]:
    """The values and gradients of PyTorch in eager mode."""
    tensors = {name: torch.from_numpy(x.copy()) for name, x in batch.items()}
    floats = [t.requires_grad_() for t in tensors.values() if t.is_floating_point()]
    values = list_floats(module(**tensors, **get_options(module)))
    if not values or not all(torch.isfinite(v).all() for v in values):
        raise ValueError("no finite values")
    slopes = make_slopes([v.detach().numpy() for v in values])
    loss = sum((v * torch.from_numpy(s)).sum() for v, s in zip(values, slopes, strict=True))
    weights = [p.requires_grad_() for p in module.parameters()]
    grads = [None] * (len(weights) + len(floats))
    if loss.requires_grad:
        grads = torch.autograd.grad(loss, [*weights, *floats], allow_unused=True)
    wanted = zip([*weights, *floats], grads, strict=True)
    return {
        "values": [v.detach().numpy() for v in values],
        "grads": [np.zeros(t.shape, "float32") if g is None else g.numpy() for t, g in wanted],
    }


def can_export(module: Any, batch: dict[str, np.ndarray]) -> bool:
    """Whether torch.export traces the model."""
    tensors = {name: torch.from_numpy(x) for name, x in batch.items()}
    try:
        torch.export.export(module, (), {**tensors, **get_options(module)}, strict=False)
    except Exception:  # any, that is the question
        return False
    finally:
        for place in [m for n, m in sys.modules.items() if n.startswith("transformers.models.")]:
            for value in list(vars(place).values()):
                for function in (value, *(vars(value).values() if isinstance(value, type) else ())):
                    if hasattr(function, "cache_clear"):
                        function.cache_clear()
    return True


def judge(module: Any, batch: dict[str, np.ndarray], expected: dict[str, Any]) -> dict[str, Any]:
    """The outcome, and how far values and gradients are from PyTorch's."""
    slopes = make_slopes(expected["values"])
    floats = {name: jnp.asarray(x) for name, x in batch.items() if x.dtype == np.float32}

    def loss_fn(params: Any, own: Any) -> Any:
        values = list_floats(model.apply(params, **{**batch, **own}))
        if len(values) != len(slopes):
            raise AssertionError(f"{len(values)} results in place of {len(slopes)}")
        return sum((v * s).sum() for v, s in zip(values, slopes, strict=True)), values

    try:
        model = from_torch(module)
        step = jax.jit(jax.grad(loss_fn, (0, 1), has_aux=True))
        (weights, inputs), values = step(model.params, floats)
    except LNTuningError as error:
        return {"outcome": "refused", "reason": str(error)[:400]}
    except Exception as error:  # an error in words that are not ours
        return {"outcome": "foreign error", "reason": f"{type(error).__name__}: {error}"[:400]}
    grads = [weights[name] for name in model.params] + [inputs[name] for name in floats]
    errors = {
        "value error": measure(values, expected["values"]),
        "gradient error": measure(grads, expected["grads"]),
    }
    is_exact = errors["value error"] < EXACT_VALUE and errors["gradient error"] < EXACT_GRADIENT
    return {"outcome": "exact" if is_exact else "WRONG", **errors}


def measure(found: list[Any], expected: list[np.ndarray]) -> float:
    """The norm of the difference over the norm of what is expected."""
    if [np.shape(x) for x in found] != [x.shape for x in expected]:
        return float("inf")
    apart = sum(
        float(np.sum((np.asarray(a) - b) ** 2.0)) for a, b in zip(found, expected, strict=True)
    )
    whole = sum(float(np.sum(b**2.0)) for b in expected)
    error = (apart / max(whole, 1e-30)) ** 0.5
    return error if np.isfinite(error) else float("inf")


if __name__ == "__main__":
    main(sys.argv[1:])

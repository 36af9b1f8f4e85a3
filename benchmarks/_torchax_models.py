"""Small models of all types of transformers, with random weights, and what they read.

Each is built from its own config class, whose sizes are cut by the names of the fields. Where a
cut does not fit, fewer fields are cut. The model reads tokens, pixels or sound, whichever its
`forward` names first; where it wants another form of them, the next one is tried.
"""

from __future__ import annotations

import contextlib
import inspect
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_MAPPING

BATCH, LENGTH, IMAGE, SOUND, FRAMES = 2, 12, 32, 4000, 64
MOST = 3e7  # parameters

# The first that matches a field's name, and the value that an integer gets there; None keeps it.
SIZES: list[tuple[str, int | None]] = [
    (r"num_feat_extract_layers|num_conv_\w*", None),
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
    (r"window_size", 2),
]
# Where all of them do not fit together: without those of parts of a head, then counts alone.
WEAKER = (
    SIZES,
    [rule for rule in SIZES if rule[1] not in (4, 8, 16) or "heads" in rule[0]],
    [rule for rule in SIZES if rule[1] in (None, 2, 64, 99) and "key_value" not in rule[0]],
)
# Fields that follow from others, which a config works out again.
DERIVED = (
    "per_layer_config", "transformers_version", "architectures", "_name_or_path", "out_features",
    "out_indices", "stage_names", "head_dim",
)  # fmt: skip
CUT = ("layer_types", "layers_block_type", "mlp_layer_types", "block_types", "attention_types")


class Weighted(torch.nn.Module):
    """A module with one weight; what reads it cuts gradients in some way."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor([0.5, -1.5, 2.0, 1.0]))


class NoGrad(Weighted):
    """A part of `forward` without gradient."""

    def forward(self, x: Any) -> Any:
        """Two factors, one of them a constant."""
        with torch.no_grad():
            scale = self.weight * x
        return scale * self.weight * x


class DetachedView(Weighted):
    """A view that is detached."""

    def forward(self, x: Any) -> Any:
        """Two views, one of them a constant."""
        return self.weight * x[1:].detach() * x[:-1]


class Sign(torch.autograd.Function):
    """A function whose gradient passes through."""

    @staticmethod
    def forward(ctx: Any, x: Any) -> Any:
        """The sign."""
        return x.sign()

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        """As of what has a gradient."""
        return grad


class OwnBackward(Weighted):
    """A Function with a backward of its own."""

    def forward(self, x: Any) -> Any:
        """A sign, and the weights."""
        return Sign.apply(x * self.weight) * self.weight


# Modules of a few lines, beside the types.
MODULES = {
    "a no_grad block in forward": NoGrad,
    "a view that is detached": DetachedView,
    "an autograd.Function": OwnBackward,
}


def list_kinds() -> list[str]:
    """The types that have a model."""
    return sorted(name for name, config in CONFIG_MAPPING.items() if config in MODEL_MAPPING)


def build(name: str) -> tuple[Any, dict[str, np.ndarray]]:
    """A small model of a type, and what it reads; PyTorch runs it.

    Raises:
        Exception: what the first attempt raised, if none succeeds.
    """
    if name in MODULES:
        values = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
        return MODULES[name](), {"x": values}
    first: Exception | None = None
    for sizes in WEAKER:
        try:
            module = make_module(name, sizes)
        except Exception as error:  # whatever a config that was cut does not bear
            first = first or error
            continue
        batches = list_batches(module)
        while True:
            try:
                batch = next(batches)
                run_torch(module, batch)
            except StopIteration:
                break
            except Exception as error:
                first = first or error
            else:
                return module, batch
    raise first or ValueError("no form of input fits")


def make_module(name: str, sizes: list[tuple[str, int | None]]) -> Any:
    """A small model of a type."""
    config_class = CONFIG_MAPPING[name]
    config = config_class(**_cut(config_class().to_dict(), config_class, sizes))
    model_class = MODEL_MAPPING[config_class]
    model_class = model_class[0] if isinstance(model_class, tuple) else model_class
    if sizes is not SIZES:
        with torch.device("meta"):
            check_size(model_class(config))
    torch.manual_seed(0)
    module = model_class(config).eval()
    check_size(module)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1 if parameter.ndim < 2 else 0.02)
    return module


def check_size(module: Any) -> None:
    """Raises where a model has too many parameters."""
    if sum(p.numel() for p in module.parameters()) > MOST:
        raise ValueError("too large")


def _cut(fields: dict[str, Any], config_class: Any, sizes: Any) -> dict[str, Any]:
    cut = {}
    for name, value in fields.items():
        if name in DERIVED or (name == "model_type" and config_class is not None):
            continue
        new = value
        if isinstance(value, dict) and name.endswith("_config"):
            new = _cut(value, None, sizes)
        elif isinstance(value, dict) and "mrope_section" in value:
            new = {**value, "mrope_section": [2, 1, 1]} if sizes is SIZES else value
        elif isinstance(value, list) and name == "image_size":
            new = [IMAGE] * len(value)
        elif isinstance(value, int) and not isinstance(value, bool):
            new = next((size for rule, size in sizes if re.fullmatch(rule, name)), None)
            new = value if new is None else new
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


def list_batches(module: Any) -> Iterator[dict[str, np.ndarray]]:
    """What `forward` may read, the likeliest first."""
    with contextlib.suppress(Exception):  # the model's own, on its way to an image's features
        yield (batch := make_batch(module))
        for name in ("pixel_values", "pixel_values_videos"):
            if name in batch:
                yield {**batch, name: np.repeat(batch[name][:, None], 2, 1)}
        if "input_values" in batch:
            yield {"input_values": batch["input_values"][:, None]}
            yield {"input_values": np.resize(batch["input_values"], (BATCH, FRAMES, 16))}
        if "input_features" in batch:
            yield {**batch, "input_features": batch["input_features"].swapaxes(1, 2)}
    if "input_ids" in inspect.signature(module.forward).parameters:
        yield make_batch(module, text_only=True)


def make_batch(module: Any, text_only: bool = False) -> dict[str, np.ndarray]:
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
    mels = mels if isinstance(mels, int) else 16
    frames = 2 * getattr(config, "max_source_positions", FRAMES // 2)
    main, batch = module.main_input_name, dict[str, np.ndarray]()
    main = "input_ids" if text_only else main
    tokens = draw.integers(3, vocabulary, (BATCH, LENGTH))
    pixels = draw.normal(size=(BATCH, channels, height, width)).astype(np.float32)
    if "input_ids" in names:
        batch["input_ids"] = tokens
        if "attention_mask" in names:
            batch["attention_mask"] = np.ones_like(tokens)
            if "pixel_values" not in names:
                batch["attention_mask"][-1, -4:] = 0
    if main == "pixel_values" or (
        "pixel_values" in names and reads_images(module) and not text_only
    ):
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
        batch["input_features"] = draw.normal(size=(BATCH, mels, frames)).astype(np.float32)
    elif main == "pixel_values_videos":
        shape = (BATCH, getattr(config, "num_frames", None) or 4, channels, height, width)
        batch["pixel_values_videos"] = draw.normal(size=shape).astype(np.float32)
    if "bbox" in names and "input_ids" in batch:
        corners = np.sort(draw.integers(0, 60, (*batch["input_ids"].shape, 4)), -1)
        batch["bbox"] = corners[..., [0, 1, 2, 3]]
    if "noise" in names and "pixel_values" in batch:  # what is masked, drawn otherwise
        patch = getattr(config, "patch_size", 8)
        count = (height // patch) * (width // patch)
        batch["noise"] = draw.random((BATCH, count)).astype(np.float32)
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
        np.cos(np.arange(v.size, dtype=np.float64)).reshape(v.shape).astype(v.dtype) for v in values
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
        "grads": [np.zeros(t.shape) if g is None else g.numpy() for t, g in wanted],
    }

"""A dozen types of transformers beyond the table, each with a trap, against PyTorch itself.

The run over all types is `benchmarks/torchax_types.py`.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

import lntune_jax as lnt
from lntune_jax.errors import ModelError
from lntune_jax.integrations.torchax import from_torch
from tests.support.parity.architectures import BART, DECODER, MODELS, TEXT, VISION

TOKENS = {"input_ids": np.array([[3, 4, 5, 6, 7, 8, 9, 10], [11, 12, 13, 14, 15, 16, 17, 18]])}
MASK = {"attention_mask": np.array([[1] * 8, [1] * 5 + [0] * 3])}
PIXELS = np.random.default_rng(0).normal(size=(2, 3, 8, 8)).astype(np.float32)
PAIR = TOKENS | {"decoder_input_ids": TOKENS["input_ids"][:, :4]}


def with_images(count):
    """Tokens, the first of which stand for an image's features."""
    ids = TOKENS["input_ids"].copy()
    ids[:, 1 : 1 + count] = 31
    return {"input_ids": ids, "attention_mask": np.ones_like(ids), "pixel_values": PIXELS}


IMAGES = with_images(1) | {"token_type_ids": np.array([[0, 1, 0, 0, 0, 0, 0, 0]] * 2)}
PREFIX = {"token_type_ids": np.array([[0] * 6 + [1] * 2] * 2)}
PALIGEMMA = (
    "PaliGemmaForConditionalGeneration",
    {
        "text_config": {**DECODER, "model_type": "gemma", "head_dim": 8},
        "vision_config": {**VISION, "model_type": "siglip_vision_model"},
        "image_token_index": 31,
        "projection_dim": 16,
    },
)
HYBRID = {
    **DECODER,
    "num_local_experts": 2,
    "num_experts_per_tok": 1,
    "shared_intermediate_size": 16,
    "layer_types": ["mamba", "attention"],
    "mamba_n_heads": 4,
    "mamba_d_head": 8,
    "mamba_d_state": 8,
    "mamba_n_groups": 1,
}

# What each is here for: the trap that it had.
TYPES = {
    "llava": (*MODELS["llava"], with_images(4)),  # a check of the number of image tokens
    "gemma3": (*MODELS["gemma3"], IMAGES),  # a mask made with vmap, from token_type_ids
    "paligemma": (*PALIGEMMA, TOKENS | with_images(4) | PREFIX),  # the same
    "beit": ("BeitModel", VISION, {"pixel_values": PIXELS}),  # an index by a range
    "dinov3_vit": ("DINOv3ViTModel", VISION, {"pixel_values": PIXELS}),  # a cache of tensors
    "granitemoehybrid": ("GraniteMoeHybridModel", HYBRID, TOKENS),  # use_cache has no name
    "qwen3_moe": (*MODELS["qwen3_moe"], TOKENS | MASK),  # experts
    "mamba": ("MambaModel", {**TEXT, "state_size": 4}, TOKENS),  # writes in a loop
    "aimv2: eager": ("Aimv2TextModel", {**TEXT, "attn_implementation": "eager"}, TOKENS | MASK),
    "bloom": (*MODELS["bloom"], TOKENS | MASK),  # a backward of its own
    "yoso": ("YosoModel", {**TEXT, "num_hash": 2, "hash_code_len": 2}, TOKENS | MASK),  # the same
    "fnet": ("FNetModel", TEXT, TOKENS),  # complex numbers
    "canine": ("CanineModel", {**TEXT, "num_hash_buckets": 64, "num_hash_functions": 2}, TOKENS),
    "bigbird": ("BigBirdModel", {**TEXT, "attention_type": "original_full"}, TOKENS | MASK),
    "blenderbot": ("BlenderbotModel", BART, PAIR),
    "convnext": ("ConvNextModel", {"hidden_sizes": [8, 8], "depths": [1, 1], "num_stages": 2},
                 {"pixel_values": np.tile(PIXELS, (1, 1, 4, 4))}),
}  # fmt: skip


def make_model(class_name, settings):
    model_class = getattr(transformers, class_name)
    torch.manual_seed(0)
    module = model_class(model_class.config_class(**settings)).eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return module


def get_main(output):
    name = "logits" if "logits" in output else "last_hidden_state"
    return output[name]


@pytest.mark.parametrize("name", TYPES)
def test_values_and_gradients_are_torchs(name):
    class_name, settings, batch = TYPES[name]
    module = make_model(class_name, settings)
    expected = get_main(module(**{k: torch.from_numpy(v) for k, v in batch.items()}))
    slopes = torch.cos(torch.arange(expected.numel())).reshape(expected.shape)
    (expected * slopes).sum().backward()
    wanted = {n: p.grad for n, p in module.named_parameters() if p.grad is not None}
    model = from_torch(module)
    found = lnt.discover_norms(lambda p: get_main(model.apply(p, **batch)), model.params)
    assert len(found) >= 2

    def loss_fn(params):
        value = get_main(model.apply(params, **batch))
        return (value * slopes.numpy()).sum(), value

    grads, value = jax.jit(jax.grad(loss_fn, has_aux=True))(model.params)
    scale = expected.abs().max().item()
    np.testing.assert_allclose(value / scale, expected.detach() / scale, atol=2e-5)
    scale = max(float(grad.abs().max()) for grad in wanted.values() if grad.numel())
    for leaf, grad in grads.items():
        theirs = wanted[leaf].numpy() if leaf in wanted else np.zeros(grad.shape)
        np.testing.assert_allclose(grad / scale, theirs / scale, atol=2e-5, err_msg=leaf)


def test_too_few_image_tokens_are_no_silent_result():
    class_name, settings, _ = TYPES["llava"]
    model = from_torch(make_model(class_name, settings))
    with pytest.raises(ModelError, match=r"a check in its forward fails|image"):
        model.apply(model.params, **with_images(3))


LED = {**BART, "attention_window": 4, "max_encoder_position_embeddings": 32,
       "max_decoder_position_embeddings": 32}  # fmt: skip


@pytest.mark.parametrize(
    ("class_name", "settings", "batch", "message"),
    [
        ("LEDModel", LED, PAIR, r"values of a tensor, in modeling_led\.py, line \d+: `if is_glob"),
        # A causal mask that PyTorch leaves out where no token is padded.
        (*PALIGEMMA, with_images(4), "GemmaAttention.*eager.*pass token_type_ids"),
        ("Aimv2TextModel", TEXT, TOKENS | MASK, "Aimv2Attention.*eager"),
    ],
)
def test_types_that_are_refused(class_name, settings, batch, message):
    model = from_torch(make_model(class_name, settings))
    with pytest.raises(ModelError, match=message):
        jax.eval_shape(lambda p: model.apply(p, **batch), model.params)
    assert jnp.ones(2).sum() == 2


class ByName(torch.nn.Module):
    """Attention of transformers, its mask passed by name or not at all."""

    is_causal = False

    def forward(self, x, mask=None):
        attend = transformers.modeling_utils.ALL_ATTENTION_FUNCTIONS["sdpa"]
        named, _ = attend(self, x, x, x, attention_mask=mask)
        return named + attend(self, x, x, x, None)[0]


@pytest.mark.parametrize("mask", [None, np.tri(4, dtype=bool)[None, None]])
def test_masks_of_ones_own_are_let_through(mask):
    x = np.random.default_rng(0).normal(size=(1, 2, 4, 8)).astype(np.float32)
    module = ByName()
    expected = module(torch.from_numpy(x), None if mask is None else torch.from_numpy(mask))
    np.testing.assert_allclose(from_torch(module).apply({}, x, mask), expected, atol=1e-5)

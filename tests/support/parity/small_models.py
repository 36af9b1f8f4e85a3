"""Small transformers models with random weights, one for each family, and a batch for each.

Two layers, 32 wide, no dropout, and every parameter moved away from where transformers puts it:
norm scales are not all one, biases not all zero, logits not all small.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
import transformers

WIDTH, LAYERS, HEADS, HIDDEN, VOCABULARY = 32, 2, 4, 64, 97
BATCH, LENGTH, CLASSES = 4, 12, 3
IMAGE, PATCH, CHANNELS = 16, 8, 3
MELS, FRAMES = 8, 24

# Settings that the configs of several families share.
DECODER = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "intermediate_size": HIDDEN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": 2,
    "head_dim": WIDTH // HEADS,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
ENCODER = {
    "hidden_size": WIDTH,
    "intermediate_size": HIDDEN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
BOTH_SIDES = {
    "vocab_size": VOCABULARY,
    "d_model": WIDTH,
    "encoder_layers": LAYERS,
    "decoder_layers": LAYERS,
    "encoder_attention_heads": HEADS,
    "decoder_attention_heads": HEADS,
    "encoder_ffn_dim": HIDDEN,
    "decoder_ffn_dim": HIDDEN,
    "dropout": 0.0,
    "attention_dropout": 0.0,
    "activation_dropout": 0.0,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 2,
    "forced_eos_token_id": None,
}
GPT2 = {
    "vocab_size": VOCABULARY,
    "n_positions": 64,
    "n_embd": WIDTH,
    "n_layer": LAYERS,
    "n_head": HEADS,
    "resid_pdrop": 0.0,
    "embd_pdrop": 0.0,
    "attn_pdrop": 0.0,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
T5 = {
    "vocab_size": VOCABULARY,
    "d_model": WIDTH,
    "d_kv": WIDTH // HEADS,
    "d_ff": HIDDEN,
    "num_layers": LAYERS,
    "num_decoder_layers": LAYERS,
    "num_heads": HEADS,
    "dropout_rate": 0.0,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "decoder_start_token_id": 0,
}
PIXELS = {"image_size": IMAGE, "patch_size": PATCH, "num_channels": CHANNELS}
CLIP_TOWER = {
    "hidden_size": WIDTH,
    "intermediate_size": HIDDEN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "projection_dim": WIDTH,
}
CLIP = {
    "text_config": {
        "vocab_size": VOCABULARY,
        "max_position_embeddings": LENGTH,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": VOCABULARY - 1,
    }
    | CLIP_TOWER,
    "vision_config": PIXELS | CLIP_TOWER,
    "projection_dim": WIDTH,
}
WHISPER = {
    "num_mel_bins": MELS,
    "max_source_positions": FRAMES // 2,
    "max_target_positions": 64,
    "begin_suppress_tokens": None,
}


def make_tokens(random: np.random.Generator) -> dict[str, np.ndarray]:
    """Token ids, the last row padded on the right."""
    ids = random.integers(3, VOCABULARY - 1, (BATCH, LENGTH))
    mask = np.ones((BATCH, LENGTH), np.int64)
    ids[-1, -LENGTH // 3 :] = mask[-1, -LENGTH // 3 :] = 0
    return {"input_ids": ids, "attention_mask": mask}


def make_text(random: np.random.Generator) -> dict[str, np.ndarray]:
    """For a causal language model: the labels are the tokens, -100 where they are padded."""
    tokens = make_tokens(random)
    return tokens | {"labels": np.where(tokens["attention_mask"], tokens["input_ids"], -100)}


def make_pairs(random: np.random.Generator) -> dict[str, np.ndarray]:
    """For an encoder and decoder: tokens, and other tokens to predict."""
    return make_tokens(random) | {"labels": random.integers(3, VOCABULARY, (BATCH, LENGTH // 2))}


def make_classes(random: np.random.Generator) -> dict[str, np.ndarray]:
    """For a text classifier."""
    return make_tokens(random) | {"labels": random.integers(0, CLASSES, BATCH)}


def make_pixels(random: np.random.Generator) -> np.ndarray:
    """Images of noise."""
    return random.normal(size=(BATCH, CHANNELS, IMAGE, IMAGE)).astype(np.float32)


def make_images(random: np.random.Generator) -> dict[str, np.ndarray]:
    """For an image classifier."""
    return {"pixel_values": make_pixels(random), "labels": random.integers(0, CLASSES, BATCH)}


def make_captions(random: np.random.Generator) -> dict[str, np.ndarray]:
    """For a model of images and texts, whose loss needs no labels: pass `return_loss=True`."""
    tokens = make_tokens(random)
    tokens["input_ids"][:, LENGTH // 2] = VOCABULARY - 1  # the end of the text, which CLIP reads
    return tokens | {"pixel_values": make_pixels(random)}


def make_speech(random: np.random.Generator) -> dict[str, np.ndarray]:
    """For a speech recogniser."""
    features = random.normal(size=(BATCH, MELS, FRAMES)).astype(np.float32)
    return {"input_features": features, "labels": random.integers(3, VOCABULARY, (BATCH, 6))}


class Family(NamedTuple):
    """How a small model of a family is built, and what it reads.

    Attributes:
        model: the name of the transformers class.
        config: the name of its config's class.
        settings: the arguments of the config.
        batch: makes the arguments of `forward`, as numpy arrays.
    """

    model: str
    config: str
    settings: dict[str, Any]
    batch: Callable[[np.random.Generator], dict[str, np.ndarray]]


FAMILIES = {
    "llama": Family("LlamaForCausalLM", "LlamaConfig", DECODER, make_text),
    "qwen3": Family("Qwen3ForCausalLM", "Qwen3Config", DECODER, make_text),
    "gemma2": Family(
        "Gemma2ForCausalLM", "Gemma2Config", DECODER | {"sliding_window": 8}, make_text
    ),
    "olmo2": Family("Olmo2ForCausalLM", "Olmo2Config", DECODER, make_text),
    "phi3": Family("Phi3ForCausalLM", "Phi3Config", DECODER, make_text),
    "gpt2": Family("GPT2LMHeadModel", "GPT2Config", GPT2, make_text),
    "bert": Family(
        "BertForSequenceClassification",
        "BertConfig",
        ENCODER | {"vocab_size": VOCABULARY, "max_position_embeddings": 64, "num_labels": CLASSES},
        make_classes,
    ),
    "t5": Family("T5ForConditionalGeneration", "T5Config", T5, make_pairs),
    "bart": Family(
        "BartForConditionalGeneration",
        "BartConfig",
        BOTH_SIDES | {"max_position_embeddings": 64},
        make_pairs,
    ),
    "vit": Family(
        "ViTForImageClassification",
        "ViTConfig",
        ENCODER | PIXELS | {"num_labels": CLASSES},
        make_images,
    ),
    "clip": Family("CLIPModel", "CLIPConfig", CLIP, make_captions),
    "whisper": Family(
        "WhisperForConditionalGeneration", "WhisperConfig", BOTH_SIDES | WHISPER, make_speech
    ),
}


def make(name: str, seed: int = 0, **changes: Any) -> torch.nn.Module:
    """A model in eval mode, float32, on the CPU.

    Args:
        name: a key of `FAMILIES`.
        seed: of the weights: the same seed and changes give the same weights, bit for bit.
        **changes: fields of the config, such as `tie_word_embeddings=True` or
            `attn_implementation="eager"`.
    """
    family = FAMILIES[name]
    config = getattr(transformers, family.config)(**family.settings | changes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = getattr(transformers, family.model)(config)
        with torch.no_grad():
            for parameter in model.parameters():
                # Vectors are the scales and biases; matrices start small enough as they are.
                parameter.add_(
                    torch.randn_like(parameter), alpha=0.2 if parameter.ndim < 2 else 0.1
                )
    return model.eval()


def make_batch(name: str, seed: int = 0) -> dict[str, np.ndarray]:
    """The arguments of the model's `forward`, labels among them, as numpy arrays."""
    return FAMILIES[name].batch(np.random.default_rng(seed))


def as_tensors(batch: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    """The same batch for PyTorch."""
    return {name: torch.from_numpy(array) for name, array in batch.items()}


BERT = ENCODER | {"vocab_size": VOCABULARY, "num_labels": CLASSES}


def make_bert_tokens():
    batch = make_batch("bert", seed=99)
    return {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}

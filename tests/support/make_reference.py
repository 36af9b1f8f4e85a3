"""Write the reference files under tests/reference, from PyTorch and transformers.

Each folder holds a tiny random checkpoint (config.json, model.safetensors) and reference.npz with
inputs and what PyTorch computes from them; the tests then need no PyTorch. Run it with an
environment that has torch and transformers:

    python -m tests.support.make_reference --minilm DIRECTORY_OF_ALL_MINILM_L6_V2
    python -m tests.support.make_reference --only distilbert modernbert
"""

from __future__ import annotations

import argparse
import json
import platform
from pathlib import Path

import numpy as np
import torch
import transformers
from transformers import activations
from transformers.modeling_outputs import BaseModelOutput

from tests.support.paths import REFERENCE

TINY = {
    "vocab_size": 60,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 40,
    "max_position_embeddings": 20,
    "initializer_range": 0.3,
}

# What no other name of a config field stands for.
DISTIL = {"hidden_dim": 40}

# As published files say it: a number of layers, and a base of the angles for each kind.
MODERN = {
    "num_hidden_layers": 3,
    "global_attn_every_n_layers": 2,
    "local_attention": 4,
    "global_rope_theta": 500.0,
    "local_rope_theta": 20.0,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "cls_token_id": 1,
    "eos_token_id": 2,
    "sep_token_id": 2,
}

BIASED = {
    "norm_bias": True,
    "attention_bias": True,
    "mlp_bias": True,
    "classifier_bias": True,
    "classifier_activation": "relu",
    "hidden_activation": "silu",
}

# Folder: (class, config class, what differs from the class's defaults).
CHECKPOINTS = {
    "bert": ("BertModel", "BertConfig", {"layer_norm_eps": 1e-5}),
    "bert_seq_cls": (
        "BertForSequenceClassification",
        "BertConfig",
        {"hidden_act": "gelu_new", "num_labels": 3, "classifier_dropout": 0.2},
    ),
    "bert_token_cls": (
        "BertForTokenClassification",
        "BertConfig",
        {"hidden_act": "relu", "num_labels": 5, "type_vocab_size": 3},
    ),
    "bert_masked_lm": ("BertForMaskedLM", "BertConfig", {"hidden_act": "silu"}),
    "bert_masked_lm_untied": (
        "BertForMaskedLM",
        "BertConfig",
        {"hidden_act": "gelu_pytorch_tanh", "tie_word_embeddings": False},
    ),
    "roberta": (
        "RobertaModel",
        "RobertaConfig",
        {"type_vocab_size": 1, "layer_norm_eps": 1e-3, "pad_token_id": 3},
    ),
    "roberta_seq_cls": ("RobertaForSequenceClassification", "RobertaConfig", {"num_labels": 3}),
    "roberta_token_cls": (
        "RobertaForTokenClassification",
        "RobertaConfig",
        {"num_labels": 4, "hidden_act": "quick_gelu", "pad_token_id": 0},
    ),
    # The head keeps the exact gelu whatever hidden_act says.
    "roberta_masked_lm": ("RobertaForMaskedLM", "RobertaConfig", {"hidden_act": "relu"}),
    "roberta_masked_lm_untied": (
        "RobertaForMaskedLM",
        "RobertaConfig",
        {"tie_word_embeddings": False},
    ),
    "distilbert": ("DistilBertModel", "DistilBertConfig", DISTIL),
    "distilbert_seq_cls": (
        "DistilBertForSequenceClassification",
        "DistilBertConfig",
        DISTIL | {"activation": "gelu_new", "num_labels": 3, "seq_classif_dropout": 0.3},
    ),
    "distilbert_token_cls": (
        "DistilBertForTokenClassification",
        "DistilBertConfig",
        DISTIL | {"activation": "relu", "num_labels": 5, "sinusoidal_pos_embds": True},
    ),
    "distilbert_masked_lm": ("DistilBertForMaskedLM", "DistilBertConfig", DISTIL),
    "distilbert_masked_lm_untied": (
        "DistilBertForMaskedLM",
        "DistilBertConfig",
        DISTIL | {"activation": "silu", "tie_word_embeddings": False},
    ),
    "modernbert": ("ModernBertModel", "ModernBertConfig", MODERN),
    "modernbert_seq_cls": (
        "ModernBertForSequenceClassification",
        "ModernBertConfig",
        MODERN | BIASED | {"classifier_pooling": "mean", "num_labels": 3},
    ),
    # Layers by name, which wins over their number, and an odd window, which is rounded down.
    "modernbert_token_cls": (
        "ModernBertForTokenClassification",
        "ModernBertConfig",
        MODERN
        | {
            "num_labels": 5,
            "local_attention": 7,
            "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
            "hidden_activation": "gelu_pytorch_tanh",
            "norm_eps": 1e-3,
            "norm_bias": True,
        },
    ),
    "modernbert_masked_lm": (
        "ModernBertForMaskedLM",
        "ModernBertConfig",
        MODERN | {"decoder_bias": False, "attention_bias": True, "classifier_activation": "silu"},
    ),
    "modernbert_masked_lm_untied": (
        "ModernBertForMaskedLM",
        "ModernBertConfig",
        MODERN | {"num_hidden_layers": 2, "tie_word_embeddings": False, "mlp_bias": True},
    ),
    "modernbert_first_token": (
        "ModernBertForSequenceClassification",
        "ModernBertConfig",
        MODERN | {"num_labels": 2, "num_hidden_layers": 4, "num_attention_heads": 2},
    ),
}

# Of these the gradients of every norm are kept too.
WITH_GRADIENTS = ("distilbert", "modernbert")

ACTIVATIONS = (
    "gelu",
    "gelu_python",
    "gelu_10",
    "gelu_accurate",
    "gelu_fast",
    "gelu_new",
    "gelu_python_tanh",
    "gelu_pytorch_tanh",
    "hardswish",
    "leaky_relu",
    "linear",
    "mish",
    "quick_gelu",
    "relu",
    "relu2",
    "relu6",
    "sigmoid",
    "silu",
    "swish",
    "tanh",
)


SENTENCES = (
    "A gripping film from start to finish.",
    "The plot is thin, the jokes are thinner, and nobody seems to be having any fun at all.",
    "Layer normalisation has two vectors: a scale and a bias.",
    "No.",
)


def main() -> None:
    """Write every folder anew."""
    parser = argparse.ArgumentParser()
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--minilm", type=Path, help="write every folder")
    which.add_argument("--only", nargs="+", choices=CHECKPOINTS, help="write these alone")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    for seed, (name, (model_class, config_class, changes)) in enumerate(CHECKPOINTS.items()):
        if arguments.only and name not in arguments.only:
            continue
        config = getattr(transformers, config_class)(**{**TINY, **changes})
        model = random_model(model_class, config, seed)
        model.save_pretrained(REFERENCE / name)
        arrays = outputs_of(model, inputs_for(config))
        if config.model_type in WITH_GRADIENTS:
            arrays |= gradients_of(model, inputs_for(config)["padded"])
        write(name, arrays)
    if arguments.only:
        return
    write_half_precision()
    write_sharded()
    write_activations()
    write_minilm(arguments.minilm)
    versions = {
        "python": platform.python_version(),
        "numpy": np.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    (REFERENCE / "versions.json").write_text(json.dumps(versions, indent=2) + "\n")


def random_model(model_class: str, config, seed: int) -> torch.nn.Module:
    """A model with every tensor random, the norms and biases too."""
    torch.manual_seed(seed)
    config._attn_implementation = "eager"
    model = getattr(transformers, model_class)(config).eval()
    for name, parameter in model.named_parameters():
        parameter.copy_(torch.randn_like(parameter) * 0.3)
        if "norm" in name.lower() and name.endswith("weight"):
            parameter.add_(1.0)
    return model


def inputs_for(config) -> dict[str, dict[str, np.ndarray]]:
    """Four batches: padded pairs, no options at all, one that fills the table, positions given."""
    generator = np.random.default_rng(0)
    pad = config.pad_token_id
    roberta = config.model_type == "roberta"
    longest = config.max_position_embeddings - (pad + 1 if roberta else 0)

    def tokens(*shape: int) -> np.ndarray:
        return generator.integers(4, config.vocab_size, shape)

    lengths = np.array([9, 4, 1])
    attention_mask = (np.arange(9) < lengths[:, None]).astype(np.int64)
    padded = np.where(attention_mask == 1, tokens(3, 9), pad)
    first = {"input_ids": padded, "attention_mask": attention_mask}
    if hasattr(config, "type_vocab_size"):
        first["token_type_ids"] = generator.integers(0, config.type_vocab_size, (3, 9))
    return {
        "padded": first,
        "plain": {"input_ids": tokens(2, 5)},
        "longest": {"input_ids": tokens(1, longest)},
        "positions": {
            "input_ids": tokens(2, 4),
            "position_ids": np.array([[5, 6, 7, 8], [2, 2, 0, 1]]),
        },
    }


def outputs_of(model, cases: dict[str, dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The inputs and outputs of every case, as `case.name`."""
    arrays = {}
    for case, inputs in cases.items():
        tensors = {name: torch.from_numpy(value) for name, value in inputs.items()}
        arrays |= {f"{case}.{name}": value.astype(np.int32) for name, value in inputs.items()}
        found = model(**tensors)
        for name in ("last_hidden_state", "pooler_output", "logits"):
            if found.get(name) is not None:
                arrays[f"{case}.{name}"] = found[name].numpy()
        if type(model).__name__.endswith("ForSequenceClassification"):
            arrays[f"{case}.mean_logits"] = mean_logits(model, tensors).numpy()
    return arrays


def mean_logits(model, tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    """The head on the masked mean of the last hidden states, in place of its own pooling."""
    encoder = getattr(model, model.base_model_prefix)
    hidden = encoder(**tensors).last_hidden_state
    mean = masked_mean(hidden, tensors.get("attention_mask", torch.ones(hidden.shape[:2])))
    if model.config.model_type == "bert":
        return model.classifier(mean)
    # The other heads take the first, or the mean, of a row of positions; in a row of one, this.
    handle = encoder.register_forward_hook(lambda *_: BaseModelOutput(mean[:, None]))
    logits = model(tensors["input_ids"][:, :1]).logits
    handle.remove()
    return logits


def gradients_of(model, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Of the mean square of the outputs at tokens, with respect to every norm.

    A token of padding may have nothing to see in its window: what comes out there is of no use.
    """
    norms = {key: value for key, value in model.named_parameters() if "norm" in key.lower()}
    with torch.enable_grad():
        found = model(**{name: torch.from_numpy(value) for name, value in inputs.items()})
        outputs = found.logits if "logits" in found else found.last_hidden_state
        if outputs.ndim == 3:
            outputs = outputs[torch.from_numpy(inputs["attention_mask"]).bool()]
        gradients = torch.autograd.grad(outputs.square().mean(), list(norms.values()))
    return {f"gradient.{key}": value.numpy() for key, value in zip(norms, gradients, strict=True)}


def masked_mean(hidden: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
    weights = attention_mask[..., None].to(hidden.dtype)
    return (hidden * weights).sum(1) / weights.sum(1).clamp(min=1e-9)


def write_half_precision() -> None:
    """The bare BERT once more, stored in bfloat16 and in float16."""
    for name in ("bfloat16", "float16"):
        model = transformers.BertModel.from_pretrained(REFERENCE / "bert")
        model.to(getattr(torch, name)).save_pretrained(REFERENCE / f"bert_{name}")
        exact = model.to(torch.float32)
        write(f"bert_{name}", outputs_of(exact, inputs_for(exact.config)))


def write_sharded() -> None:
    """The sequence classifier once more, over several files."""
    model = transformers.BertForSequenceClassification.from_pretrained(REFERENCE / "bert_seq_cls")
    model.save_pretrained(REFERENCE / "bert_seq_cls_sharded", max_shard_size="30KB")
    write("bert_seq_cls_sharded", outputs_of(model, inputs_for(model.config)))


def write_activations() -> None:
    """Every activation on its own, and in the bare BERT."""
    grid = torch.linspace(-12, 12, 97)
    table = {"x": grid.numpy()}
    model = transformers.BertModel.from_pretrained(REFERENCE / "bert")
    tokens = torch.from_numpy(inputs_for(model.config)["plain"]["input_ids"])
    table["input_ids"] = tokens.numpy().astype(np.int32)
    for name in ACTIVATIONS:
        function = activations.ACT2FN[name]
        table[name] = function(grid).numpy()
        for layer in model.encoder.layer:
            layer.intermediate.intermediate_act_fn = function
        table[f"{name}.last_hidden_state"] = model(tokens).last_hidden_state.numpy()
    write("activations", table)


def write_minilm(directory: Path) -> None:
    """Some positions of what all-MiniLM-L6-v2 gives for a few sentences."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    inputs = tokenizer(list(SENTENCES), padding=True, return_tensors="pt")
    model = transformers.BertModel.from_pretrained(directory, attn_implementation="eager").eval()
    found = model(**inputs)
    positions = np.array([0, 1, 7, inputs["input_ids"].shape[1] - 1])
    arrays = {name: value.numpy().astype(np.int32) for name, value in inputs.items()}
    arrays["positions"] = positions
    arrays["last_hidden_state"] = found.last_hidden_state[:, positions].numpy()
    arrays["pooler_output"] = found.pooler_output.numpy()
    arrays["mean"] = masked_mean(found.last_hidden_state, inputs["attention_mask"]).numpy()
    write("minilm", arrays)


def write(name: str, arrays: dict[str, np.ndarray]) -> None:
    (REFERENCE / name).mkdir(exist_ok=True)
    np.savez_compressed(REFERENCE / name / "reference.npz", **arrays)


if __name__ == "__main__":
    main()

"""A small tree with the module paths of transformers, and PEFT files written by hand for it."""

import json

import numpy as np
from safetensors.numpy import save_file

WIDTH, CLASSES, LAYERS = 8, 3, 2
PREFIX = "base_model.model."
CONFIG = {"peft_type": "LN_TUNING", "target_modules": ["LayerNorm"], "inference_mode": True}


def make_params(dtype="float32", seed=0):
    """A BERT-like nested dict in Flax's layout; the classifier's kernel is (WIDTH, CLASSES)."""
    rng = np.random.default_rng(seed)

    def draw(*shape):
        return rng.standard_normal(shape).astype(dtype)

    def norm():
        return {"scale": draw(WIDTH), "bias": draw(WIDTH)}

    def layer():
        return {
            "attention": {"output": {"LayerNorm": norm(), "dense": {"kernel": draw(WIDTH, WIDTH)}}},
            "output": {"LayerNorm": norm()},
        }

    return {
        "bert": {
            "embeddings": {
                "LayerNorm": norm(),
                "word_embeddings": {"embedding": draw(16, WIDTH)},
            },
            "encoder": {"layer": {str(i): layer() for i in range(LAYERS)}},
        },
        "classifier": {"kernel": draw(WIDTH, CLASSES), "bias": draw(CLASSES)},
    }


def list_norms():
    """The paths of the norm modules, as transformers calls them."""
    inner = ("attention.output.LayerNorm", "output.LayerNorm")
    layers = [f"bert.encoder.layer.{i}.{name}" for i in range(LAYERS) for name in inner]
    return ["bert.embeddings.LayerNorm", *layers]


def make_tensors(seed=1, dtype="float32", *, head=False):
    """The tensors that PEFT writes for that model, by their keys."""
    rng = np.random.default_rng(seed)
    tensors = {
        f"{PREFIX}{module}.ln_tuning_layers.{leaf}": rng.standard_normal(WIDTH).astype(dtype)
        for module in list_norms()
        for leaf in ("weight", "bias")
    }
    if head:
        tensors[PREFIX + "classifier.weight"] = rng.standard_normal((CLASSES, WIDTH)).astype(dtype)
        tensors[PREFIX + "classifier.bias"] = rng.standard_normal(CLASSES).astype(dtype)
    return tensors


def write_adapter(directory, tensors=None, **config):
    """Writes both files of a PEFT adapter."""
    directory.mkdir(exist_ok=True, parents=True)
    tensors = make_tensors() if tensors is None else tensors
    save_file(dict(tensors), directory / "adapter_model.safetensors", metadata={"format": "pt"})
    (directory / "adapter_config.json").write_text(json.dumps(CONFIG | config))
    return directory

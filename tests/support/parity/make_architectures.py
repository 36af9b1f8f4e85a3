"""Writes tests/reference/architectures.json: what the architecture tests compare with.

    python -m tests.support.parity.make_architectures

Needs torch, transformers and PEFT. For each model of `architectures.MODELS` the file holds the
names and shapes of its parameters, its norms by module type, and what PEFT's LNTuningConfig
selects in it by default.
"""

import json
import warnings
from typing import Any

import peft
import torch
import transformers
from peft.tuners.ln_tuning.layer import LNTuningLayer
from peft.utils import TRANSFORMERS_MODELS_TO_LNTUNING_TARGET_MODULES_MAPPING as PEFT_DEFAULTS

from tests.support import paths
from tests.support.parity.architectures import MODELS, make_model

REFERENCE = paths.REFERENCE / "architectures.json"
COPY = ".ln_tuning_layers.default"  # PEFT keeps the copy that trains here, below the module


def describe(name: str) -> dict[str, Any]:
    """All that the tests know about one model."""
    model = make_model(name)
    model_type = model.config.model_type
    return {
        "model_type": model_type,
        "class": type(model).__name__,
        "parameters": nest({k: list(v.shape) for k, v in all_parameters(model).items()}),
        "buffers": nest({k: [str(v.dtype)[6:], *v.shape] for k, v in model.named_buffers()}),
        "tied": find_tied(model),
        "norms": find_norms(model),
        "peft": select_with_peft(model) if model_type in PEFT_DEFAULTS else None,
    }


def all_parameters(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """The parameters under all their names: a tied one has several."""
    return dict(model.named_parameters(remove_duplicate=False))


def find_tied(model: torch.nn.Module) -> dict[str, str]:
    """Each further name of a tied parameter, and its first one."""
    first = {id(parameter): name for name, parameter in model.named_parameters()}
    names = {name: first[id(parameter)] for name, parameter in all_parameters(model).items()}
    return {name: other for name, other in names.items() if name != other}


def find_norms(model: torch.nn.Module) -> dict[str, list[str]]:
    """The norms by module type: class name to module paths.

    PyTorch's own LayerNorm and RMSNorm, and the classes that transformers' modelling files define
    for themselves (LlamaRMSNorm, T5LayerNorm, ...). A norm without parameters is none here.
    """
    found: dict[str, list[str]] = {}
    for path, module in model.named_modules():
        kind = type(module).__name__
        if kind.endswith(("LayerNorm", "RMSNorm")) and list(module.parameters(recurse=False)):
            found.setdefault(kind, []).append(path)
    return found


def select_with_peft(model: torch.nn.Module) -> dict[str, Any]:
    """What PEFT wraps and trains by default, under the names of the model itself."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about tied weights; the file says which are
        wrapped = peft.get_peft_model(model, peft.LNTuningConfig()).base_model.model
    trainable = {k: v.numel() for k, v in wrapped.named_parameters() if v.requires_grad}
    layers = {k: m for k, m in wrapped.named_modules() if isinstance(m, LNTuningLayer)}
    return {
        "modules": {k: type(m.get_base_layer()).__name__ for k, m in layers.items()},
        "trainable": [name.replace(COPY, "") for name in trainable],
        "count": sum(trainable.values()),
    }


def nest(flat: dict[str, Any]) -> dict[str, Any]:
    """A flat dict of dotted names as nested dicts, which take a third of the room."""
    tree: dict[str, Any] = {}
    for name, value in flat.items():
        *parents, last = name.split(".")
        place = tree
        for parent in parents:
            place = place.setdefault(parent, {})
        place[last] = value
    return tree


def write(facts: dict[str, Any]) -> str:
    """JSON with a line for each part of each model, so that a diff says what has changed."""
    models = []
    for name, fact in facts.items():
        lines = [
            f"  {json.dumps(k)}: {json.dumps(v, separators=(',', ':'))}" for k, v in fact.items()
        ]
        models.append(f" {json.dumps(name)}: {{\n" + ",\n".join(lines) + "\n }")
    return "{\n" + ",\n".join(models) + "\n}\n"


def get_versions() -> dict[str, str]:
    """The versions that made the file."""
    return {m.__name__: m.__version__.partition("+")[0] for m in (torch, transformers, peft)}


def main() -> None:
    """Write the file anew."""
    facts = {name: describe(name) for name in MODELS}
    REFERENCE.write_text(write({"versions": get_versions(), **facts}))


if __name__ == "__main__":
    main()

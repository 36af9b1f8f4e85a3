"""Adapters across the border: what PEFT makes of a directory, and both sides' logits."""

import contextlib
import copy
import functools
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import peft
import torch
import transformers
from safetensors.torch import load_file

import lntune_jax as lnt
from lntune_jax.integrations.torchax import TorchModel
from tests.support.parity.small_models import as_tensors

WEIGHTS = "adapter_model.safetensors"

# What PEFT 0.21 and transformers 5 say of every LN-tuning model. All else fails a test.
USUAL = (
    ("Unsupported layer type", UserWarning),
    ("`is_gradient_checkpointing` is deprecated", FutureWarning),
)


@contextlib.contextmanager
def expect_usual_warnings(*others: str) -> Iterator[None]:
    """Lets those warnings pass, and others by the beginnings of their texts."""
    with warnings.catch_warnings():
        for message, category in USUAL + tuple((other, UserWarning) for other in others):
            warnings.filterwarnings("ignore", message, category)
        yield


def build(class_name: str, settings: dict[str, Any], seed: int = 0) -> torch.nn.Module:
    """A transformers model with random weights in eval mode, no scale at one and no bias at zero.

    For heads and architectures that `small_models` does not have.
    """
    model_class = getattr(transformers, class_name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = model_class(model_class.config_class(**settings))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return model.eval()


def wrap(module: torch.nn.Module, *others: str, **fields: Any) -> peft.PeftModel:
    """A copy of the module with PEFT around it; the module stays as it is."""
    with expect_usual_warnings(*others):
        return peft.get_peft_model(copy.deepcopy(module), peft.LNTuningConfig(**fields)).eval()


def move(wrapped: peft.PeftModel, seed: int = 0) -> peft.PeftModel:
    """Moves all that trains by noise, which is quicker than training."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in wrapped.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.3)
    return wrapped


def move_leaves(trainable: dict[str, Any], seed: int = 0) -> dict[str, np.ndarray]:
    """The same with our half."""
    random = np.random.default_rng(seed)
    return {
        name: np.asarray(value) + 0.3 * random.standard_normal(value.shape).astype(value.dtype)
        for name, value in trainable.items()
    }


def save(wrapped: peft.PeftModel, directory: Path, *others: str) -> Path:
    """Has PEFT save its adapter."""
    with expect_usual_warnings(*others):
        wrapped.save_pretrained(directory)
    return directory


def load_with_peft(module: torch.nn.Module, directory: Path, *others: str) -> peft.PeftModel:
    """Has PEFT load an adapter onto a copy of the module, and checks that it took all of it."""
    tensors = load_file(directory / WEIGHTS)
    with expect_usual_warnings(*others):
        loaded = peft.PeftModel.from_pretrained(copy.deepcopy(module), directory).eval()
        held = peft.get_peft_model_state_dict(loaded)
        result = peft.set_peft_model_state_dict(loaded, tensors)
    assert not result.unexpected_keys
    assert not [k for k in result.missing_keys if "ln_tuning_layers" in k or "modules_to_save" in k]
    assert held.keys() == tensors.keys()
    assert all(torch.equal(held[key], tensors[key]) for key in tensors)
    return loaded


def get_logits(output: Any) -> Any:
    """What a head computed; those of a question answerer are two."""
    if "logits" in output:
        return output["logits"]
    starts, ends = output["start_logits"], output["end_logits"]
    return (torch if isinstance(starts, torch.Tensor) else jax.numpy).stack([starts, ends])


def run_torch(module: torch.nn.Module, batch: dict[str, np.ndarray]) -> np.ndarray:
    """PyTorch's logits."""
    with torch.no_grad():
        return get_logits(module(**as_tensors(batch))).float().numpy()


@functools.cache
def _compile(model: TorchModel) -> Any:
    return jax.jit(lambda params, batch: get_logits(model.apply(params, **batch)))


def run_ours(model: TorchModel, params: Any, batch: dict[str, np.ndarray]) -> np.ndarray:
    """Our logits for the same batch."""
    return np.asarray(_compile(model)(params, batch))


def check_logits(found: np.ndarray, expected: np.ndarray, base: np.ndarray) -> None:
    """Logits equal to 1e-5 of the largest, or of 1; the adapter moved them far from the base."""
    assert np.abs(expected - base).max() > 0.1, "the adapter changes nothing"
    tolerance = 1e-5 * max(1.0, np.abs(expected).max())
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance)


def check_import(
    wrapped: peft.PeftModel, directory: Path, model: TorchModel, batch: dict[str, np.ndarray]
) -> Any:
    """Imports what PEFT saved and compares the logits; returns the parameters."""
    params = lnt.import_peft(directory, model.params)
    base = run_ours(model, model.params, batch)
    check_logits(run_ours(model, params, batch), run_torch(wrapped, batch), base)
    return params


def check_export(
    module: torch.nn.Module,
    directory: Path,
    model: TorchModel,
    params: Any,
    batch: dict[str, np.ndarray],
    *others: str,
) -> peft.PeftModel:
    """Has PEFT load what we exported and compares the logits; returns PEFT's model."""
    loaded = load_with_peft(module, directory, *others)
    base = run_torch(module, batch)
    check_logits(run_torch(loaded, batch), run_ours(model, params, batch), base)
    return loaded

"""Importing torch and torchax late, with an error that says which versions go together."""

from __future__ import annotations

import importlib
import importlib.metadata
import platform
from typing import Any

from ...errors import ModelError

# The pair that is tested. torchax reads torch's internals, so it follows torch's versions
# closely: the stable torchax 0.0.13 fails on torch 2.13.0.
KNOWN = {"torch": "2.13.0", "torchax": "0.0.14.dev20261026"}


def load_torch() -> Any:
    """Imports torch.

    Raises:
        ModelError: it is not installed, or cannot be imported.
    """
    return _load("torch")


def load_torchax() -> Any:
    """Imports torchax, the bridge from PyTorch to JAX.

    Raises:
        ModelError: torch or torchax is not installed, or cannot be imported.
    """
    _load("torch")
    return _load("torchax")


def load_transformers() -> Any:
    """Imports transformers.

    Raises:
        ModelError: it is not installed, or cannot be imported.
    """
    return _load("transformers")


def _load(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except Exception as error:  # torchax on an unknown torch fails with an AttributeError
        raise ModelError(_explain(name, error)) from error


def _explain(name: str, error: Exception) -> str:
    missing = isinstance(error, ModuleNotFoundError) and error.name == name
    reason = "is not installed" if missing else f"cannot be imported ({_describe(error)})"
    packages = ("torch", "torchax", "transformers", "jax")
    found = ", ".join(f"{package} {_get_version(package)}" for package in packages)
    command = " ".join(f"{package}=={version}" for package, version in KNOWN.items())
    if name == "transformers":
        command = "'transformers>=5,<6'"
    return (
        f"lntune_jax.integrations.torchax needs {name}, which {reason}. Found: {found}, Python "
        f"{platform.python_version()}. Known to work together: torch {KNOWN['torch']} with "
        f"torchax {KNOWN['torchax']}. Run: pip install {command}"
    )


def _describe(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"


def _get_version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "(none)"

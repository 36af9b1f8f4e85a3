"""What may be asked of a memory estimate."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lntune_jax.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

METHODS = ("ln", "lora", "full")
AXES = ("data", "fsdp", "tensor")


def check_mesh(mesh: Mapping[str, int]) -> dict[str, int]:
    """Check names and sizes of a mesh's axes.

    Raises:
        ConfigError: an axis is not known, or its size is below 1.
    """
    for axis, size in mesh.items():
        if axis not in AXES:
            raise ConfigError(f"mesh has the axis {axis!r}; supported: {', '.join(AXES)}")
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise ConfigError(f"mesh has {axis}={size!r}; expected an integer of at least 1")
    return dict(mesh)


def check_base(method: str, quantize: str | None) -> None:
    """Check that the method works over the base.

    Raises:
        ConfigError: it trains kernels that are quantised.
    """
    if method == "full" and quantize is not None:
        raise ConfigError(
            f"method is 'full', which trains the kernels themselves, but quantize is {quantize!r}; "
            "leave quantize out"
        )


def check_numbers(method: str, **sizes: Any) -> None:
    """Check the method, and numbers that must be positive.

    Raises:
        ConfigError: one is not supported.
    """
    if method not in METHODS:
        raise ConfigError(f"method is {method!r}; supported: {', '.join(map(repr, METHODS))}")
    for name, size in sizes.items():
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise ConfigError(f"{name} is {size!r}; expected an integer of at least 1")


def check_scanned(method: str, scanned: bool) -> None:
    """Refuse LoRA in scanned layers, where its factors are not followed.

    Raises:
        ConfigError: both are asked for.
    """
    if scanned and method == "lora":
        raise ConfigError(
            "method is 'lora' and the layers are scanned, which the estimate does not follow; "
            "pass a model of scan_layers=False"
        )

"""The parts of `gpu.py`, most telling first: what does not fit the time is left out at the end."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Part:
    """One process of its own.

    Attributes:
        name: of the row.
        shape: a key of `SHAPES`, or "small" and "large" for the first and the second one asked for.
        side: "jax" or "torch".
        limit: seconds after which it is stopped.
        spec: what the process is told besides.
    """

    name: str
    shape: str
    side: str
    limit: int
    spec: Mapping[str, Any] = field(default_factory=dict)


def _ours(name: str, shape: str, limit: int = 120, method: str = "ln", **spec: Any) -> Part:
    return Part(name, shape, "jax", limit, {"method": method, **spec})


def _torch(name: str, shape: str, limit: int = 90, method: str = "ln", **spec: Any) -> Part:
    return Part(name, shape, "torch", limit, {"method": method, **spec})


# Scanned layers compile in seconds; LoRA is put into a traced loss, which needs them apart.
PARTS = (
    Part("matrix products", "small", "jax", 60, {"method": "peak"}),
    _ours("ours", "small"),
    _torch("PEFT, eager", "small"),
    _ours("ours, remat dots_saveable", "small", remat="dots_saveable"),
    _ours("ours, layers apart", "small", 180, scan=False),
    _torch("PEFT, compiled", "small", 180, compiled=True),
    _ours("ours", "large"),
    _torch("PEFT, eager", "large"),
    _ours("ours, remat dots_saveable", "large", remat="dots_saveable"),
    _ours("largest batch, ours", "small", 150, largest=True),
    _torch("largest batch, PEFT", "small", largest=True),
    _ours("LoRA r=8, JAX", "small", 180, "lora", scan=False),
    _torch("LoRA r=8, PEFT", "small", method="lora"),
    _ours("full, JAX", "small", method="full"),
    _torch("full, PyTorch", "small", method="full"),
    _ours("largest batch, ours, remat full", "small", 150, largest=True, remat="full"),
    _ours("full, JAX", "large", method="full"),
    _torch("full, PyTorch", "large", method="full"),
    _ours("full, float32 masters, JAX", "large", method="full", masters=True),
    _torch("LoRA r=8, PEFT", "large", method="lora"),
    _ours("LoRA r=8, JAX", "large", 180, "lora", scan=False),
    _torch("PEFT, compiled", "large", 180, compiled=True),
    _ours("ours, logits whole", "small", chunk=128256),
    _ours("ours, XLA's attention", "small", attention="xla"),
    _ours(
        "ours, remat dots_with_no_batch_dims_saveable",
        "small",
        remat="dots_with_no_batch_dims_saveable",
    ),
    _ours("ours, remat full", "small", remat="full"),
)

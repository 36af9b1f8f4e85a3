"""What a training step will hold in memory, without a device."""

from .memory import MemoryEstimate, check_mesh, estimate_memory

__all__ = ["MemoryEstimate", "check_mesh", "estimate_memory"]

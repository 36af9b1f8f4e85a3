"""An adapter and the checkpoint of its base: read together, compared, and written as one."""

from ..loading.safetensors import map_tensor
from .heads import count_labels
from .merge import MergedCheckpoint, merge_checkpoint
from .parts import (
    Found,
    Parts,
    find_adapter,
    map_parameters,
    read_norms,
    read_parts,
    read_quantization,
)

__all__ = [
    "Found",
    "MergedCheckpoint",
    "Parts",
    "count_labels",
    "find_adapter",
    "map_parameters",
    "map_tensor",
    "merge_checkpoint",
    "read_norms",
    "read_parts",
    "read_quantization",
]

"""An adapter and the checkpoint of its base: read together, compared, and written as one."""

from .adapter import Found, find_adapter, read_norms, read_quantization
from .heads import count_labels
from .merge import MergedCheckpoint, merge_checkpoint
from .plan import Parts, map_parameters, read_parts
from .shards import map_tensor

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

"""Which leaves of a tree train, and why: patterns, norms, defaults, labels, counts."""

from .labels import label_groups, label_params
from .report import LeafReport, ParamReport
from .select import partition_params, report_params, select
from .selection import SelectedLeaf, Selection
from .types import norm_modules

__all__ = [
    "LeafReport",
    "ParamReport",
    "SelectedLeaf",
    "Selection",
    "label_groups",
    "label_params",
    "norm_modules",
    "partition_params",
    "report_params",
    "select",
]

"""Many adapters over one base: stacked in a bank, used side by side in one batch, combined."""

from .algebra import average, interpolate, negate, weighted_sum
from .apply import apply_ensemble, apply_per_example, apply_rows
from .core import AdapterBank, Row, make_bank
from .edit import add_adapter, get_adapter, remove_adapter, rename_adapter, replace_adapter
from .files import load_bank, save_bank
from .relations import Comparison, compare_adapters
from .rows import freeze_base, merge_rows, take_rows
from .soups import Soup, greedy_soup, uniform_soup
from .storage import bank_bytes
from .write import grow_bank

__all__ = [
    "AdapterBank",
    "Comparison",
    "Row",
    "Soup",
    "add_adapter",
    "apply_ensemble",
    "apply_per_example",
    "apply_rows",
    "average",
    "bank_bytes",
    "compare_adapters",
    "freeze_base",
    "get_adapter",
    "greedy_soup",
    "grow_bank",
    "interpolate",
    "load_bank",
    "make_bank",
    "merge_rows",
    "negate",
    "remove_adapter",
    "rename_adapter",
    "replace_adapter",
    "save_bank",
    "take_rows",
    "uniform_soup",
    "weighted_sum",
]

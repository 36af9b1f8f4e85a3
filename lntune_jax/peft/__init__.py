"""PEFT's LN-tuning adapters: the functions again, and the tables of other libraries' names."""

from ..names.maps import NameMap, NameRule
from ..names.tables import NAME_MAPS
from .export import export_peft
from .load import import_peft, load_peft

__all__ = [
    "NAME_MAPS",
    "NameMap",
    "NameRule",
    "export_peft",
    "import_peft",
    "load_peft",
]

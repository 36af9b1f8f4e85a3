"""PEFT's LN-tuning adapters: the functions again, and the tables of other libraries' names."""

from ._peft_export import export_peft as export_peft
from ._peft_import import import_peft as import_peft
from ._peft_import import load_peft as load_peft
from .names.maps import NameMap as NameMap
from .names.maps import NameRule as NameRule
from .names.tables import NAME_MAPS as NAME_MAPS

"""Every name map that can be asked for by name; the rules are in one file for each library."""

from __future__ import annotations

from . import (
    _name_tables_deepmind,
    _name_tables_keras_hub,
    _name_tables_maxtext,
    _name_tables_tunix,
)
from ._name_rules import NameMap

NAME_MAPS: dict[str, NameMap] = {
    **_name_tables_tunix.TABLES,
    **_name_tables_maxtext.TABLES,
    **_name_tables_keras_hub.TABLES,
    **_name_tables_deepmind.TABLES,
}

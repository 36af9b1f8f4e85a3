"""Every name map that can be asked for by name; the rules are in one file for each library."""

from __future__ import annotations

from ..rules import NameMap
from . import deepmind, keras_hub, maxtext, tunix

NAME_MAPS: dict[str, NameMap] = {
    **tunix.TABLES,
    **maxtext.TABLES,
    **keras_hub.TABLES,
    **deepmind.TABLES,
}

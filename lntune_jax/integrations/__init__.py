"""Helpers for models of other libraries: `nnx`, `keras`, `tunix`, `torchax`.

Each is imported when it is first used, since it needs the library it is for.
"""

import importlib as _importlib
from typing import Any as _Any

_SUBMODULES = frozenset({"keras", "nnx", "torchax", "tunix"})


def __getattr__(name: str) -> _Any:
    if name in _SUBMODULES:
        return _importlib.import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

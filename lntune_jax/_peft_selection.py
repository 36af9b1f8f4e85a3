"""A config that selects, in the caller's tree, exactly the leaves that a PEFT adapter holds.

The file's own config is kept wherever it does; else its patterns are written as paths.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ._adapter_messages import list_names
from ._config import LNTuningConfig
from ._errors import AdapterError, CopiedModuleWarning, SelectionError
from ._paths import join
from ._peft_contents import Contents
from ._peft_tree import Index
from ._selection import select_leaves


def make_own_config(
    directory: Path,
    params: Any,
    config: LNTuningConfig,
    index: Index,
    contents: Contents,
    wanted: Sequence[str],
) -> LNTuningConfig:
    """The file's config, or one with its patterns written anew for this tree.

    Raises:
        AdapterError: no config can select these leaves.

    Warns:
        CopiedModuleWarning: the adapter copied modules that are no norms.
    """
    if contents.copies:
        warnings.warn(
            f"the adapter {directory} copied modules that are no norms: "
            f"{list_names(contents.copies)}. They are imported whole, as modules_to_save",
            CopiedModuleWarning,
            stacklevel=5,  # the caller of import_peft or load_peft
        )
    elif _selects(params, config, wanted):
        return config
    is_norm = {
        name: all(place.parameter in contents.norms for place in index.places[name])
        for name in wanted
    }
    norms = [name for name in wanted if is_norm[name]]
    saved = _list_modules([name for name in wanted if not is_norm[name]])
    # Without targets every norm would train: leave all of them out where none is wanted.
    others = (
        [] if norms else [p.leaf for name, p in index.parameters.items() if name in index.norms]
    )
    written = config.replace(
        target_modules=_list_modules(norms) or None,
        exclude_modules=_list_modules(others) or None,
        modules_to_save=saved or None,
    )
    # A path may be the end of another one. As an expression it is exact, but harder to read.
    expressions = [f"(?:{re.escape(module)})" for module in written.target_modules or ()]
    exact = written.replace(target_modules=expressions or None)
    for candidate in (written, exact):
        if _selects(params, candidate, wanted):
            return candidate
    raise AdapterError(
        f"no config selects just the leaves of the adapter {directory} in params: "
        f"{list_names(wanted)}"
    )


def _list_modules(names: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(name.rpartition(".")[0] for name in names))


def _selects(params: Any, config: LNTuningConfig, wanted: Sequence[str]) -> bool:
    try:
        selection = select_leaves(params, config, warn=False)
    except SelectionError:
        return False
    found = {join(x.path) for i, x in enumerate(selection.leaves) if selection.is_trainable(i)}
    return found == set(wanted)

"""A config that selects, in the caller's tree, exactly the leaves that a PEFT adapter holds.

The file's own config is kept wherever it does; else its patterns are written as paths.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ..config import LNTuningConfig
from ..errors import AdapterError, CopiedModuleWarning, SelectionError
from ..messages import list_names, warn
from ..paths import join
from ..selection.select import select_leaves
from .contents import Contents
from .tree import Index


def make_own_config(
    directory: Path,
    params: Any,
    config: LNTuningConfig,
    norms: Iterable[str] | None,
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
        warn(
            f"the adapter {directory} holds copies of modules that are no norms: "
            f"{list_names(contents.copies)}. They are imported whole, as modules_to_save",
            CopiedModuleWarning,
        )
    elif _selects(params, config, norms, wanted):
        return config
    is_norm = {
        name: all(place.parameter in contents.norms for place in index.places[name])
        for name in wanted
    }
    own = [name for name in wanted if is_norm[name]]
    saved = _list_modules([name for name in wanted if not is_norm[name]])
    written = config.replace(
        target_modules=_list_modules(own),  # an empty list where the adapter holds no norm
        exclude_modules=None,
        modules_to_save=saved or None,
        model_type=None,
    )
    # A path may be the end of another one, which is then left out by name.
    extra = _list_modules(sorted(_select(params, written, norms) - set(wanted)))
    exact = written.replace(exclude_modules=extra) if extra else written
    for candidate in (written, exact):
        if _selects(params, candidate, norms, wanted):
            return candidate
    raise AdapterError(
        f"no config selects just the leaves of the adapter {directory} in params: "
        f"{list_names(wanted)}"
    )


def _list_modules(names: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(name.rpartition(".")[0] for name in names))


def _selects(
    params: Any, config: LNTuningConfig, norms: Iterable[str] | None, wanted: Sequence[str]
) -> bool:
    return _select(params, config, norms) == set(wanted)


def _select(params: Any, config: LNTuningConfig, norms: Iterable[str] | None) -> set[str]:
    try:
        selection = select_leaves(params, config, norms, warn=False)
    except SelectionError:
        return set()
    return {join(x.path) for i, x in enumerate(selection.leaves) if selection.is_trainable(i)}

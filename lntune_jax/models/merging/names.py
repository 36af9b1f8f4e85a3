"""How the names in an adapter and the keys in a checkpoint go together.

An adapter has the module paths of the model that was tuned; a checkpoint may hold that model
without its head, and then without the prefix ("bert.", "model."), or the other way round.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from lntune_jax.errors import AdapterError, ModelError
from lntune_jax.messages import list_names

from ..families.names import TENSORFLOW_LEAVES

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path


# Modules that transformers 5 calls otherwise than checkpoints do, which it renames as it loads and
# saves them (src/transformers/conversion_mapping.py, 5.23), by model_type.
_LLAVA = (
    (r"^language_model\.model\.", "model.language_model."),
    (r"^language_model\.lm_head\.", "lm_head."),
    (r"^vision_tower\.(vision_model\.)?", "model.vision_tower."),
    (r"^multi_modal_projector\.", "model.multi_modal_projector."),
)

_RENAMED = {
    "vit": ((r"(^|\.)encoder\.layer\.", r"\1layers."),),
    "llava": _LLAVA,
    "gemma3": _LLAVA,
    "qwen2_5_vl": (
        (r"^visual\.", "model.visual."),
        (r"^model\.(?!language_model\.|visual\.)", "model.language_model."),
    ),
}


class Names(NamedTuple):
    """The keys of a checkpoint under the names that the adapter's model has for them.

    Attributes:
        keys: for each name, the key.
        added: the prefix that names have and keys lack, with its dot, or "".
        dropped: the prefix that keys have and names lack, with its dot, or "".
    """

    keys: dict[str, str]
    added: str = ""
    dropped: str = ""


def match_names(
    checkpoint: Path,
    keys: Iterable[str],
    adapter: Path,
    wanted: Mapping[str, Sequence[str]],
    model_type: str | None = None,
) -> Names:
    """Find the one prefix under which every norm of an adapter is in a checkpoint.

    Args:
        checkpoint: the model directory, for messages.
        keys: the checkpoint's keys.
        adapter: the adapter directory, for messages.
        wanted: the adapter's norms, and the names that each may have.
        model_type: the architecture, of which some have keys that are not module paths.

    Raises:
        ModelError: two keys are one tensor.
        AdapterError: there is no such prefix, or several.

    Example:
        >>> from pathlib import Path
        >>> wanted = {"bert.ln.weight": ("bert.ln.weight",)}
        >>> match_names(Path("base"), ["ln.gamma", "ln.weight"], Path("adapter"), wanted)
        Names(keys={'bert.ln.gamma': 'ln.gamma', 'bert.ln.weight': 'ln.weight'}, added='bert.', \
dropped='')
    """
    present = _modernize(checkpoint, keys)
    found = _find(present, wanted)
    rules = _RENAMED.get(model_type or "")
    if not found and rules:
        renamed = {_apply(rules, name): key for name, key in present.items()}
        found = _find(renamed, wanted) if len(renamed) == len(present) else []
    exact = [names for names in found if not names.added and not names.dropped]
    if exact or len(found) == 1:
        return (exact or found)[0]
    if found:
        ways = [names.added or names.dropped for names in found]
        raise AdapterError(
            f"the norms of the adapter {adapter} are in {checkpoint} in {len(found)} ways, with "
            f"the prefixes {list_names(ways)}: pass the checkpoint of the very model it was "
            "trained on"
        )
    raise AdapterError(_explain(checkpoint, present, adapter, wanted))


def add_prefix(checkpoint: Path, names: Names, prefix: str) -> Names:
    """The names of a checkpoint without a prefix, with it.

    Raises:
        ModelError: two keys have one name.
    """
    renamed = _rename(names.keys, prefix, "")
    if renamed is None:
        raise ModelError(f"{checkpoint} holds keys with and without {prefix!r}")
    return renamed


def _modernize(checkpoint: Path, keys: Iterable[str]) -> dict[str, str]:
    """Keys by their names without what old checkpoints call the leaves of a LayerNorm."""
    names: dict[str, str] = {}
    for key in keys:
        name = key
        for old, new in TENSORFLOW_LEAVES.items():
            if name.endswith(old):
                name = name.removesuffix(old) + new
        if name in names:
            raise ModelError(f"{checkpoint} holds {name} twice: as {names[name]} and as {key}")
        names[name] = key
    return names


def _apply(rules: Sequence[tuple[str, str]], name: str) -> str:
    for pattern, new in rules:
        name, count = re.subn(pattern, new, name)
        if count:
            return name
    return name


def _find(present: Mapping[str, str], wanted: Mapping[str, Sequence[str]]) -> list[Names]:
    return [
        names
        for added, dropped in _list_prefixes(present, wanted)
        if (names := _rename(present, added, dropped)) and _holds(names, wanted)
    ]


def _list_prefixes(
    present: Mapping[str, str], wanted: Mapping[str, Sequence[str]]
) -> list[tuple[str, str]]:
    """What could be added to keys or dropped from them, so that the first norm is there."""
    prefixes: dict[tuple[str, str], None] = {("", ""): None}
    for name in next(iter(wanted.values()), ()):
        for key in present:
            if name.endswith("." + key):
                prefixes[name.removesuffix(key), ""] = None
            elif key.endswith("." + name):
                prefixes["", key.removesuffix(name)] = None
    return list(prefixes)


def _rename(present: Mapping[str, str], added: str, dropped: str) -> Names | None:
    keys = {added + name.removeprefix(dropped): key for name, key in present.items()}
    return Names(keys, added, dropped) if len(keys) == len(present) else None


def _holds(names: Names, wanted: Mapping[str, Sequence[str]]) -> bool:
    return all(any(name in names.keys for name in each) for each in wanted.values())


def _explain(
    checkpoint: Path,
    present: Mapping[str, str],
    adapter: Path,
    wanted: Mapping[str, Sequence[str]],
) -> str:
    # Said for the names as they are: with another prefix nothing fits either.
    missing = [name for name, each in wanted.items() if not any(n in present for n in each)]
    norms = [name for name in present if "norm" in name.lower() or ".ln_" in name]
    return (
        f"the adapter {adapter} does not fit {checkpoint}, whose keys lack its norms, with "
        f"any prefix: it has {list_names(missing)}; the checkpoint has "
        f"{list_names(norms or list(present))}. Pass the checkpoint it was trained on, and a name "
        "map if its tree had names that are not those of transformers"
    )

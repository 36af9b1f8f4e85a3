"""How the names in an adapter and the keys in a checkpoint go together.

An adapter has the module paths of the model that was tuned; a checkpoint may hold that model
without its head, and then without the prefix ("bert.", "model."), or the other way round.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from lntune_jax.errors import AdapterError, ModelError
from lntune_jax.messages import list_names

from ..families.encoders import ENCODER
from ..families.registry import FAMILIES
from ..loading.weights import canonical_keys

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from ..loading.safetensors import Weights


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
    checkpoint: Weights,
    adapter: Path,
    wanted: Mapping[str, Sequence[str]],
    model_type: str | None = None,
) -> Names:
    """Find the one prefix under which every norm of an adapter is in a checkpoint.

    `wanted` gives the names that each norm may have. Of some architectures, by their `model_type`,
    the keys are not module paths.

    Raises:
        ModelError: two keys are one tensor.
        AdapterError: there is no such prefix, or several.

    Example:
        >>> from pathlib import Path
        >>> from lntune_jax.models.loading.safetensors import Weights
        >>> base = Weights(Path("base"), dict.fromkeys(["fc.bias", "LayerNorm.gamma"]))
        >>> names = match_names(base, Path("adapter"), {"": ["bert.LayerNorm.weight"]})
        >>> names.added, names.keys["bert.LayerNorm.weight"]
        ('bert.', 'LayerNorm.gamma')
    """
    present = canonical_keys(checkpoint)
    if not wanted:
        return _match_without_norms(checkpoint.directory, present, model_type)
    found = _find(present, wanted)
    if not found and model_type in _RENAMED:
        renamed = {_apply(_RENAMED[model_type], name): key for name, key in present.items()}
        found = _find(renamed, wanted) if len(renamed) == len(present) else []
    exact = [names for names in found if not names.added and not names.dropped]
    if exact or len(found) == 1:
        return (exact or found)[0]
    if found:
        ways = [names.added or names.dropped for names in found]
        raise AdapterError(
            f"the norms of the adapter {adapter} are in {checkpoint.directory} in {len(found)} "
            f"ways, with the prefixes {list_names(ways)}: pass the checkpoint of the very model it "
            "was trained on"
        )
    # Said for the names as they are: with another prefix nothing fits either.
    missing = [name for name, each in wanted.items() if not any(n in present for n in each)]
    norms = [name for name in present if "norm" in name.lower() or ".ln_" in name]
    raise AdapterError(
        f"the adapter {adapter} does not fit {checkpoint.directory}, whose keys lack its norms, "
        f"with any prefix: it has {list_names(missing)}; the checkpoint has "
        f"{list_names(norms or list(present))}. Pass the checkpoint it was trained on, and a name "
        "map if its tree had names that are not those of transformers"
    )


def _match_without_norms(directory: Path, present: dict[str, str], model_type: str | None) -> Names:
    """A head alone says nothing about the prefix; the architecture does."""
    family = FAMILIES.get(model_type or "")
    if family is None or family.kind is not ENCODER:
        return Names(present)
    prefix = f"{family.checkpoint_names.prefix}."
    if any(name.startswith(prefix) for name in present):
        return Names(present)
    names = _rename(present, prefix, "")
    if names is None:
        raise ModelError(f"{directory} holds keys with and without {prefix!r}")
    return names


def _apply(rules: Sequence[tuple[str, str]], name: str) -> str:
    for pattern, new in rules:
        name, count = re.subn(pattern, new, name)
        if count:
            return name
    return name


def _find(present: Mapping[str, str], wanted: Mapping[str, Sequence[str]]) -> list[Names]:
    """The ways to add a prefix to keys, or to drop one, with which every norm is there."""
    prefixes: dict[tuple[str, str], None] = {("", ""): None}
    for name in next(iter(wanted.values())):
        for key in present:
            if name.endswith("." + key):
                prefixes[name.removesuffix(key), ""] = None
            elif key.endswith("." + name):
                prefixes["", key.removesuffix(name)] = None
    every = (_rename(present, added, dropped) for added, dropped in prefixes)
    return [
        names
        for names in every
        if names and all(any(name in names.keys for name in each) for each in wanted.values())
    ]


def _rename(present: Mapping[str, str], added: str, dropped: str) -> Names | None:
    keys = {added + name.removeprefix(dropped): key for name, key in present.items()}
    return Names(keys, added, dropped) if len(keys) == len(present) else None

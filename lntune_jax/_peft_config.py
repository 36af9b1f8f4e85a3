"""The config of an exported adapter: patterns that PEFT reads as we do.

PEFT copies every module that a target matches, a whole decoder included, and knows no expressions
in lists (src/peft/tuners/tuners_utils.py, 0.21). So entries are kept where both readings agree,
and written out as the modules' own paths elsewhere.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from ._architectures import DEFAULT_TARGETS
from ._config import LNTuningConfig
from ._roles import get_modules_to_save, list_modules
from ._task_heads import TASK_HEADS

_PEFT_HEADS = frozenset().union(*TASK_HEADS.values())  # added by PEFT, whether there or not
_PLAIN = re.compile(r"[\w.-]+")


def make_peft_config(
    config: LNTuningConfig, norms: Iterable[str], saved: Iterable[str], *, is_renamed: bool
) -> LNTuningConfig:
    """A config with which PEFT copies and saves exactly these modules.

    Args:
        config: the config of the training.
        norms: the parameters of norms, as transformers calls them.
        saved: the parameters of saved modules.
        is_renamed: whether the tree's own names, which the config speaks of, are others.

    Example:
        >>> config = LNTuningConfig(target_modules=".*norm", modules_to_save=["head"])
        >>> made = make_peft_config(config, ["a.norm.weight"], ["head.bias"], is_renamed=False)
        >>> made.target_modules, made.modules_to_save
        (('a.norm',), ('head',))
    """
    norms = list(norms)
    modules = list_parents(norms)
    targets, excluded = config.target_modules, config.exclude_modules
    if targets is None and config.model_type is not None:
        targets = DEFAULT_TARGETS.get(config.model_type)
    if is_renamed or not _reads_alike(targets, excluded, modules):
        targets, excluded = tuple(modules) or None, None
    heads = list_parents(saved)
    kept = tuple(get_modules_to_save(config) or ())
    tasks = TASK_HEADS.get(config.task_type or "", ())
    is_clear = all(_names_module(entry, heads) for entry in kept)
    # By the end of its name PEFT would also save a norm that it copies, and cannot do both.
    is_clear = is_clear and not any(is_saved_by_peft(norm, kept) for norm in norms)
    if is_renamed or config.exclude_modules or not is_clear:
        kept = _join_heads(heads, tasks)
    else:  # and a head that was added for the task
        added = [head for head in heads if not any(is_in(head, entry) for entry in kept)]
        kept += _join_heads(added, tasks)
    return config.replace(
        target_modules=targets,
        exclude_modules=excluded,
        modules_to_save=kept or None,
        inference_mode=True,  # as PEFT writes every adapter
        model_type=None,  # PEFT knows neither of these fields
        param_dtype="float32",
    )


def list_parents(parameters: Iterable[str]) -> list[str]:
    """The modules that hold these parameters, each once, in their order."""
    return list(dict.fromkeys(name.rpartition(".")[0] for name in parameters))


def is_in(module: str, entry: str) -> bool:
    """Whether a module lies in, or is, one that an entry of `modules_to_save` names."""
    return f".{entry}." in f".{module}."


def is_saved_by_peft(parameter: str, entries: Iterable[str]) -> bool:
    """Whether PEFT saves a parameter by these entries of `modules_to_save`.

    Its rule is the end of a string, not of a path: "classifier" saves DistilBERT's
    `pre_classifier` too (src/peft/utils/other.py, `_set_trainable`).

    Example:
        >>> is_saved_by_peft("pre_classifier.weight", ["classifier"])
        True
    """
    modules = list_modules([tuple(parameter.split("."))])
    return any(module.endswith(entry) for module in modules for entry in entries)


def _reads_alike(
    targets: str | Sequence[str] | None,
    excluded: str | Sequence[str] | None,
    modules: Sequence[str],
) -> bool:
    """Whether PEFT copies these modules, and none that contains them, by entries of lists alone."""
    if targets is None or isinstance(targets, str):
        return False
    if not is_plain(targets) or not is_plain(excluded):
        return False
    above = list_modules([tuple(module.split(".")) for module in modules])
    return all(_ends(module, targets) for module in modules) and not any(
        _ends(container, targets) for container in above if container not in modules
    )


def is_plain(patterns: str | Sequence[str] | None) -> bool:
    """Whether patterns are a list of plain ends of module paths, which PEFT reads as we do."""
    entries = patterns or ()
    return not isinstance(entries, str) and all(_PLAIN.fullmatch(entry) for entry in entries)


def _names_module(entry: str, heads: Sequence[str]) -> bool:
    """Whether an entry of `modules_to_save` is one of these modules, or contains some."""
    return entry in _PEFT_HEADS or any(is_in(head, entry) for head in heads)


def _join_heads(modules: Sequence[str], heads: Sequence[str]) -> tuple[str, ...]:
    """The outermost of these modules; PEFT adds the task's heads itself, and cannot nest copies."""
    roots: dict[str, None] = {}
    for module in modules:
        above = list_modules([(*module.split("."), "leaf")])
        roots[next((path for path in above if path.endswith(tuple(heads))), module)] = None
    return tuple(r for r in roots if not any(r.startswith(f"{other}.") for other in roots))


def _ends(module: str, entries: Sequence[str]) -> bool:
    return any(module == entry or module.endswith("." + entry) for entry in entries)

"""Configs that select the same leaves on the other side, whose patterns are written anew.

PEFT copies every module that a target matches, a whole decoder included, and knows no expressions
in lists (src/peft/tuners/tuners_utils.py, 0.21). So entries are kept where both readings agree,
and written out as the modules' own paths elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..config import TASK_HEADS, LNTuningConfig
from ..errors import SelectionError
from ..paths import join
from ..selection.architectures import DEFAULT_TARGETS
from ..selection.patterns import PLAIN
from ..selection.roles import get_modules_to_save, list_modules
from ..selection.select import select_leaves
from .heads import is_in, is_saved_by_peft, list_above, list_parents

_PEFT_HEADS = frozenset().union(*TASK_HEADS.values())  # added by PEFT, whether there or not


def make_peft_config(
    config: LNTuningConfig,
    norms: Iterable[str],
    saved: Iterable[str],
    *,
    known: Iterable[str],
    is_renamed: bool,
) -> LNTuningConfig:
    """A config with which PEFT copies and saves exactly these modules.

    Args:
        config: the config of the training.
        norms: the parameters of norms, as transformers calls them.
        saved: the parameters of saved modules.
        known: all parameters of the model that are known, these among them.
        is_renamed: whether the tree's own names, which the config speaks of, are others.

    Example:
        >>> config = LNTuningConfig(target_modules=".*norm", modules_to_save=["head"])
        >>> names = ["a.norm.weight", "head.bias"]
        >>> made = make_peft_config(config, names[:1], names[1:], known=names, is_renamed=False)
        >>> made.target_modules, made.modules_to_save
        (('a.norm',), ('head',))
    """
    norms, modules = list(norms), list_modules([tuple(name.split(".")) for name in known])
    copied = list_parents(norms)
    targets, excluded = config.target_modules, config.exclude_modules
    if targets is None and config.model_type is not None:
        targets = DEFAULT_TARGETS.get(config.model_type)
    kept = tuple(get_modules_to_save(config) or ())
    others = [module for module in modules if not any(is_in(module, entry) for entry in kept)]
    if is_renamed or not _reads_alike(targets, excluded, copied, others):
        targets = tuple(copied) or None
        # A path may be the end of another one, which PEFT would copy too.
        excluded = tuple(sorted(_list_ends(modules, copied) - set(copied))) or None
    heads, tasks = list_parents(saved), config.optional_modules
    added = [head for head in heads if not any(is_in(head, entry) for entry in kept)]
    written = kept + _join_heads(added, tasks)
    if (
        is_renamed
        or config.exclude_modules
        or not all(_names_module(entry, heads) for entry in kept)
        # By the end of its name PEFT would also save a norm that it copies, and cannot do both.
        or any(is_saved_by_peft(norm, kept) for norm in norms)
        or not _is_flat(modules, (*written, *tasks))
    ):
        written = _join_heads(heads, tasks)
    return config.replace(
        target_modules=targets,
        exclude_modules=excluded,
        modules_to_save=written or None,
        inference_mode=True,  # as PEFT writes every adapter
        model_type=None,  # PEFT knows neither of these fields
        param_dtype="float32",
    )


def _reads_alike(
    targets: str | Sequence[str] | None,
    excluded: str | Sequence[str] | None,
    copied: Sequence[str],
    modules: Sequence[str],
) -> bool:
    """Whether PEFT copies just `copied` of these modules, by entries of lists alone."""
    if targets is None or isinstance(targets, str):
        return False
    if not _is_plain(targets) or not _is_plain(excluded):
        return False
    return _list_ends(modules, targets) - _list_ends(modules, excluded or ()) == set(copied)


def _is_plain(patterns: str | Sequence[str] | None) -> bool:
    """Whether patterns are a list of plain ends of module paths, which PEFT reads as we do."""
    entries = patterns or ()
    return not isinstance(entries, str) and all(PLAIN.fullmatch(entry) for entry in entries)


def _names_module(entry: str, heads: Sequence[str]) -> bool:
    """Whether an entry of `modules_to_save` is one of these modules, or contains some."""
    is_plain_entry = PLAIN.fullmatch(entry) is not None
    return entry in _PEFT_HEADS or (is_plain_entry and any(is_in(head, entry) for head in heads))


def _join_heads(modules: Sequence[str], heads: Sequence[str]) -> tuple[str, ...]:
    """The outermost of these modules; PEFT adds the task's heads itself, and cannot nest copies."""
    roots: dict[str, None] = {}
    for module in modules:
        above = [*list_above(module), module]
        roots[next((path for path in above if path.endswith(tuple(heads))), module)] = None
    return tuple(r for r in roots if not any(parent in roots for parent in list_above(r)))


def _is_flat(modules: Sequence[str], entries: tuple[str, ...]) -> bool:
    """Whether PEFT can save by these entries: no module within another, and none that is a list."""
    saved = [module for module in modules if module.endswith(entries)]
    roots = set(saved)
    nested = any(parent in roots for module in saved for parent in list_above(module))
    lists = {m.rpartition(".")[0] for m in modules if m.rpartition(".")[2].isdigit()}
    return not nested and not roots & lists


def _list_ends(modules: Iterable[str], entries: Iterable[str]) -> set[str]:
    """The modules that equal an entry or end with one, segment by segment."""
    wanted, found = set(entries), set()
    for module in modules:
        segments = module.split(".")
        if any(".".join(segments[i:]) in wanted for i in range(len(segments))):
            found.add(module)
    return found


def make_own_config(
    params: Any,
    config: LNTuningConfig,
    norms: Iterable[str] | None,
    wanted: Mapping[str, bool],
    *,
    keep: bool,
) -> LNTuningConfig | None:
    """A config that selects, in the caller's tree, exactly the leaves that an adapter holds.

    Args:
        params: the tree.
        config: the file's.
        norms: the norms that the caller named, or None.
        wanted: the leaf paths, and whether each is a norm's.
        keep: whether the file's config will do where it selects these leaves. Else, and where it
            does not, its patterns are written anew.

    Returns:
        The config; None where none selects just these leaves.
    """
    if keep and _select(params, config, norms) == wanted.keys():
        return config
    written = config.replace(
        # An empty list where the adapter holds no norm.
        target_modules=list_parents(name for name, is_norm in wanted.items() if is_norm),
        exclude_modules=None,
        modules_to_save=list_parents(n for n, is_norm in wanted.items() if not is_norm) or None,
        model_type=None,
    )
    # A path may be the end of another one, which is then left out by name.
    extra = list_parents(sorted(_select(params, written, norms) - wanted.keys()))
    exact = written.replace(exclude_modules=extra) if extra else written
    fitting = (each for each in (written, exact) if _select(params, each, norms) == wanted.keys())
    return next(fitting, None)


def _select(params: Any, config: LNTuningConfig, norms: Iterable[str] | None) -> set[str]:
    try:
        selection = select_leaves(params, config, norms, warn=False)
    except SelectionError:
        return set()
    return {join(x.path) for i, x in enumerate(selection.leaves) if selection.is_trainable(i)}

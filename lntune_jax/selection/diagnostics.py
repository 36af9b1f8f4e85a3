"""What is wrong with a selection, said so that the reader knows which argument to change.

A pattern without effect is a warning; a target without a norm, or nothing at all that trains, an
error.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Sequence

from .._task_heads import TASK_HEADS
from ..config import LNTuningConfig
from ..errors import SelectionError, UnmatchedPatternWarning
from ..messages import shorten
from ..paths import Path, join
from .architectures import DEFAULT_TARGETS
from .patterns import Match, suggest
from .quantized import find_quantized
from .roles import Matches, Selection, is_below, is_named, unite

# A number that stands for itself, or for any, in a path: "layers.3.", "h[.][0-5][.]", "layers.\d+".
_NAMES_LAYER = re.compile(r"\\d|(?<![\w{,])\d+(?![\w},])")


_MOST_WARNINGS = 20  # of one field: finding what is near takes time, and a file may name anything


def check_selection(
    selection: Selection,
    matches: Matches,
    config: LNTuningConfig,
    norm_paths: Sequence[Path],
    warn: bool,
) -> None:
    """Raises or warns where the patterns of `config` do not do what they say.

    Raises:
        SelectionError: nothing trains; a target holds no norm; a saved module cannot train.
    """
    # Defaults are written for many models of a kind, and may well not match in one of them.
    targets = matches.targets if config.target_modules is not None else None
    saved = matches.saved if config.modules_to_save is not None else ()
    above_norms = _list_above(norm_paths)
    for match in targets or ():
        if match.names and above_norms.isdisjoint(match.names):
            raise SelectionError(
                f"target_modules {match.pattern!r} matches {write_list(sorted(match.names))}, "
                "where there is no LayerNorm or RMSNorm leaf. To train a whole module put it into "
                f"modules_to_save; the norms of this tree are {_write_paths(norm_paths)}"
            )
    trained = [x.path for i, x in enumerate(selection.leaves) if selection.is_trainable(i)]
    above_trained, excluded = _list_above(trained), unite(matches.excluded)
    quantized = find_quantized(leaf.path for leaf in selection.leaves)
    for match in saved:
        below = [leaf.path for leaf in selection.leaves if is_below(leaf.path, match.names)]
        if inside := [path for path in below if path in quantized]:
            raise SelectionError(
                f"modules_to_save {match.pattern!r} holds {join(inside[0])!r}, which is quantised "
                "and cannot train: leave the module out, or load the base without quantize"
            )
        if above_trained.isdisjoint(match.names):
            _check_saved(match, selection, excluded)
    _refuse_layers("target_modules", targets or (), selection, norm_paths)
    _refuse_layers("modules_to_save", _drop_peft_s_own(saved, config), selection, norm_paths)
    _refuse_layers("exclude_modules", matches.excluded, selection, norm_paths)
    if warn:
        _warn_unmatched("target_modules", targets or (), matches.modules)
        _warn_unmatched("modules_to_save", _drop_peft_s_own(saved, config), matches.modules)
        _warn_unmatched("exclude_modules", matches.excluded, matches.modules)
        _warn_shallow_exclusions(matches.excluded, trained, norm_paths)
    if not any(map(selection.is_trainable, range(len(selection.roles)))):
        raise SelectionError(_explain_nothing(selection, config, norm_paths))


def write_list(names: Sequence[str], most: int = 4) -> str:
    """A list for a message, cut after a few entries."""
    shown = ", ".join(repr(name) for name in names[:most])
    return shown + (f" and {len(names) - most:,} more" if len(names) > most else "")


def _drop_peft_s_own(saved: Sequence[Match], config: LNTuningConfig) -> list[Match]:
    """Without the heads that PEFT adds for a task by all their names, if the model has one."""
    heads = TASK_HEADS.get(config.task_type or "", ())
    if not any(match.names for match in saved if match.pattern in heads):
        heads = ()
    return [match for match in saved if match.names or match.pattern not in heads]


def _check_saved(match: Match, selection: Selection, excluded: frozenset[str]) -> None:
    """Raises where a saved module is there, but no leaf in it trains."""
    below = (leaf for leaf in selection.leaves if is_below(leaf.path, match.names))
    first = next(below, None)
    if first is None:
        return
    dtype = getattr(first.value, "dtype", type(first.value).__name__)
    why = f"no leaf in it can train: {join(first.path)!r} is {dtype}"
    if is_named(first.path, excluded):
        why = "exclude_modules takes it out"
    raise SelectionError(
        f"modules_to_save {match.pattern!r} matches {write_list(sorted(match.names))}, but {why}"
    )


def _refuse_layers(
    field: str, matches: Sequence[Match], selection: Selection, norm_paths: Sequence[Path]
) -> None:
    """Raises where a pattern that matches nothing names a layer of norms that are stacked."""
    naming = [match for match in matches if not match.names and _NAMES_LAYER.search(match.pattern)]
    if not naming:
        return
    norms = set(norm_paths)
    stacked = [x for x in selection.leaves if x.path in norms and len(x.value.shape) > 1]
    if stacked:
        raise SelectionError(
            f"{field} {naming[0].pattern!r} matches nothing and seems to name a layer, but in this "
            f"tree one leaf holds all layers, such as {join(stacked[0].path)!r} of shape "
            f"{tuple(stacked[0].value.shape)}: a part of it cannot be selected. For patterns that "
            "name every layer pass name_map (model.name_map of a scanned model); to tune some "
            "layers only, use a tree with a leaf for each (scan_layers=False)"
        )


def _warn_unmatched(field: str, matches: Sequence[Match], modules: Sequence[str]) -> None:
    unmatched = [match for match in matches if not match.names]
    for match in unmatched[:_MOST_WARNINGS]:
        near = suggest(match.pattern, modules)
        nearest = f"; the nearest module paths are {write_list(near)}" if near else ""
        _warn(
            f"{field} {shorten(repr(match.pattern))} matches no module of this tree, so it has no "
            f"effect{nearest}"
        )
    if len(unmatched) > _MOST_WARNINGS:
        more = f"{len(unmatched) - _MOST_WARNINGS:,} more patterns"
        _warn(f"{field}: {more} match no module of this tree, so they have no effect")


def _warn_shallow_exclusions(
    excluded: Sequence[Match], trained: Sequence[Path], norm_paths: Sequence[Path]
) -> None:
    """Warns where an excluded container holds norms that train all the same, as in PEFT."""
    named = {name for path in norm_paths for name in (join(path), join(path[:-1]))}
    above_trained = _list_above(trained)
    for match in excluded:
        if not named.isdisjoint(match.names) or above_trained.isdisjoint(match.names):
            continue
        missed = [join(path) for path in trained if is_below(path, match.names)]
        _warn(
            f"exclude_modules {match.pattern!r} matches {write_list(sorted(match.names))} but, "
            f"as in PEFT, not what lies below: {write_list(missed)} will train. Write "
            rf"'(.*\.)?{match.pattern}\..*' to exclude it"
        )


def _list_above(paths: Iterable[Path]) -> set[str]:
    """The leaves' own names, and those of all modules that hold them."""
    return {join(path[:end]) for path in paths for end in range(1, len(path) + 1)}


def _warn(message: str) -> None:
    # 7: the caller of partition_params, label_params or report_params.
    warnings.warn(message, UnmatchedPatternWarning, stacklevel=7)


def _explain_nothing(
    selection: Selection, config: LNTuningConfig, norm_paths: Sequence[Path]
) -> str:
    if not selection.leaves:
        return "nothing trains: the tree has no leaves. Pass the parameter tree"
    if not norm_paths:
        return (
            "nothing trains: no LayerNorm or RMSNorm leaf was found in this tree, whose leaves are "
            f"{_write_paths([leaf.path for leaf in selection.leaves])}. Name modules that are no "
            "norms in modules_to_save"
        )
    fields = ("target_modules", "exclude_modules", "modules_to_save", "model_type")
    asked = {f: getattr(config, f) for f in fields if getattr(config, f) is not None}
    given = ", ".join(f"{field}={value!r}" for field, value in asked.items())
    default = ""
    if config.target_modules is None and config.model_type in DEFAULT_TARGETS:
        default = f", whose targets are {write_list(DEFAULT_TARGETS[config.model_type])}"
    return (
        f"nothing trains with {given or 'this config'}{default}; the norms of this tree are "
        f"{_write_paths(norm_paths)}. Change target_modules or exclude_modules"
    )


def _write_paths(paths: Sequence[Path]) -> str:
    return write_list([join(path) for path in paths])

"""What is wrong with a selection, said so that the reader knows which argument to change.

A pattern without effect is a warning; a target without a norm, or nothing at all that trains, an
error.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence

from ..config import LNTuningConfig
from ..errors import SelectionError, UncertainNormWarning, UnmatchedPatternWarning
from ..messages import Advice, Argument, Code, Message, Part, list_names, shorten, warn
from ..paths import Path, join
from .architectures import DEFAULT_TARGETS
from .norms import GROUP_NORM, UNCERTAIN, get_kind
from .patterns import Match
from .quantized import find_quantized
from .roles import NORM_ROLE, Matches, RoledTree, is_below, is_named, list_modules, unite

# A number that stands for itself, or for any, in a path: "layers.3.", "h[.][0-5][.]", "layers.\d+".
_NAMES_LAYER = re.compile(r"\\d|(?<![\w{,])\d+(?![\w},])")
_TRACED = Argument("norms", Code("lnt.norm_modules(model, x)"))
_CURE = Advice(
    (
        ". If they are norms, pass ",
        _TRACED,
        ", or their paths in ",
        Argument("norms"),
    )
)
_MOST_WARNINGS = 20  # of one field: finding what is near takes time, and a file may name anything


def check_selection(
    selection: RoledTree,
    matches: Matches,
    config: LNTuningConfig,
    norm_paths: Sequence[Path],
    kinds: Mapping[Path, str],
    doubts: Mapping[Path, str],
    strange: Sequence[str],
    warns: bool,
) -> None:
    """Raises or warns where the patterns of `config` do not do what they say.

    Args:
        selection: the leaves and their roles.
        matches: what each pattern matched.
        config: whose patterns they are.
        norm_paths: the leaves of all norms, trained or not, the uncertain ones among them.
        kinds: which modules or leaves are norms, of which kind.
        doubts: what speaks against it, by module.
        strange: the entries of `norms=` that name nothing in the tree.
        warns: whether to warn; errors are raised in any case.

    Raises:
        SelectionError: no norm trains; a target holds no norm; a saved module cannot train.
    """
    # Defaults are written for many models of a kind, and may well not match in one of them.
    targets = matches.targets if config.target_modules is not None else None
    saved = matches.saved if config.modules_to_save is not None else ()
    uncertain = [path for path, kind in kinds.items() if kind == UNCERTAIN]
    certain = [path for path in norm_paths if path[:-1] not in set(uncertain)]
    _check_targets(targets or (), matches, certain, uncertain)
    trained = [x.path for i, x in enumerate(selection.leaves) if selection.is_trainable(i)]
    above_trained, excluded = _list_above(trained), unite(matches.excluded)
    quantized = find_quantized(leaf.path for leaf in selection.leaves)
    for match in saved:
        below = [leaf.path for leaf in selection.leaves if is_below(leaf.path, match.names)]
        if inside := [path for path in below if path in quantized]:
            raise SelectionError(
                Argument("modules_to_save"),
                f" {match.pattern!r} holds {join(inside[0])!r}, which is quantised and cannot "
                "train: leave the module out",
                Advice((", or load the base without ", Argument("quantize"))),
            )
        if above_trained.isdisjoint(match.names):
            _check_saved(match, selection, excluded)
    _refuse_layers("target_modules", targets or (), selection, norm_paths)
    _refuse_layers("modules_to_save", _drop_optional(saved, config), selection, norm_paths)
    _refuse_layers("exclude_modules", matches.excluded, selection, norm_paths)
    near_norms = [join(path) for path in dict.fromkeys(path[:-1] for path in certain)]
    if warns:
        _warn_unmatched("target_modules", targets or (), near_norms or matches.modules)
        _warn_unmatched("modules_to_save", _drop_optional(saved, config), matches.modules)
        _warn_unmatched("exclude_modules", matches.excluded, matches.modules)
        _warn_shallow_exclusions(matches.excluded, trained, norm_paths)
        _warn_strange_norms(strange, matches.modules)
    # A norm in a saved module trains too, as where a whole encoder is saved.
    trains_norm = NORM_ROLE in selection.roles or not set(certain).isdisjoint(trained)
    if not trains_norm and (config.target_modules != () or not trained):
        groups = [path for path in certain if get_kind(kinds, path) == GROUP_NORM]
        plain = [path for path in certain if path not in set(groups)]
        raise SelectionError(
            _explain_nothing(selection, config, plain, uncertain, groups, near_norms, trained)
        )
    if warns and config.target_modules != ():  # else no norm is wanted, whatever it is
        _warn_uncertain(kinds, doubts, selection, matches)


def _check_targets(
    targets: Sequence[Match],
    matches: Matches,
    norm_paths: Sequence[Path],
    uncertain: Sequence[Path],
) -> None:
    """Raises where a target names modules that hold no norm."""
    above_norms, above_uncertain = _list_above(norm_paths), _list_above(uncertain)
    named = {join(path) for path in uncertain}
    for match in targets:
        if not match.names or not above_norms.isdisjoint(match.names):
            continue
        if match.is_literal and not named.isdisjoint(match.names):
            continue  # taken, since it is named itself; a warning says so
        if not above_uncertain.isdisjoint(match.names):
            inside = [join(path) for path in uncertain if is_below(path, match.names)]
            raise SelectionError(
                Argument("target_modules"),
                f" {match.pattern!r} matches {list_names(sorted(match.names))}, where "
                f"{list_names(inside)} may be a norm by its shape, but its name does not say so",
                _CURE,
            )
        raise SelectionError(
            Argument("target_modules"),
            f" {match.pattern!r} matches {list_names(sorted(match.names))}, where there is no "
            "LayerNorm or RMSNorm leaf. To train a whole module put it into ",
            Argument("modules_to_save"),
            f"; the norms of this tree are {_write_paths(norm_paths)}",
            Advice(
                (
                    ". If it is a norm under another name, pass ",
                    _TRACED,
                )
            ),
        )


def _drop_optional(saved: Sequence[Match], config: LNTuningConfig) -> list[Match]:
    """Without names that the model need not have, where it has another one of them."""
    optional = config.optional_modules
    if not any(match.names for match in saved if match.pattern in optional):
        optional = ()
    return [match for match in saved if match.names or match.pattern not in optional]


def _check_saved(match: Match, selection: RoledTree, excluded: frozenset[str]) -> None:
    """Raises where a saved module is there, but no leaf in it trains."""
    below = (leaf for leaf in selection.leaves if is_below(leaf.path, match.names))
    first = next(below, None)
    if first is None:
        return
    dtype = getattr(first.value, "dtype", type(first.value).__name__)
    why: Message = f"no leaf in it can train: {join(first.path)!r} is {dtype}"
    if is_named(first.path, excluded):
        why = Argument("exclude_modules"), " takes it out"
    raise SelectionError(
        Argument("modules_to_save"),
        f" {match.pattern!r} matches {list_names(sorted(match.names))}, but ",
        why,
    )


def _refuse_layers(
    field: str, matches: Sequence[Match], selection: RoledTree, norm_paths: Sequence[Path]
) -> None:
    """Raises where a pattern that matches nothing names a layer of norms that are stacked."""
    naming = [match for match in matches if not match.names and _NAMES_LAYER.search(match.pattern)]
    if not naming:
        return
    norms = set(norm_paths)
    stacked = [x for x in selection.leaves if x.path in norms and len(x.value.shape) > 1]
    if stacked:
        raise SelectionError(
            Argument(field),
            f" {naming[0].pattern!r} matches nothing and seems to name a layer, but in this tree "
            f"one leaf holds all layers, such as {join(stacked[0].path)!r} of shape "
            f"{tuple(stacked[0].value.shape)}: a part of it cannot be selected",
            Advice(
                (
                    ". For patterns that name every layer pass ",
                    Argument("name_map"),
                    " (model.name_map of a scanned model)",
                )
            ),
            "; to tune some layers only, use a tree with a leaf for each (",
            Argument("scan_layers", False),
            ")",
        )


def _warn_unmatched(field: str, matches: Sequence[Match], modules: Sequence[str]) -> None:
    unmatched = [match for match in matches if not match.names]
    for match in unmatched[:_MOST_WARNINGS]:
        near = suggest(match.pattern, modules)
        nearest = f"; the nearest module paths are {list_names(near)}" if near else ""
        warn(
            (
                Argument(field),
                f" {shorten(repr(match.pattern))} matches no module of this tree, so it has no "
                f"effect{nearest}",
            ),
            UnmatchedPatternWarning,
        )
    if len(unmatched) > _MOST_WARNINGS:
        more = f"{len(unmatched) - _MOST_WARNINGS:,} more patterns"
        warn(
            (Argument(field), f": {more} match no module of this tree, so they have no effect"),
            UnmatchedPatternWarning,
        )


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
        warn(
            (
                Argument("exclude_modules"),
                f" {match.pattern!r} matches {list_names(sorted(match.names))} but, as in PEFT, "
                f"not what lies below: {list_names(missed)} will train. Write "
                rf"'(.*\.)?{match.pattern}\..*' to exclude it",
            ),
            UnmatchedPatternWarning,
        )


def _list_above(paths: Iterable[Path]) -> set[str]:
    """The leaves' own names, and those of all modules that hold them."""
    return {join(path[:end]) for path in paths for end in range(1, len(path) + 1)}


def _warn_strange_norms(strange: Sequence[str], modules: Sequence[str]) -> None:
    """Warns of entries of `norms=` that name nothing in this tree."""
    for name in strange[:_MOST_WARNINGS]:
        near = suggest(name, modules)
        nearest = f"; the nearest module paths are {list_names(near)}" if near else ""
        warn(
            (
                Argument("norms"),
                f" names {shorten(repr(name))}, which is no module or leaf of this tree, so it "
                f"has no effect{nearest}",
            ),
            UnmatchedPatternWarning,
        )


def _warn_uncertain(
    kinds: Mapping[Path, str],
    doubts: Mapping[Path, str],
    selection: RoledTree,
    matches: Matches,
) -> None:
    """Warns of modules that may be norms, or may be none, and of whether they train."""
    decided = unite(matches.excluded) | unite(matches.saved)
    pairs = zip(selection.leaves, selection.roles, strict=True)
    trained = {leaf.path[:-1] for leaf, role in pairs if role == NORM_ROLE}
    said = {p: f"{_show(p)} ({doubts[p]})" for p in doubts if not is_below(p, decided)}
    taken = [said[path] for path in said if path in trained]
    left = [said[p] for p in said if p not in trained and kinds[p] == UNCERTAIN]
    if left:
        warn(
            (
                "these modules look like norms by their shapes, and stay frozen: ",
                list_names(left, str),
                _CURE,
                ". ",
                Argument("exclude_modules"),
                " that names them silences this",
            ),
            UncertainNormWarning,
        )
    if taken:
        warn(
            (
                f"these modules train as norms, and may be none: {list_names(taken, str)}",
                Advice(
                    (
                        ". To say which are norms pass ",
                        _TRACED,
                        ", or their paths in ",
                        Argument("norms"),
                    )
                ),
                "; ",
                Argument("exclude_modules"),
                " takes them out",
            ),
            UncertainNormWarning,
        )


def _show(path: Path) -> str:
    return repr(join(path)) if path else "'' (the tree itself)"


def _explain_nothing(
    selection: RoledTree,
    config: LNTuningConfig,
    norm_paths: Sequence[Path],
    uncertain: Sequence[Path],
    groups: Sequence[Path],
    near_norms: Sequence[str],
    trained: Sequence[Path],
) -> Message:
    if not selection.leaves:
        return "nothing trains: the tree has no leaves. Pass the parameter tree"
    if config.target_modules == ():
        return _explain_no_module(selection, config)
    head = "no norm trains" if trained else "nothing trains"
    alone: tuple[Part, ...] = ()
    if config.modules_to_save:
        alone = (". To train saved modules alone, pass ", Argument("target_modules", []))
    if groups:
        named = list_names(list(dict.fromkeys(_show(path[:-1]) for path in groups)), str)
        only = ". A GroupNorm trains only where "
        alone += (only, Argument("target_modules"), f" names it: {named}")
    if not norm_paths and uncertain:
        modules = [_show(path) for path in uncertain]
        return (
            f"{head}: by shape these may be norms, but their names do not say so: "
            f"{list_names(modules, str)}",
            _CURE,
            alone,
        )
    if not norm_paths and any(isinstance(x.value, float | int) for x in selection.leaves):
        numbers = [join(x.path) for x in selection.leaves if isinstance(x.value, float | int)]
        return (
            f"{head}: no LayerNorm or RMSNorm leaf was found in this tree, where "
            f"{list_names(numbers)} are Python numbers. Make arrays of lists first (np.asarray)"
        )
    if not norm_paths:
        return (
            f"{head}: no LayerNorm or RMSNorm leaf was found in this tree, whose leaves are "
            f"{_write_paths([leaf.path for leaf in selection.leaves])}",
            Advice((". Name norms that have other names in ", Argument("norms"))),
            ". Name modules that are no norms in ",
            Argument("modules_to_save"),
            alone,
        )
    fields = ("target_modules", "exclude_modules", "modules_to_save", "model_type")
    asked = {f: getattr(config, f) for f in fields if getattr(config, f) is not None}
    given = [p for field, value in asked.items() for p in (", ", Argument(field, value))][1:]
    default = ""
    if config.target_modules is None and config.model_type in DEFAULT_TARGETS:
        default = f", whose targets are {list_names(DEFAULT_TARGETS[config.model_type])}"
    entries = config.target_modules or ()
    entries = [entries] if isinstance(entries, str) else entries
    near = list(dict.fromkeys(path for entry in entries[:5] for path in suggest(entry, near_norms)))
    nearest = f", the nearest {list_names(near)}" if near else ""
    return (
        f"{head} with ",
        *(given or ["this config"]),
        f"{default}; the norms of this tree are {_write_paths(norm_paths)}{nearest}. Change ",
        Argument("target_modules"),
        " or ",
        Argument("exclude_modules"),
        alone,
    )


def _explain_no_module(selection: RoledTree, config: LNTuningConfig) -> Message:
    """Why nothing trains where `modules_to_save` was to train alone."""
    modules = list_modules([leaf.path for leaf in selection.leaves])
    saved = config.modules_to_save
    entries = list(saved or ())
    near = list(dict.fromkeys(path for entry in entries[:5] for path in suggest(entry, modules)))
    nearest = f", the nearest {list_names(near)}" if near else ""
    return (
        "nothing trains: with ",
        Argument("target_modules", []),
        " no norm of this tree does, and ",
        Argument("modules_to_save", saved) if saved else Argument("modules_to_save"),
        " names no module of it" if saved else " is empty",
        f"; its modules are {list_names(modules)}{nearest}. Name what is to train in ",
        Argument("modules_to_save"),
        ", or leave ",
        Argument("target_modules"),
        " out to train every norm",
    )


def _write_paths(paths: Sequence[Path]) -> str:
    return list_names([join(path) for path in paths])


def suggest(pattern: str, modules: Iterable[str]) -> list[str]:
    """The module paths whose ends are written most like `pattern`, at most three."""
    length = pattern.count(".") + 1
    ends: dict[str, str] = {}
    for module in modules:
        ends.setdefault(".".join(module.split(".")[-length:]), module)
    near = difflib.get_close_matches(pattern, list(ends)[:2000], n=3, cutoff=0.5)
    return [ends[end] for end in near]

"""Which modules an adapter saves, in PEFT's reading and in ours; configs are written anew for it.

PEFT copies every module that a target matches, a whole decoder included, and knows no expressions
in lists (src/peft/tuners/tuners_utils.py, 0.21). So entries are kept where both readings agree,
and written out as the modules' own paths elsewhere.

PEFT trains a copy of a saved embedding and leaves the output at the base's values; a tree that
holds the shared matrix once trains both. The same adapter would then mean two different models.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..config import TASK_HEADS, LNTuningConfig
from ..errors import AdapterError, SelectionError
from ..messages import Argument, Code, list_names
from ..paths import join
from ..selection.architectures import DEFAULT_TARGETS
from ..selection.patterns import PLAIN
from ..selection.roles import get_modules_to_save, list_modules
from ..selection.select import select_leaves

_PEFT_HEADS = frozenset().union(*TASK_HEADS.values())  # added by PEFT, whether there or not
EMBEDDINGS = frozenset(
    {"embed_tokens", "embed_in", "shared", "tok_embeddings", "word_embeddings", "wte"}
)
# The weight of an output over the vocabulary, or of another head: where one is, nothing is tied.
_OUTPUT = re.compile(
    r"(.*\.)?(lm_head|lm_head\.decoder|embed_out|output_projection|predictions\.decoder|score"
    r"|(pre_)?classifier(\..*)?|classification_head(\..*)?|qa_outputs)\.weight"
)
# Modules that PEFT saves with a head because their names end alike, by the first segment of the
# model's paths. They are outside the head, so the base has to give them.
_SAVED_WITH_HEAD = {"distilbert": "pre_classifier"}


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
    if not _is_plain(targets) or not _is_plain(excluded) or _lacks_some(copied, modules):
        return False
    return _list_ends(modules, targets) - _list_ends(modules, excluded or ()) == set(copied)


def _lacks_some(copied: Sequence[str], modules: Sequence[str]) -> bool:
    """Whether a list has entries without a module that is copied in others.

    PyTorch's model may have one there in name, without parameters, as before ModernBERT's first
    attention. The end of a path names it too, and PEFT fails to copy it.
    """
    known = {tuple(module.split(".")) for module in modules}
    entries = {path[: end + 1] for path in known for end in range(len(path)) if path[end].isdigit()}
    for path in (tuple(module.split(".")) for module in copied):
        for end in (end for end, name in enumerate(path) if name.isdigit()):
            others = (entry for entry in entries if entry[:-1] == path[:end])
            if any((*entry, *path[end + 1 :]) not in known for entry in others):
                return True
    return False


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
    ends = tuple(entries)
    return any(module.endswith(ends) for module in list_above(parameter))


def list_above(path: str) -> list[str]:
    """The modules that hold this one, or this parameter, the outermost first."""
    return list_modules([tuple(path.split("."))])


def check_head(written: LNTuningConfig, wanted: Iterable[str], saved: Iterable[str]) -> None:
    """Whether what PEFT saves beside what trained is there, as far as that can be known.

    Args:
        written: the config that goes to PEFT.
        wanted: the parameters that go there.
        saved: what `modules_to_save` matched.

    Raises:
        AdapterError: the head of the task, or what PEFT saves with one, is not there.
    """
    heads = written.optional_modules
    entries = (*heads, *(written.modules_to_save or ()))
    if heads and not any(f".{name}".endswith(f".{head}") for name in saved for head in heads):
        raise AdapterError(
            f"PEFT saves the head ({' or '.join(heads)}) with every {written.task_type} adapter "
            "and cannot load one without it: pass ",
            Argument("base", Code("params")),
            ", so that it is written as it is in the base, or clear the task with "
            "config.replace(task_type=None)",
        )
    for root in {name.partition(".")[0] for name in wanted} & _SAVED_WITH_HEAD.keys():
        beside = _SAVED_WITH_HEAD[root]
        if beside.endswith(entries) and not any(is_in(name, beside) for name in saved):
            raise AdapterError(
                f"PEFT also saves {beside!r}, whose name ends like a saved module's, and cannot "
                "load an adapter without it: pass ",
                Argument("base", Code("params")),
                ", so that it is written as it is in the base",
            )


def check_untied(
    saved: Iterable[str], task_type: str | None, parameters: Mapping[str, object] | None
) -> None:
    """Refuses a saved embedding that the model may share with its output.

    Args:
        saved: the parameters of the adapter.
        task_type: PEFT's; "FEATURE_EXTRACTION" says that there is no output.
        parameters: all parameters of the tree by name, or None where they are not known.

    Raises:
        AdapterError: the tree has an embedding in the adapter, and no output of its own.

    Example:
        >>> check_untied(["wte.weight"], None, {"wte.weight": 0, "lm_head.weight": 0})
    """
    saved = list(saved)
    names = [name for name in saved if is_embedding(name)]
    known = saved if parameters is None else parameters
    if not names or task_type == "FEATURE_EXTRACTION" or any(map(_OUTPUT.fullmatch, known)):
        return
    if parameters is None:
        raise AdapterError(
            f"the adapter holds the embedding {list_names(names)}, which the model's output may "
            "share: pass ",
            Argument("base", Code("params")),
            ", so that it can be seen whether it does",
        )
    raise AdapterError(
        f"the adapter holds the embedding {list_names(names)}, and the tree has no output weight "
        "of its own, as if the two were one. PEFT trains a copy of the embedding and leaves the "
        "output as it was, so the adapter would not mean the same there. Use a tree with an untied "
        "output (tie_word_embeddings=False), or, for a model without an output, set "
        "task_type='FEATURE_EXTRACTION' in the config"
    )


def is_embedding(parameter: str) -> bool:
    """Whether a parameter is the table of input tokens, by its module's name."""
    return parameter.rpartition(".")[0].rpartition(".")[2] in EMBEDDINGS

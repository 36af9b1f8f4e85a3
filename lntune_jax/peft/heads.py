"""What PEFT keeps beside the norms: saved modules, the heads of tasks, embeddings.

Its heads of tasks are in `config.TASK_HEADS`, since the selection knows them too. Of embeddings:
PEFT trains a copy of a saved embedding and leaves the output at the base's values; a tree that
holds the shared matrix once trains both. The same adapter would then mean two different models.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from ..config import LNTuningConfig
from ..errors import AdapterError
from ..messages import list_names
from ..selection.roles import list_modules

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
            "and cannot load one without it: pass base=params, so that it is written as it is in "
            "the base, or clear the task with config.replace(task_type=None)"
        )
    for root in {name.partition(".")[0] for name in wanted} & _SAVED_WITH_HEAD.keys():
        beside = _SAVED_WITH_HEAD[root]
        if beside.endswith(entries) and not any(is_in(name, beside) for name in saved):
            raise AdapterError(
                f"PEFT also saves {beside!r}, whose name ends like a saved module's, and cannot "
                "load an adapter without it: pass base=params, so that it is written as it is in "
                "the base"
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
            "share: pass base=params, so that it can be seen whether it does"
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

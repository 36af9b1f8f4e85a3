"""Embeddings that the model's output shares, which PEFT cannot train as one.

PEFT trains a copy of a saved embedding and leaves the output at the base's values; a tree that
holds the shared matrix once trains both. The same adapter would then mean two different models.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from ..errors import AdapterError
from ..messages import list_names

EMBEDDINGS = frozenset(
    {"embed_tokens", "embed_in", "shared", "tok_embeddings", "word_embeddings", "wte"}
)
# The weight of an output over the vocabulary, or of another head: where one is, nothing is tied.
_OUTPUT = re.compile(
    r"(.*\.)?(lm_head|lm_head\.decoder|embed_out|output_projection|predictions\.decoder|score"
    r"|(pre_)?classifier(\..*)?|classification_head(\..*)?|qa_outputs)\.weight"
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

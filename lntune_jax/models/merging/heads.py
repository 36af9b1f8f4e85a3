"""A head that the base lacks: the class that reads it, its labels, and what it leaves unread.

Where `lntune_jax.models` has the architecture, every key of the new class is known and compared;
elsewhere the old head is known by its name alone.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, NamedTuple

import jax

from lntune_jax.config import TASK_HEADS
from lntune_jax.errors import ModelError
from lntune_jax.messages import list_names

from ..families.encoders import ENCODER
from ..families.registry import FAMILIES
from ..loading.sources import read_config, with_labels
from ..loading.weights import canonical_keys, match
from ..model import from_config

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path


# Tasks of PEFT, and the tables of transformers' auto classes (models/auto/modeling_auto.py, 5.23).
_AUTO_TABLES = {
    "SEQ_CLS": "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES",
    "TOKEN_CLS": "MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES",
    "QUESTION_ANS": "MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES",
    "MASKED_LM": "MODEL_FOR_MASKED_LM_MAPPING_NAMES",
    "CAUSAL_LM": "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES",
    "SEQ_2_SEQ_LM": "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES",
}

HEAD_TASKS = tuple(_AUTO_TABLES)

# What transformers' classes call their heads, beside their encoders and decoders.
HEADS = frozenset(
    {"cls", "classifier", "embed_out", "lm_head", "qa_outputs", "score"}
    | {"discriminator_predictions", "generator_lm_head", "generator_predictions"}
    | {"lm_predictions", "mask_predictions", "predictions", "sop_classifier"}
    | {"vocab_layer_norm", "vocab_projector", "vocab_transform"}
)

_CLASSIFIERS = (*TASK_HEADS["SEQ_CLS"], "classifier.out_proj")


class Shapes(NamedTuple):
    """The keys and shapes of a checkpoint that is still to be written, as `Weights` has them."""

    directory: Path
    shapes: Mapping[str, tuple[int, ...]]

    def keys(self) -> list[str]:
        """Every tensor's key."""
        return list(self.shapes)

    def shape(self, key: str) -> tuple[int, ...]:
        """A tensor's shape."""
        return self.shapes[key]


def is_head(name: str) -> bool:
    """Whether a parameter belongs to a head.

    Example:
        >>> is_head("lm_head.weight"), is_head("model.norm.weight")
        (True, False)
    """
    return name.split(".")[0] in HEADS


def find_class(fields: Mapping[str, Any], task: str | None, names: Sequence[str]) -> str:
    """The transformers class for a base with a new head.

    Args:
        fields: the base's config.json.
        task: the adapter's task.
        names: the parameters that the base lacks, for the message.

    Raises:
        ModelError: the task is not known, or transformers has no such class.
    """
    if task not in _AUTO_TABLES:
        raise ModelError(
            f"the base lacks {list_names(names)}, which the adapter holds, and the adapter's task "
            f"is {task!r}, which does not say what model they make: pass task as one of "
            f"{', '.join(_AUTO_TABLES)}, or norms_only=True to do without them"
        )
    # By its full name: without PyTorch the package hands out a stand-in that refuses.
    tables = importlib.import_module("transformers.models.auto.modeling_auto")
    model_type = fields.get("model_type")
    found = getattr(tables, _AUTO_TABLES[task]).get(model_type)
    if found is None:
        raise ModelError(
            f"transformers has no class for the task {task} of model_type {model_type!r}, which "
            f"could hold {list_names(names)}: pass norms_only=True to do without them"
        )
    # The table may give several names, the usual one first.
    return found if isinstance(found, str) else found[0]


def count_labels(shapes: Mapping[str, tuple[int, ...]]) -> int | None:
    """The number of outputs of the classifier among these parameters, if there is one.

    Example:
        >>> count_labels({"classifier.dense.weight": (8, 8), "classifier.out_proj.weight": (3, 8)})
        3
    """
    names = [f"{head}.{leaf}" for head in _CLASSIFIERS for leaf in ("weight", "bias")]
    return next((shapes[name][0] for name in names if name in shapes), None)


def find_unread(
    directory: Path,
    fields: Mapping[str, Any],
    task: str | None,
    shapes: Mapping[str, tuple[int, ...]],
    own: Iterable[str],
) -> list[str]:
    """The keys of the base that the class for a task does not read.

    Args:
        directory: the base, for messages.
        fields: its config.json.
        task: the task of the new head.
        shapes: every key and shape, the new head's included.
        own: the keys that the adapter holds.

    Raises:
        ModelError: the class needs a key that is not there, or one has another shape.
    """
    family = FAMILIES.get(str(fields.get("model_type")))
    if family is not None and family.kind is ENCODER and task in ENCODER.tasks:
        return _compare(directory, task, shapes)
    kept = {key.split(".")[0] for key in own}
    return [key for key in shapes if is_head(key) and key.split(".")[0] not in kept]


def _compare(directory: Path, task: str | None, shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    config = with_labels(read_config(directory), count_labels(shapes))
    layout = FAMILIES[config.model_type].checkpoint_names
    tree = from_config(config, task).params
    paths = jax.tree_util.tree_flatten_with_path(tree)[0]
    leaves = {tuple(part.key for part in path): leaf for path, leaf in paths}
    weights: Any = Shapes(directory, shapes)
    names = canonical_keys(weights, layout.prefix)
    plan = match(leaves, names, weights, task, layout)
    if plan.fresh:
        fresh = [".".join(path) for path in plan.fresh]
        raise ModelError(
            f"neither {directory} nor the adapter holds {list_names(fresh)}, which the task {task} "
            "reads: transformers would draw it at random. Save the adapter with these modules in "
            "modules_to_save, or pass norms_only=True"
        )
    read = {*plan.sources.values(), *([plan.tied] if plan.tied else [])}
    return [key for key in shapes if key not in read]

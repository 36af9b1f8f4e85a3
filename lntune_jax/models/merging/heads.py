"""Heads: what a new one, or an output that is no longer tied, changes in a checkpoint.

That is the class and the labels in config.json, and the tensors that the class does not read.
Where `lntune_jax.models` has the architecture, every key of the new class is known and compared;
elsewhere the old head is known by its name alone.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from lntune_jax.config import TASK_HEADS
from lntune_jax.errors import AdapterError, ModelError
from lntune_jax.messages import Argument, list_names, need_package
from lntune_jax.peft.config import EMBEDDINGS

from ..families.encoders import ENCODER
from ..families.registry import FAMILIES
from ..loading.sources import config_of, with_labels
from ..loading.weights import canonical_keys, match
from ..model import from_config
from ..nn.skeleton import by_path

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from ..loading.safetensors import Weights


# Tasks of PEFT, and the tables of transformers' auto classes (models/auto/modeling_auto.py, 5.23).
_AUTO_TABLES = {
    "SEQ_CLS": "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES",
    "TOKEN_CLS": "MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES",
    "QUESTION_ANS": "MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES",
    "MASKED_LM": "MODEL_FOR_MASKED_LM_MAPPING_NAMES",
    "CAUSAL_LM": "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES",
    "SEQ_2_SEQ_LM": "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES",
}

# What transformers' classes call their heads, beside their encoders and decoders.
_HEADS = frozenset(
    {"cls", "classifier", "embed_out", "lm_head", "qa_outputs", "score"}
    | {"discriminator_predictions", "generator_lm_head", "generator_predictions"}
    | {"lm_predictions", "mask_predictions", "predictions", "sop_classifier"}
    | {"vocab_layer_norm", "vocab_projector", "vocab_transform"}
)

_CLASSIFIERS = (*TASK_HEADS["SEQ_CLS"], "classifier.out_proj")

# The matrices that give the logits of a language model, and may be tied to its word embeddings, in
# architectures that are not ours; of those, each row says its own.
_OUTPUTS = ("lm_head", "embed_out", "vocab_projector", "predictions.decoder", "lm_head.decoder")

_LANGUAGE_CLASSES = ("LM", "LMHeadModel", "ForConditionalGeneration", "ForPreTraining")


def is_head(name: str) -> bool:
    """Whether a parameter belongs to a head.

    Example:
        >>> is_head("lm_head.weight"), is_head("model.norm.weight")
        (True, False)
    """
    return name.split(".")[0] in _HEADS


def is_output(name: str) -> bool:
    """Whether a parameter is the matrix that gives the logits of a language model.

    Example:
        >>> is_output("lm_head.weight"), is_output("lm_head.dense.weight")
        (True, False)
    """
    if any(name in row.checkpoint_names.tied for row in FAMILIES.values()):
        return True
    return f".{name}".endswith(tuple(f".{module}.weight" for module in _OUTPUTS))


def is_language_output(fields: Mapping[str, Any], name: str) -> bool:
    """Whether a parameter is the output matrix that the base's own class has, perhaps tied."""
    return is_output(name) and _has_language_class(fields)


def count_labels(shapes: Mapping[str, tuple[int, ...]]) -> int | None:
    """The number of outputs of the classifier among these parameters, if there is one.

    Example:
        >>> count_labels({"classifier.dense.weight": (8, 8), "classifier.out_proj.weight": (3, 8)})
        3
    """
    names = [f"{head}.{leaf}" for head in _CLASSIFIERS for leaf in ("weight", "bias")]
    return next((shapes[name][0] for name in names if name in shapes), None)


def find_class(fields: Mapping[str, Any], task: str | None, names: Sequence[str]) -> str:
    """The transformers class for a base, its config.json's fields, with new parameters `names`.

    Raises:
        ModelError: the task is not known, or transformers has no such class.
    """
    if task not in _AUTO_TABLES:
        raise ModelError(
            f"the base lacks {list_names(names)}, which the adapter holds, and the adapter's task "
            f"is {task!r}, which does not say what model they make: pass ",
            Argument("task"),
            f" as one of {', '.join(_AUTO_TABLES)}, or ",
            Argument("norms_only", True),
            " to do without them",
        )
    # By its full name: without PyTorch the package hands out a stand-in that refuses.
    tables = importlib.import_module("transformers.models.auto.modeling_auto")
    model_type = fields.get("model_type")
    found = getattr(tables, _AUTO_TABLES[task]).get(model_type)
    if found is None:
        raise ModelError(
            f"transformers has no class for the task {task} of model_type {model_type!r}, which "
            f"could hold {list_names(names)}: pass ",
            Argument("norms_only", True),
            " to do without them",
        )
    # The table may give several names, the usual one first.
    return found if isinstance(found, str) else found[0]


def find_unread(
    made: Weights, fields: Mapping[str, Any], task: str | None, own: Collection[str]
) -> list[str]:
    """The keys of a checkpoint with a new head in place that the class for its task does not read.

    `fields` are the base's config.json, `own` the keys that the adapter holds.

    Raises:
        ModelError: the class needs a key that is not there, or one has another shape.
    """
    family = FAMILIES.get(str(fields.get("model_type")))
    if family is None or family.kind is not ENCODER or task not in ENCODER.tasks:
        kept = {key.split(".")[0] for key in own}
        return [key for key in made.tensors if is_head(key) and key.split(".")[0] not in kept]
    shapes = {key: tensor.shape for key, tensor in made.tensors.items()}
    config = with_labels(config_of(dict(fields), str(made.directory)), count_labels(shapes))
    layout = family.checkpoint_names
    leaves = by_path(from_config(config, task).params)
    plan = match(leaves, canonical_keys(made, layout.prefix), made, task, layout)
    if plan.fresh:
        raise ModelError(
            f"neither {made.directory} nor the adapter holds "
            f"{list_names(['.'.join(path) for path in plan.fresh])}, which the task {task} reads: "
            "transformers would draw it at random. Save the adapter with these as saved modules, "
            "or pass ",
            Argument("norms_only", True),
        )
    read = {*plan.sources.values(), plan.tied}
    return [key for key in made.tensors if key not in read]


def with_head(
    fields: Mapping[str, Any], name: str | None, count: int | None, labels: Sequence[str] | None
) -> dict[str, Any]:
    """The fields of a config.json with the class of a head and the names of its `count` labels.

    Without a name the class stays; without labels, those that are there, or numbers.

    Raises:
        AdapterError: the names are not as many as the labels, or not all different.

    Example:
        >>> with_head({}, "BertForSequenceClassification", 2, ("no", "yes"))["id2label"]
        {'0': 'no', '1': 'yes'}
    """
    changed = dict(fields) | ({} if name is None else {"architectures": [name]})
    if count is None or (name is None and labels is None):
        return changed
    if labels is None:
        known = fields.get("id2label")
        if isinstance(known, dict) and len(known) == count:
            return changed
        labels = [f"LABEL_{number}" for number in range(count)]  # as transformers calls them
    if len(labels) != count or len(set(labels)) != count:
        raise AdapterError(
            f"the classifier has {count} outputs, but the labels are {list_names(list(labels))}: "
            f"pass {count} different names"
        )
    changed.pop("num_labels", None)  # the length of the two below
    changed["id2label"] = {str(number): label for number, label in enumerate(labels)}
    changed["label2id"] = {label: number for number, label in enumerate(labels)}
    return changed


def untie(
    fields: Mapping[str, Any], names: Collection[str], present: Collection[str], *, has_copies: bool
) -> dict[str, Any]:
    """The fields with `tie_word_embeddings` false, where the adapter holds the output matrix.

    `names` are the parameters of the adapter, `present` those of the base. `has_copies` says that
    the adapter trained a copy of what it saved, as PEFT does, so that tied weights came apart.

    Raises:
        ModelError: the embeddings are tied, and what the output was in training is not known.
    """
    outputs = list(filter(is_output, names))
    if outputs:
        if "text_config" in fields and fields.get("tie_word_embeddings") is not False:
            raise ModelError(
                f"the adapter holds {list_names(outputs)}, which config.json ties to the "
                "embeddings in a part of its own (text_config): write 'tie_word_embeddings': false "
                "into that config.json first, or merge the norms alone (",
                Argument("norms_only", True),
                ")",
            )
        return {**fields, "tie_word_embeddings": False}
    ends = tuple(f".{module}.weight" for module in EMBEDDINGS)
    inputs = [name for name in names if f".{name}".endswith(ends)]
    if inputs and _is_tied(fields) and (has_copies or any(map(is_output, present))):
        raise ModelError(
            f"the adapter holds {list_names(inputs)}, but not the output matrix that config.json "
            "ties to it (tie_word_embeddings): whether that was trained too is not known. Train "
            "with both as saved modules, or merge the norms alone (",
            Argument("norms_only", True),
            ")",
        )
    return dict(fields)


def _is_tied(fields: Mapping[str, Any]) -> bool:
    """Whether a language model ties its output to its embeddings."""
    if not _has_language_class(fields):
        return False
    tied = fields.get("tie_word_embeddings")
    if tied is not None:
        return bool(tied)
    # Where the config does not say, it differs between architectures.
    need_package("transformers", "hf", "a config without tie_word_embeddings", ModelError)
    from transformers import AutoConfig

    try:
        made = AutoConfig.for_model(str(fields.get("model_type")))
    except ValueError:  # an architecture of its own code
        return True
    return bool(getattr(made, "tie_word_embeddings", True))


def _has_language_class(fields: Mapping[str, Any]) -> bool:
    listed = fields.get("architectures")
    classes = [name for name in listed if isinstance(name, str)] if isinstance(listed, list) else []
    return any(name.endswith(_LANGUAGE_CLASSES) for name in classes)

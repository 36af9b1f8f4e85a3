"""The config.json of a merged checkpoint: what a new head and its labels change in the base's."""

from __future__ import annotations

import copy
import json
from typing import TYPE_CHECKING, Any

from lntune_jax.errors import AdapterError, ModelError
from lntune_jax.messages import list_names
from lntune_jax.peft.config import EMBEDDINGS
from lntune_jax.storage.sealed import read_json

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from pathlib import Path


CONFIG_FILE = "config.json"

# The last segments of the names that transformers has for word embeddings and for the matrices
# that give the logits of a language model, which may be tied to them.
_OUTPUTS = ("lm_head", "embed_out", "vocab_projector", "cls.predictions.decoder", "lm_head.decoder")

_LANGUAGE_CLASSES = ("LM", "LMHeadModel", "ForConditionalGeneration", "ForPreTraining")


def read_fields(directory: Path) -> dict[str, Any]:
    """The base's config.json, as it is.

    Raises:
        ModelError: there is none, it is no JSON object, or the weights are quantised.
    """
    path = directory / CONFIG_FILE
    if not path.is_file():
        raise ModelError(f"{directory} is no model directory: it has no {CONFIG_FILE}")
    try:
        fields = read_json(path)
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: not a JSON file ({error})") from error
    if not isinstance(fields, dict):
        raise ModelError(f"{path}: expected a JSON object, found a {type(fields).__name__}")
    if fields.get("quantization_config") is not None:
        raise ModelError(
            f"{path}: config field 'quantization_config' is set; supported: weights that are not "
            "quantised. Merge into the original checkpoint, and quantise the result"
        )
    return fields


def with_head(
    fields: Mapping[str, Any], name: str | None, count: int | None, labels: Sequence[str] | None
) -> dict[str, Any]:
    """The fields with the class of a head and the names of its labels.

    Args:
        fields: the base's.
        name: the class, or None where the base's own stays.
        count: the number of labels, or None where the head is no classifier.
        labels: their names, or None for those that are there, or numbers.

    Raises:
        AdapterError: the names are not as many as the labels, or not all different.

    Example:
        >>> with_head({}, "BertForSequenceClassification", 2, ("no", "yes"))["id2label"]
        {'0': 'no', '1': 'yes'}
    """
    changed = copy.deepcopy(dict(fields))
    if name is not None:
        changed["architectures"] = [name]
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

    Args:
        fields: the base's.
        names: the parameters of the adapter.
        present: the parameters of the base.
        has_copies: whether the adapter trained a copy of what it saved, as PEFT does, so that
            tied weights came apart.

    Raises:
        ModelError: the embeddings are tied, and what the output was in training is not known.
    """
    changed = copy.deepcopy(dict(fields))
    if _find(names, _OUTPUTS):
        if "text_config" in fields and fields.get("tie_word_embeddings") is not False:
            raise ModelError(
                f"the adapter holds {list_names(_find(names, _OUTPUTS))}, which config.json ties "
                "to the embeddings in a part of its own (text_config): write "
                "'tie_word_embeddings': false into that config.json first, or merge the norms "
                "alone (norms_only=True)"
            )
        changed["tie_word_embeddings"] = False
        return changed
    inputs = _find(names, EMBEDDINGS)
    if inputs and _is_tied(fields) and (has_copies or _find(present, _OUTPUTS)):
        raise ModelError(
            f"the adapter holds {list_names(inputs)}, but not the output matrix that config.json "
            "ties to it (tie_word_embeddings): whether that was trained too is not known. Train "
            "with both in modules_to_save, or merge the norms alone (norms_only=True)"
        )
    return changed


def is_language_output(fields: Mapping[str, Any], name: str) -> bool:
    """Whether a parameter is the output matrix that the base's own class has, perhaps tied."""
    return bool(_find([name], _OUTPUTS)) and _has_language_class(fields)


def write_fields(target: Path, fields: Mapping[str, Any]) -> None:
    """Write a config.json as transformers does."""
    target.write_text(json.dumps(fields, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _find(names: Collection[str], modules: Collection[str]) -> list[str]:
    ends = tuple(f".{module}.weight" for module in modules)
    return [name for name in names if f".{name}".endswith(ends)]


def _is_tied(fields: Mapping[str, Any]) -> bool:
    """Whether a language model ties its output to its embeddings."""
    if not _has_language_class(fields):
        return False
    tied = fields.get("tie_word_embeddings")
    return _get_default(fields) if tied is None else bool(tied)


def _has_language_class(fields: Mapping[str, Any]) -> bool:
    listed = fields.get("architectures")
    classes = [name for name in listed if isinstance(name, str)] if isinstance(listed, list) else []
    return any(name.endswith(_LANGUAGE_CLASSES) for name in classes)


def _get_default(fields: Mapping[str, Any]) -> bool:
    """What transformers takes where the config does not say: it differs between architectures."""
    from transformers import AutoConfig

    try:
        model_type = str(fields.get("model_type"))
        return bool(getattr(AutoConfig.for_model(model_type), "tie_word_embeddings", True))
    except ValueError:  # an architecture of its own code
        return True

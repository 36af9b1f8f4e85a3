"""The settings of LayerNorm tuning: which leaves train, and in which precision.

The fields are those of PEFT's `LNTuningConfig` (src/peft/tuners/ln_tuning/config.py) plus
`model_type` and `param_dtype`; the file is PEFT's `adapter_config.json`.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .errors import ConfigError
from .expressions import check_expression
from .messages import shorten
from .storage.directories import refuse_url
from .storage.sealed import read_json

# PEFT's names that layers below `peft` know too; the others are in `peft.files` and `peft.config`.
CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
PARAM_DTYPES = ("float32", "float64", None)
# The modules that PEFT adds to `modules_to_save` for a task, and expects in the file
# (src/peft/peft_model.py, PeftModelForSequenceClassification and its siblings).
TASK_HEADS = {
    "SEQ_CLS": ("classifier", "score"),
    "TOKEN_CLS": ("classifier", "score"),
    "QUESTION_ANS": ("qa_outputs",),
}
_PATTERN_FIELDS = ("target_modules", "exclude_modules", "modules_to_save")
_TEXT_FIELDS = ("task_type", "base_model_name_or_path", "revision", "model_type")
_OWN_FIELDS = ("model_type", "param_dtype")  # not PEFT's: written only when they say something


@dataclasses.dataclass(frozen=True, kw_only=True)
class LNTuningConfig:
    """Which leaves of a model train. Immutable and hashable, so it may be static under `jax.jit`.

    Attributes:
        target_modules: the normalisation modules that train. A string is a regular expression
            that matches a whole module path or leaf path; an entry of a sequence is the end of a
            module path (whole segments), or else a regular expression. None: the defaults of
            `model_type`, or every norm in the tree where `model_type` is None too. An empty
            sequence: no norm, so that `modules_to_save` trains alone.
        exclude_modules: modules taken out before anything else; written as `target_modules`.
        modules_to_save: whole modules, such as a classifier head, that train and are saved too.
        task_type: PEFT's task type ("SEQ_CLS", "CAUSAL_LM", ...), carried through unchanged.
        inference_mode: PEFT writes True into saved adapters. It selects nothing; the training
            functions refuse it.
        base_model_name_or_path: the base's name, carried through unchanged.
        revision: the base's revision, carried through unchanged.
        peft_type: always "LN_TUNING".
        model_type: the architecture ("llama", "bert") whose default targets apply.
        param_dtype: trainable leaves of lower precision are kept and updated in this dtype:
            "float32", "float64", or None for the base's own. It never narrows a leaf.
        extra: fields of a file that this class does not know, as pairs of a name and JSON text;
            they are written back.

    Raises:
        ConfigError: a field has the wrong type or value.
        PatternError: a string pattern is not a valid regular expression.

    Example:
        >>> import lntune_jax as lnt
        >>> config = lnt.LNTuningConfig(target_modules=["ln_1"], modules_to_save="head")
        >>> config.target_modules, config.modules_to_save
        (('ln_1',), ('head',))
        >>> config.replace(task_type="SEQ_CLS").task_type
        'SEQ_CLS'
    """

    target_modules: str | Sequence[str] | None = None
    exclude_modules: str | Sequence[str] | None = None
    modules_to_save: str | Sequence[str] | None = None
    task_type: str | None = None
    inference_mode: bool = False
    base_model_name_or_path: str | None = None
    revision: str | None = None
    peft_type: str = "LN_TUNING"
    model_type: str | None = None
    param_dtype: str | None = "float32"
    extra: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        for field in _PATTERN_FIELDS:
            object.__setattr__(self, field, _check_patterns(field, getattr(self, field)))
        for field in _TEXT_FIELDS:
            value = getattr(self, field)
            if value is not None and not isinstance(value, str):
                raise ConfigError(f"{field} must be a string or None, not {shorten(repr(value))}")
        if not isinstance(self.inference_mode, bool):
            found = shorten(repr(self.inference_mode))
            raise ConfigError(f"inference_mode must be True or False, not {found}")
        if self.peft_type != "LN_TUNING":
            raise ConfigError(
                f"peft_type must be 'LN_TUNING', not {shorten(repr(self.peft_type))}: this is a "
                "config of another kind of adapter"
            )
        if self.param_dtype not in PARAM_DTYPES:
            raise ConfigError(
                "param_dtype must be 'float32', 'float64' or None, not "
                f"{shorten(repr(self.param_dtype))}: it only widens leaves, since small steps on "
                "narrower ones round to nothing"
            )

    @property
    def optional_modules(self) -> tuple[str, ...]:
        """The names that PEFT adds to `modules_to_save` for `task_type`; a model has one of them.

        Example:
            >>> LNTuningConfig(task_type="SEQ_CLS").optional_modules
            ('classifier', 'score')
        """
        return TASK_HEADS.get(self.task_type or "", ())

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON values, unknown ones of a file included.

        Example:
            >>> LNTuningConfig(target_modules=["norm"]).to_dict()["target_modules"]
            ['norm']
        """
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        del fields["extra"]
        known = {k: list(v) if isinstance(v, tuple) else v for k, v in fields.items()}
        return known | {name: json.loads(text) for name, text in self.extra}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> LNTuningConfig:
        """Makes a config from JSON values; names it does not know are kept in `extra`.

        Raises:
            ConfigError: a field has the wrong type or value, or the adapter is of another kind.

        Example:
            >>> LNTuningConfig.from_dict({"peft_type": "LN_TUNING", "peft_version": "0.21.2"}).extra
            (('peft_version', '"0.21.2"'),)
        """
        if not isinstance(values, Mapping):
            raise ConfigError(f"a config must be a dict of fields, not {type(values).__name__}")
        known = {f.name for f in dataclasses.fields(cls)} - {"extra"}
        try:
            unknown = [(n, json.dumps(v)) for n, v in values.items() if n not in known]
        except (TypeError, ValueError, RecursionError) as error:
            raise ConfigError(f"a field of the config is no JSON value: {error}") from None
        fields = {name: value for name, value in values.items() if name in known}
        return cls(**fields, extra=tuple(unknown))

    def replace(self, **changes: Any) -> LNTuningConfig:
        """A copy with some fields changed.

        Raises:
            ConfigError: a change names no field, or gives one a value that it cannot take.
        """
        unknown = sorted(changes.keys() - {f.name for f in dataclasses.fields(self)})
        if unknown:
            raise ConfigError(f"LNTuningConfig has no field {', '.join(unknown)}")
        return dataclasses.replace(self, **changes)

    def save_pretrained(self, directory: str | Path) -> None:
        """Writes `adapter_config.json`, which PEFT reads too, into `directory`.

        `model_type` and `param_dtype`, which PEFT does not know, are left out at their defaults.

        Raises:
            ConfigError: the file cannot be written there.
        """
        refuse_url(directory, error=ConfigError)
        file = Path(directory) / CONFIG_FILE
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(self.to_json(), encoding="utf-8")
        except OSError as error:  # a name of more than 255 characters among others
            raise ConfigError(f"cannot write {shorten(str(file))}: {error.strerror}") from None

    def to_json(self) -> str:
        """The text of `adapter_config.json`.

        Example:
            >>> print(LNTuningConfig(target_modules=["norm"]).to_json().splitlines()[-2])
              "task_type": null
        """
        values, default = self.to_dict(), LNTuningConfig()
        for field in _OWN_FIELDS:
            if values[field] == getattr(default, field):
                del values[field]
        return json.dumps(values, indent=2, sort_keys=True) + "\n"

    @classmethod
    def from_pretrained(cls, directory: str | Path) -> LNTuningConfig:
        """Reads `adapter_config.json`, PEFT's or ours, from `directory`.

        Raises:
            ConfigError: there is no such file, it is no JSON object, or a field cannot be used.

        Example:
            >>> import tempfile
            >>> directory = tempfile.mkdtemp()
            >>> LNTuningConfig(target_modules=".*ln_1").save_pretrained(directory)
            >>> LNTuningConfig.from_pretrained(directory).target_modules
            '.*ln_1'
        """
        refuse_url(directory, error=ConfigError)
        file = Path(directory) / CONFIG_FILE
        try:
            values = read_json(file)
        except OSError as error:
            raise ConfigError(f"cannot read {file}: {error.strerror}") from None
        except ValueError as error:
            raise ConfigError(f"{file} is not valid JSON: {error}") from None
        if not isinstance(values, dict):
            raise ConfigError(f"{file} must hold a JSON object, not {type(values).__name__}")
        return cls.from_dict(values)


def _check_patterns(field: str, value: Any) -> str | tuple[str, ...] | None:
    if value is None:
        return None
    if isinstance(value, str) and value:
        if field == "modules_to_save":  # PEFT reads a lone string as one module
            return (value,)
        check_expression(value)
        return value
    if isinstance(value, set | frozenset) and all(isinstance(entry, str) for entry in value):
        value = sorted(value)
    if value == "":
        raise ConfigError(f"{field} must not be an empty string; use None")
    if not isinstance(value, Sequence) or not all(isinstance(e, str) and e for e in value):
        raise ConfigError(
            f"{field} must be a string or a sequence of strings, not {shorten(repr(value))}"
        )
    return tuple(value)

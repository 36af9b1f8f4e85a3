"""What an adapter of `lntune-jax train` says of itself, and the flags for one that does not.

`train` writes it into the adapter's own directory, so that nothing beside or above is needed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import AdapterError, ConfigError
from ..messages import warn
from ..tasks import TASKS
from .options import Trained


class Described(NamedTuple):
    """An adapter of ours and what is known of it.

    Attributes:
        directory: The adapter's own directory.
        task: How its model reads texts.
        config: Its config.
        model: Its base, which --model may name anew.
        quantize: What the kernels of the base were kept as; `None` for in full.
        revision: Of the base on the hub.
    """

    directory: Path
    task: Any
    config: Any
    model: str
    quantize: Any
    revision: str | None


def find_described(trained: Trained) -> Described:
    """The adapter that the flags name, and what it or the flags say of it.

    Raises:
        ConfigError: The flags name none, or something is said neither by them nor by the adapter.
        AdapterError: There is none, or it is damaged.
    """
    if (trained.run is None) == (trained.adapter is None):
        raise ConfigError(
            "give --run, an output directory of `lntune-jax train`, or --adapter, one of them"
        )
    check_run(trained.run)
    from ..config import LNTuningConfig
    from ..models.merging import find_adapter, read_quantization
    from ..peft.files import PEFT

    found = find_adapter(trained.run or trained.adapter or Path())
    if found.kind == PEFT:
        raise ConfigError(
            f"{found.directory} is PEFT's: `lntune-jax convert` makes it one that can be read here"
        )
    config = LNTuningConfig.from_pretrained(found.directory)
    task = _read_task(found.directory, found.task, config.task_type, trained)
    if hasattr(task, "labels"):
        _check_labels(found.directory, len(task.labels))
    model, revision = base_of(found.directory, trained.model, trained.revision)
    quantize = read_quantization(found)
    return Described(found.directory, task, config, model, quantize, revision)


def check_run(run: Path | None) -> None:
    """Refuse a --run without an adapter.

    Raises:
        ConfigError: It has none.
    """
    if run is not None and not (run.expanduser() / "adapter").is_dir():
        raise ConfigError(
            f"--run {run} holds no adapter: is it an output directory of `lntune-jax train`, and "
            "has the run in it been finished?"
        )


def base_of(
    adapter: Path, model: str | None, revision: str | None = None
) -> tuple[str, str | None]:
    """The base model and its revision: those of the flags, or else what the adapter names.

    A revision that the adapter names says nothing of a copy of the base on this machine.

    Raises:
        ConfigError: Neither names a model.
    """
    from ..config import LNTuningConfig

    if model is None:
        config = LNTuningConfig.from_pretrained(adapter)
        model = config.base_model_name_or_path
        if model is not None and not Path(model).expanduser().exists():
            revision = revision or config.revision
    if model is None:
        raise ConfigError(f"the adapter {adapter} names no base: give --model")
    return model, revision


def _read_task(
    adapter: Path, said: Mapping[str, Any] | None, task_type: str | None, trained: Trained
) -> Any:
    flags = {name: getattr(trained, name) for name in ("labels", "pooling", "max_length")}
    given = {name: value for name, value in flags.items() if value}
    guess = _GUESSES.get(task_type or "", "seq_cls")
    name = str((said or {}).get("task", guess))
    if name not in TASKS:
        raise ConfigError(
            f"the adapter {adapter} is for the task {name[:80]!r}; here it must be one of "
            f"{', '.join(TASKS)}"
        )
    if name == "causal_lm" and given.keys() - {"max_length"}:
        raise ConfigError(
            f"--labels and --pooling are for classifiers; {adapter} is of a language model"
        )
    known = {each.name for each in fields(TASKS[name].Record)}
    unknown = given.keys() - known
    if unknown:
        raise ConfigError(
            f"--{sorted(unknown)[0].replace('_', '-')} says nothing of {adapter}, which is for the "
            f"task {name}: leave it out"
        )
    if said is not None and "task" in said:
        return _make_task(TASKS[name].Record, {**said, **given}, adapter)
    others = [f"--{each.replace('_', '-')}" for each in flags if each in known - {"labels"}]
    if "labels" in known and not trained.labels:
        raise ConfigError(
            f"the adapter {adapter} does not say what it was trained for: give --labels, the names "
            f"of its classes in their order, with {' and '.join(others)} as in its training"
        )
    task = TASKS[name].Record(**given)
    if trained.max_length is None:
        warn(
            f"the adapter {adapter} does not say how its texts were read: they are read as by the "
            f"defaults of `lntune-jax train`, in rows of {task.max_length} tokens (--max-length)",
            UserWarning,
        )
    return task


# What an adapter is for that does not say so itself, by the type of task that PEFT knows.
_GUESSES = {
    "CAUSAL_LM": "causal_lm",
    "TOKEN_CLS": "token_cls",
    "FEATURE_EXTRACTION": "similarity",
}


def _make_task(kind: Any, values: Mapping[str, Any], adapter: Path) -> Any:
    own = {}
    for each in fields(kind):
        wanted = (list, tuple) if each.name == "labels" else type(each.default)
        # What is empty or off by default is younger than adapters that do not say it.
        is_younger = each.default == "" or each.default is False
        value = values.get(each.name, each.default if is_younger else None)
        if each.name == "pooling" and value == "default":
            value = "own"  # as it was written when that alone was the default
        own[each.name] = value
        is_text = each.name != "labels" or all(isinstance(name, str) for name in value or ())
        if not isinstance(value, wanted) or not is_text:
            raise AdapterError(
                f"the adapter {adapter} does not say its task as `lntune-jax train` does: its "
                f"{each.name} is {str(value)[:80]!r}. Train it again, or save it without task="
            )
    return kind(**{**own, **({"labels": tuple(own["labels"])} if "labels" in own else {})})


def _check_labels(adapter: Path, count: int) -> None:
    """Refuse labels of another number than the adapter's head has outputs, if it holds one."""
    import lntune_jax as lnt

    leaves = lnt.load_adapter(adapter).trainable
    found = next((leaves[name].shape[-1] for name in _OUTPUTS if name in leaves), count)
    if found != count:
        raise ConfigError(f"{count} labels (--labels), but {adapter} tells {found} classes apart")


_OUTPUTS = ("classifier.bias", "classifier.out_proj.bias", "score.kernel")

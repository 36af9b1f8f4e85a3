"""`lntune-jax convert`: an adapter of this library into one of PEFT, and the other way round."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from ..errors import ConfigError, FreshWeightsWarning
from ..messages import warn
from ..tasks.loading import check_model_directory
from .console import byte_count, make_console, say, short_path
from .options import ConvertSettings


def run(settings: ConvertSettings) -> None:
    """Recognise the adapter, write the other kind, and say what went where."""
    if settings.model is not None:
        check_model_directory(settings.model)
    from ..models.merging import find_adapter
    from ..peft.files import OURS

    found = find_adapter(settings.adapter)
    _check_output(settings.output, found.directory)
    if found.kind == OURS:
        count, what, path = _to_peft(settings, found)
    else:
        count, what, path = _from_peft(settings, found)
    console = make_console()
    size = f"{byte_count(found.directory):,} bytes"
    say(console, f"from: {short_path(found.directory)} ({found.kind}, {size})")
    say(console, f"to: {short_path(path)} ({what}, {byte_count(path):,} bytes)")
    say(console, f"values: {count:,}, none rounded")


def _check_output(output: Path, adapter: Path) -> None:
    target = output.expanduser().resolve()
    if target == adapter or adapter in target.parents or target in adapter.parents:
        raise ConfigError(
            f"the output {target} and the adapter {adapter} must not lie in one another: give "
            "another OUTPUT"
        )


def _to_peft(settings: ConvertSettings, found: Any) -> tuple[int, str, Path]:
    import lntune_jax as lnt

    from ..models.merging import read_norms

    trainable, config = lnt.load_adapter(found.directory)
    base = None
    if settings.model is not None and settings.name_map is not None:
        raise ConfigError(
            "--model cannot be read with the names of another library's tree (--name-map): give "
            "one of them, or call export_peft(..., base=params) with the tree itself"
        )
    if settings.model is not None:
        base, _ = _read_base(settings, found)
    path = lnt.export_peft(
        settings.output,
        trainable,
        config,
        base=base,
        norms=None if base is None else read_norms(found.directory),
        name_map=settings.name_map,
        overwrite=settings.overwrite,
    )
    if found.own_reading:
        warn(
            f"the classifier reads {found.own_reading} (--pooling {found.pooling}), and its class "
            "in transformers does not: with PEFT its labels are wrong, the norms are right",
            UserWarning,
        )
    return _count(trainable), f"PEFT, {len(trainable):,} trained leaves", path


def _from_peft(settings: ConvertSettings, found: Any) -> tuple[int, str, Path]:
    import lntune_jax as lnt

    if settings.model is None:
        raise ConfigError(
            f"{found.directory} is PEFT's: give its base with --model, whose fingerprint is kept "
            "with an adapter"
        )
    if settings.name_map is not None:
        raise ConfigError(
            "--name-map is for an adapter of ours: from PEFT to a tree with names of its own, call "
            "load_peft(path, params, name_map=...) and save_adapter with that tree"
        )
    base, fresh = _read_base(settings, found)
    trainable, config = lnt.load_peft(found.directory, base)
    random = [name for name in fresh if name not in trainable]
    if random:
        warn(
            f"neither the base nor the adapter holds {', '.join(random)}: drawn at random, so the "
            "outputs are not those of the training",
            FreshWeightsWarning,
        )
    name = config.base_model_name_or_path or settings.model
    config = config.replace(inference_mode=False, base_model_name_or_path=name)
    path = lnt.save_adapter(
        settings.output, trainable, config, base=base, overwrite=settings.overwrite
    )
    return _count(trainable), f"lntune_jax, {len(trainable):,} leaves", path


def _read_base(settings: ConvertSettings, found: Any) -> tuple[Any, tuple[str, ...]]:
    """The base as the tree in which an adapter of ours has its leaves, and what is random in it."""
    from .. import models
    from ..models.families import FAMILIES
    from ..models.loading import find_directory
    from ..models.merging import map_parameters, read_parts

    assert settings.model is not None
    directory = find_directory(settings.model, None)
    parts = read_parts(directory, found.directory)
    model_type = str(parts.fields.get("model_type"))
    if settings.leaf_names == "flax" and model_type not in FAMILIES:
        raise ConfigError(
            f"--leaf-names flax: lntune_jax.models has no {model_type!r}, only "
            f"{', '.join(sorted(FAMILIES))}; give --leaf-names torch"
        )
    if settings.leaf_names == "torch" or model_type not in FAMILIES:
        return map_parameters(parts), ()
    arrays = parts.tuned.arrays
    task = _choose_task(settings, parts, FAMILIES[model_type].checkpoint_names)
    pooling = found.pooling or settings.pooling
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FreshWeightsWarning)  # said after, for what stays random
        model = models.from_pretrained(
            directory,
            task=task,
            num_labels=_count_labels(arrays) if task in ("SEQ_CLS", "TOKEN_CLS") else None,
            pooling=pooling if pooling != "default" and task == "SEQ_CLS" else None,
        )
    return model.params, model.fresh


def _count_labels(arrays: dict[str, Any]) -> int | None:
    from ..models.merging import count_labels

    return count_labels({name: array.shape for name, array in arrays.items()})


def _choose_task(settings: ConvertSettings, parts: Any, layout: Any) -> str | None:
    """The task whose tree the adapter's leaves are in."""
    if settings.task is not None:
        return None if settings.task == "none" else settings.task.upper()
    names, task = list(parts.tuned.arrays), parts.tuned.config.task_type
    tasks = [known for known in layout.fresh if known]
    if task in tasks:
        return task
    language = next(known for known in ("MASKED_LM", "CAUSAL_LM") if known in tasks)
    if any(name.startswith(("cls.", "lm_head.")) for name in names):
        return language
    if not any(name.startswith((f"{layout.prefix}.", "classifier.", "score.")) for name in names):
        return None
    if language == "CAUSAL_LM" and not any(name.startswith("score.") for name in names):
        return language
    raise ConfigError(
        f"{parts.found.directory} does not say which head its model had (task_type {task!r}): give "
        f"--task as one of {', '.join(tasks).lower()}"
    )


def _count(trainable: dict[str, Any]) -> int:
    return sum(array.size for array in trainable.values())

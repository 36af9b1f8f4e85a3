"""The base model, and the config that says which of its leaves train."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from ..config import TASK_HEADS
from ..errors import ConfigError, FreshWeightsWarning, ModelError
from ..messages import Argument, warn
from ..storage.sealed import read_json
from .options import Encoding, Targets


def load_classifier(
    model: str,
    encoding: Encoding,
    *,
    labels: int,
    seed: int,
    mesh: Any = None,
    task: str = "SEQ_CLS",
    revision: str | None = None,
) -> Any:
    """Load a pretrained model with a classification head.

    Args:
        model: Directory, GGUF file, or hub id.
        encoding: Its number format, pooling and rematerialisation.
        labels: Classes of the head.
        seed: Seed of the weights that the checkpoint lacks.
        mesh: The devices of the run, or `None` for one device.
        task: What is classified: texts, or tokens (`TOKEN_CLS`).
        revision: A branch, tag or commit on the hub.

    Returns:
        A model of `lntune_jax.models`.

    Raises:
        ModelError: If `model` is no model directory, or holds a model that is not supported.
    """
    pooling = None if encoding.pooling == "default" else encoding.pooling
    with warnings.catch_warnings():
        # Whatever is fresh trains and is saved: see `tuning_config`.
        warnings.simplefilter("ignore", FreshWeightsWarning)
        return _load(
            model,
            encoding,
            mesh,
            {
                "task": task,
                "num_labels": labels,
                "pooling": pooling,
                "seed": seed,
                "new_head": encoding.new_head,
                "revision": revision,
            },
        )


def load_language_model(
    model: str, encoding: Encoding, *, mesh: Any = None, revision: str | None = None
) -> Any:
    """Load a pretrained causal language model; nothing in it is drawn at random.

    Args:
        model: Directory, GGUF file, or hub id.
        encoding: Its number format and rematerialisation.
        mesh: The devices of the run, or `None` for one device.
        revision: A branch, tag or commit on the hub.

    Returns:
        A model of `lntune_jax.models`.

    Raises:
        ModelError: If `model` is none of these, or holds a model that is not supported.
    """
    return _load(model, encoding, mesh, {"task": "CAUSAL_LM", "revision": revision})


def load_encoder(
    model: str, encoding: Encoding, *, mesh: Any = None, revision: str | None = None
) -> tuple[Any, Any]:
    """Load a pretrained model without a head; nothing in it is drawn at random.

    Args:
        model: Directory, GGUF file, or hub id.
        encoding: Its number format, pooling and rematerialisation.
        mesh: The devices of the run, or `None` for one device.
        revision: A branch, tag or commit on the hub.

    Returns:
        A model of `lntune_jax.models`, and how its hidden states become one vector: `mean` or
        `cls`, as the encoding says, or else the model's files, or else `mean`.

    Raises:
        ModelError: If `model` is none of these, or holds a model that is not supported.
        ConfigError: If the encoding asks for a classifier's own pooling.
    """
    if encoding.pooling == "own":
        raise ConfigError(
            Argument("pooling", "own"),
            " is what a classifier's architecture does; an embedding is the mean over tokens or "
            "the first token: pass ",
            Argument("pooling", "mean"),
            " or cls",
        )
    loaded = _load(model, encoding, mesh, {"task": None, "revision": revision})
    if encoding.pooling != "default":
        return loaded, encoding.pooling
    from ..models.loading import find_directory
    from ..models.loading.sources import read_pooling

    path = find_directory(model, revision)
    if not path.is_dir():
        return loaded, "mean"
    pooling = read_pooling(path) or "mean"
    _warn_of_parts(path / "modules.json")
    return loaded, pooling


def _warn_of_parts(listing: Path) -> None:
    """Say which of sentence-transformers' parts of a model are not run."""
    parts = read_json(listing) if listing.is_file() else []
    kinds = [str(part.get("type")).rpartition(".")[2] for part in parts if isinstance(part, dict)]
    others = [kind for kind in kinds if kind not in ("Transformer", "Pooling", "Normalize")]
    if others:
        warn(
            f"{listing} names parts that are not run here ({', '.join(others)}): embeddings are "
            "the pooled hidden states, of length 1",
            UserWarning,
        )


def _load(model: str, encoding: Encoding, mesh: Any, options: dict[str, Any]) -> Any:
    check_model_directory(model)
    from .. import models

    options |= {"dtype": encoding.dtype, "scan_layers": encoding.scan_layers}
    options |= {"quantize": encoding.quantize, "remat": encoding.remat}
    return models.from_pretrained(model, mesh=mesh, **options)


def describe_memory(model: Any) -> list[str]:
    """A line that says what a quantised base takes in memory; none for another base."""
    if model.quantize is None:
        return []
    from ..models.nn.quantized import count_both

    kept, whole = count_both(model.params, model.dtype)
    return [
        f"base in memory: {kept:,} bytes, the layers' kernels in {model.quantize} ({whole:,} in "
        f"{model.dtype})"
    ]


def model_location(model: str) -> str:
    """A model's name for a run's files: a path made absolute, a hub id as it is."""
    path = Path(model).expanduser()
    return str(path.resolve()) if path.exists() else model


def check_model_directory(model: str, revision: str | None = None) -> None:
    """Refuse what is clearly no model before anything is imported or downloaded.

    Raises:
        ModelError: If `model` is a path with neither a `config.json` nor a GGUF file.
        ConfigError: If a path is given with a revision.
    """
    path = Path(model).expanduser()
    if revision is not None and path.exists():
        raise ConfigError(
            Argument("model", model),
            f" is on this machine, which has no revision {revision!r}: leave ",
            Argument("revision"),
            " out, or give the model's id on the hub",
        )
    if path.is_dir():
        if not (path / "config.json").is_file() and not any(path.glob("*.gguf")):
            raise ModelError(
                f"{model} is not a model directory: it has no config.json, and no .gguf file"
            )
    elif path.is_file():
        if path.suffix != ".gguf":
            raise ModelError(
                f"{model} is a file; give the directory with config.json, or a .gguf file"
            )
    elif path.is_absolute() or model.startswith(".") or model.count("/") > 1:
        raise ModelError(
            f"{model} is neither a directory nor a hub id (owner/name, or a name alone)"
        )


def tuning_config(
    model: str,
    params: Any,
    fresh: tuple[str, ...],
    targets: Targets,
    task_type: str = "SEQ_CLS",
    revision: str | None = None,
) -> Any:
    """The `LNTuningConfig` of a run.

    Args:
        model: The base model, to be recorded.
        params: The model's tree.
        fresh: Leaf paths that the checkpoint lacked: unless modules to save are named, their
            modules are, because random weights must train.
        targets: Patterns from the command line.
        task_type: What the model is for, in PEFT's words.
        revision: A branch, tag or commit of the model on the hub, to be recorded.

    Raises:
        ConfigError: If `--targets none` stands beside other targets.
    """
    import lntune_jax as lnt

    heads = [name for name in TASK_HEADS["SEQ_CLS"] if name in params]
    found = [_module_to_save(path) for path in fresh]
    saved = targets.save_modules or tuple(dict.fromkeys(heads + found))
    return lnt.LNTuningConfig(
        target_modules=_read_targets(targets.targets),
        exclude_modules=targets.exclude or None,
        modules_to_save=saved or None,
        task_type=task_type,
        base_model_name_or_path=model_location(model),
        revision=revision,
    )


def _read_targets(targets: tuple[str, ...]) -> tuple[str, ...] | None:
    """The config's targets: `None` is every norm, and an empty tuple no norm on purpose."""
    if "none" in targets and len(targets) > 1:
        raise ConfigError(
            Argument("targets"),
            f" is {' '.join(targets)}: none stands alone, and means that no norm trains",
        )
    return () if targets == ("none",) else targets or None


def position_limit(model: Any, tokenizer: Any) -> int:
    """The most tokens that a model can read at once, by its own files and by its tokenizer's."""
    return min(model.max_length, tokenizer.model_max_length)


def _module_to_save(path: str) -> str:
    """The name to save a fresh leaf's module under: `bert.pooler.dense.bias` is in `pooler`."""
    segments = path.split(".")
    known = [name for name in (*TASK_HEADS["SEQ_CLS"], "pooler") if name in segments]
    return known[0] if known else ".".join(segments[:-1])

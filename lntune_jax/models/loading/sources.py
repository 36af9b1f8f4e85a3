"""Where a model's files are, and the config and weights in them.

A name is a directory or a GGUF file if there is one, and an id on the Hugging Face hub otherwise.
"""

from __future__ import annotations

import copy
import os
import re
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lntune_jax.errors import ModelError
from lntune_jax.messages import Advice, Argument, need_package, shorten
from lntune_jax.storage.directories import refuse_url
from lntune_jax.storage.sealed import read_json

from ..families.registry import FAMILIES
from ..types import POOLINGS
from .gguf import open_gguf
from .safetensors import INDEX_FILE, WEIGHTS_FILE, WEIGHTS_PATTERN, read_index, read_weights

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from .gguf import GgufFile
    from .safetensors import Weights


CONFIG_FILE = "config.json"

# An id on the hub: a name, or an owner and a name; paths begin with a dot or have more parts.
HUB_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")

# Files at the top of a repository; of the weights, only those that a model is read from.
TOKENIZER_PATTERNS = ("*.json", "vocab.txt", "merges.txt", "*.model", "*.jinja")
HUB_PATTERNS = (*TOKENIZER_PATTERNS, WEIGHTS_PATTERN)

# Of sentence-transformers' parts, which its list of modules names: how a model pools, for one.
_PARTS_FILE, _PARTS_PATTERN = "modules.json", "[0-9]*_*/config.json"

# Far above any model's, and small enough for a list of so many entries.
_MOST = {
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "block_count"), 1_000),
    **dict.fromkeys(("num_labels", "_num_labels"), 1_000_000),
    **dict.fromkeys(("head_dim", "hidden_size", "n_embd", "dim"), 2**22),
}


def find_directory(
    name: str | os.PathLike[str], revision: str | None, patterns: tuple[str, ...] = HUB_PATTERNS
) -> Path:
    """Give the directory that holds a model's files, fetched from the hub where needed.

    Or the GGUF file, where that is what the name says or all that the directory has.

    Args:
        name: a directory, or an id such as "google-bert/bert-base-uncased" or "gpt2".
        revision: a branch, tag or commit on the hub.
        patterns: the files to fetch. A pattern without a slash stands for files at the top alone,
            `WEIGHTS_PATTERN` for the weights that the index names, or the one file without it.

    Raises:
        ModelError: `name` is neither.
    """
    refuse_url(name, error=ModelError, what="the model")
    directory = Path(name).expanduser()
    try:
        is_directory = directory.is_dir()
    except OSError as error:  # a name that no file system takes
        raise ModelError(
            f"{str(name)[:80]!r} is no path of a directory: {error.strerror}"
        ) from None
    if is_directory:
        return _gguf_in(directory) or directory
    if directory.suffix == ".gguf" and directory.is_file():
        return directory
    if directory.exists():
        raise ModelError(f"{directory} is a file; pass the directory that holds it")
    if not HUB_NAME.fullmatch(str(name)):
        # Something written as a path is not looked up elsewhere.
        raise ModelError(f"{str(name)!r} is neither a directory nor an id on the hub")
    need_package("huggingface_hub", "hf", f"{str(name)!r} is no directory: the hub", ModelError)
    try:
        return _fetch(str(name), revision, patterns)
    except ModelError:
        raise
    except Exception as error:
        # Whatever the cause (no network, no such id, no rights), one line says it; the
        # libraries below raise more types than can be listed.
        reason = str(error).strip().splitlines()[0] if str(error).strip() else ""
        raise ModelError(
            f"{str(name)!r} is neither a directory nor reachable on the hub "
            f"({type(error).__name__}: {reason})"
        ) from error


def _fetch(name: str, revision: str | None, patterns: tuple[str, ...]) -> Path:
    """Give the local copy of a repository: first what is at its top, then what that names.

    Repositories hold more: the same weights in other formats and precisions, in folders or not.
    """
    from huggingface_hub import snapshot_download

    weights = WEIGHTS_PATTERN in patterns
    with_parts = any(fnmatch(_PARTS_FILE, pattern) for pattern in patterns)
    tops = [pattern for pattern in patterns if "/" not in pattern and pattern != WEIGHTS_PATTERN]
    below = [pattern for pattern in patterns if "/" in pattern]
    wanted = [*tops, WEIGHTS_FILE] if weights else tops
    copy = snapshot_download(
        name, revision=revision, allow_patterns=wanted, ignore_patterns=["*/*"]
    )
    directory = Path(copy)
    if with_parts and (directory / _PARTS_FILE).is_file():
        below.append(_PARTS_PATTERN)
    if weights and not (directory / WEIGHTS_FILE).is_file() and (directory / INDEX_FILE).is_file():
        below += sorted(set(read_index(directory / INDEX_FILE).values()))
    if below:
        # The folder has the name of its commit: the branch may have moved on since.
        snapshot_download(name, revision=directory.name, allow_patterns=below)
    return directory


def _gguf_in(directory: Path) -> Path | None:
    if (directory / CONFIG_FILE).is_file():
        return None
    files = sorted(directory.glob("*.gguf"))
    if len(files) > 1:
        listed = ", ".join(path.name for path in files)
        raise ModelError(f"{directory} holds several GGUF files; pass one of them: {listed}")
    return files[0] if files else None


def read_fields(directory: Path) -> dict[str, Any]:
    """Read the config.json of a model directory, as it is.

    Raises:
        ModelError: there is none, or it is no JSON object.
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
    return fields


def read_config(directory: Path) -> Any:
    """Read the transformers config of a model directory.

    Raises:
        ModelError: as `read_fields`, or its `model_type` is not supported.
    """
    return config_of(read_fields(directory), str(directory / CONFIG_FILE))


def config_of(fields: Any, source: str) -> Any:
    """Give the transformers config of a config.json's content.

    Args:
        fields: the content, in the spelling of transformers 5 or 4.
        source: what errors call it.

    Raises:
        ModelError: its `model_type` is not supported, or transformers refuses a field.
    """
    model_type = fields.get("model_type") if isinstance(fields, dict) else None
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        supported = ", ".join(sorted(FAMILIES))
        found = shorten(repr(model_type))
        raise ModelError(f"{source}: config field 'model_type' is {found}; supported: {supported}")
    _check_numbers(fields, source)
    need_package("transformers", "hf", f"{source}: a config", ModelError)
    from transformers import AutoConfig

    try:
        return type(AutoConfig.for_model(model_type)).from_dict(copy.deepcopy(fields))
    except Exception as error:
        # The config classes check their fields with errors of several kinds.
        reason = shorten(" ".join(str(error).split()))
        raise ModelError(f"{source}: not a valid {model_type} config ({reason})") from error


def _check_numbers(fields: dict[str, Any], source: str) -> None:
    """Refuses numbers for which transformers, or a model, would make lists of that length.

    Raises:
        ModelError: names the field.
    """
    for field, most in _MOST.items():
        value = fields.get(field)
        if isinstance(value, int | float) and not value <= most:
            raise ModelError(
                f"{source}: config field {field!r} is {value!r}; supported: at most {most:,}"
            )
    stack: list[Any] = [fields]
    while stack:
        value = stack.pop()
        if isinstance(value, dict):
            stack += value.values()
        elif isinstance(value, list):
            stack += value
        elif isinstance(value, int) and abs(value) >= 2**31:
            field = next((name for name in fields if fields[name] is value), "within another")
            raise ModelError(
                f"{source}: config field {field!r} is {shorten(str(value))}; supported: integers "
                "of 32 bits"
            )


def check_layers(config: Any, tensors: int, source: Path) -> None:
    """Refuses a config with more layers than a checkpoint has tensors, before any is built.

    Raises:
        ModelError: it has.
    """
    layers = getattr(config, "num_hidden_layers", None)
    if isinstance(layers, int) and layers > tensors:
        raise ModelError(
            f"{source}: config field 'num_hidden_layers' is {layers:,}, but the weights are "
            f"{tensors:,} tensors"
        )


def with_labels(config: Any, num_labels: int | None) -> Any:
    """Give the config with that number of labels; the names stay where the number does.

    Raises:
        ModelError: `num_labels` is no positive integer.
    """
    if num_labels is None or num_labels == getattr(config, "num_labels", None):
        return config
    if not isinstance(num_labels, int) or isinstance(num_labels, bool) or num_labels < 1:
        raise ModelError(
            Argument("num_labels"), f" is {num_labels!r}; expected an integer of at least 1"
        )
    changed = copy.deepcopy(config)
    changed.num_labels = num_labels
    return changed


@contextmanager
def open_source(path: Path) -> Iterator[tuple[Any, Weights | GgufFile]]:
    """Give the config and the weights, open while the block runs.

    Args:
        path: a model directory, or a GGUF file.

    Raises:
        ModelError: a file is missing, damaged, or holds what is not supported.
    """
    if path.is_file():
        with open_gguf(path) as file:
            yield config_of(file.config(), str(path)), file
    else:
        yield read_config(path), read_weights(path)


def config_from(path: Path) -> Any:
    """Give the config alone.

    Raises:
        ModelError: as `open_source`.
    """
    if not path.is_file():
        return read_config(path)
    with open_gguf(path) as file:
        return config_of(file.config(), str(path))


def read_stop_tokens(config: Any, path: Path | None) -> tuple[int, ...]:
    """Give the ids that end a text: generation_config.json's, or else the config's.

    Args:
        config: a transformers config; an id outside its vocabulary ends nothing.
        path: the model directory, where there is one; a GGUF file has all in its config.

    Raises:
        ModelError: the file is damaged, or the field holds what are no ids.
    """
    source, value = "the config", getattr(config, "eos_token_id", None)
    file = None if path is None else path / "generation_config.json"
    if file is not None and file.is_file():
        try:
            fields = read_json(file)
        except (OSError, ValueError) as error:
            raise ModelError(f"{file}: not a JSON file ({error})") from error
        if not isinstance(fields, dict):
            raise ModelError(f"{file}: expected a JSON object, found {shorten(repr(fields))}")
        source, value = str(file), fields.get("eos_token_id", value)
    listed = value if isinstance(value, list | tuple) else () if value is None else (value,)
    if not all(isinstance(token, int) and not isinstance(token, bool) for token in listed):
        raise ModelError(
            f"{source}: field 'eos_token_id' is {shorten(repr(value))}; expected a token id, a "
            "list of them, or null"
        )
    return tuple(sorted({token for token in listed if 0 <= token < config.vocab_size}))


# What sentence-transformers calls a pooling: what an option here calls it.
_POOLINGS = {"mean": "mean", "mean_tokens": "mean", "cls": "cls", "cls_token": "cls"}
_PART = re.compile(r"\d+_\w+")


def read_pooling(path: Path) -> str | None:
    """Give how sentence-transformers pools a model's hidden states, by its own files.

    Args:
        path: the model directory; one without such files says nothing.

    Returns:
        "mean", "cls", or `None` where the directory does not say.

    Raises:
        ModelError: it says something else, or a file is damaged.
    """
    found = _find_pooling_file(path)
    if found is None:
        return None
    fields = _read_part(found, dict)
    modes = fields.get("pooling_mode")
    if modes is None:  # as files were written before version 5.5
        start = "pooling_mode_"
        modes = [name.removeprefix(start) for name in fields if name.startswith(start)]
        modes = [name for name in modes if fields[start + name] is True]
    modes = [modes] if isinstance(modes, str) else modes
    if isinstance(modes, list) and len(modes) == 1 and str(modes[0]) in _POOLINGS:
        return _POOLINGS[str(modes[0])]
    what = shorten(" and ".join(map(str, modes)) if isinstance(modes, list) else repr(modes))
    listed = ", ".join(f"pooling={name!r}" for name in POOLINGS)
    raise ModelError(
        f"{found} says that texts are pooled by {what or 'nothing'}, which no classifier here "
        f"does: pass one of {listed}"
    )


def _find_pooling_file(path: Path) -> Path | None:
    listing = path / _PARTS_FILE
    if not listing.is_file():
        files = sorted(path.glob("[0-9]*_Pooling/" + CONFIG_FILE))
        return files[0] if files else None
    for part in _read_part(listing, list):
        if isinstance(part, dict) and str(part.get("type")).rpartition(".")[2] == "Pooling":
            place = part.get("path")
            if not isinstance(place, str) or not _PART.fullmatch(place):
                raise ModelError(
                    f"{listing}: the path of Pooling is {shorten(repr(place))}; expected a folder "
                    "beside the file, such as '1_Pooling'"
                )
            return path / place / CONFIG_FILE
    return None


def _read_part(file: Path, kind: type) -> Any:
    """Read one of sentence-transformers' files."""
    try:
        content = read_json(file)
    except (OSError, ValueError) as error:
        raise ModelError(
            f"{file}: cannot be read ({error}); it says how texts are pooled: mend it",
            Advice((", or pass ", Argument("pooling"))),
        ) from error
    if not isinstance(content, kind):
        raise ModelError(
            f"{file}: expected a JSON {'object' if kind is dict else 'list'}, found a "
            f"{type(content).__name__}"
        )
    return content

"""Flags in a YAML file: what `train --config` reads, and what each run writes to be repeated.

A key is a flag without its dashes, or a group of them as `--help` shows it:

    model: ./model
    recipe:
      learning_rate: 0.005
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

from ..errors import ConfigError
from ..messages import nearest
from ..storage.directories import write_text
from .flags import Flag, Given, find_flags, list_flags

# They are of one call, or of one process of several, and not of the run.
_NOT_OF_THE_RUN = frozenset(
    {"config", "resume", "overwrite", "stop_after_steps", "coordinator", "process_id"}
)


def expand_resume(words: Sequence[str]) -> list[str]:
    """`--resume RUN` as the flags that say the same: the run's own, and where it is.

    Raises:
        ConfigError: There is no run.

    Example:
        >>> expand_resume(["--resume", "--output", "run"])
        ['--resume', '--output', 'run']
    """
    words = list(words)
    place = words.index("--resume") + 1 if "--resume" in words else len(words)
    if place >= len(words) or words[place].startswith("-"):
        return words
    run = Path(words.pop(place))
    file = run.expanduser() / "run.yaml"
    if not file.is_file():
        raise ConfigError(f"--resume {run}: there is no run.yaml, which `lntune-jax train` writes")
    return [*words, "--config", str(file), "--output", str(run)]


def read_config(file: str, settings: type) -> dict[str, Given]:
    """Read the flags in a file.

    Args:
        file: Its path.
        settings: The dataclass of the command.

    Returns:
        What it gives for each field, as `flags.read_words` does.

    Raises:
        ConfigError: It cannot be read, is no YAML, or holds a key that is no flag.
    """
    import yaml

    path = Path(file).expanduser()
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"--config {file} cannot be read: {error.strerror or error}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"--config {file} is not YAML: {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"--config {file} holds no flags; a line is a flag, as epochs: 3")
    known = find_flags(settings)
    groups = {name for name, hint in get_type_hints(settings).items() if is_dataclass(hint)}
    given: dict[str, Given] = {}
    for key, value in _walk(content, groups):
        place = f"{key} in {path.name}"
        flag = known.get(key.replace("_", "-"))
        if flag is None or flag.name == "config":
            names = [*groups, *(each.replace("-", "_") for each in known)]
            raise ConfigError(f"unknown key {place}{nearest(key, names, str)}")
        if value is None:
            continue
        if flag.name in given:
            raise ConfigError(f"{given[flag.name].place} and {key} are the same flag")
        given[flag.name] = Given(place, tuple(_write_texts(flag, value, place)))
    return given


def _walk(content: Mapping[Any, Any], groups: set[str]) -> Iterator[tuple[str, Any]]:
    for key, value in content.items():
        if isinstance(value, dict) and key in groups:
            yield from ((str(inner), each) for inner, each in value.items())
        else:
            yield str(key), value


def _write_texts(flag: Flag, value: Any, place: str) -> Iterator[str]:
    """A value of the file as the words that a command line would have for it."""
    values = value if isinstance(value, list) else [value]
    if isinstance(value, list) and not flag.is_list:
        raise ConfigError(f"{place} is a list; it must be one value")
    for each in values:
        if isinstance(each, bool) != (flag.kind is bool) or not isinstance(each, str | int | float):
            expected = "true or false" if flag.kind is bool else "a text or a number"
            raise ConfigError(f"{place} is {each!r}; it must be {expected}, a text in quotes")
        yield str(each).lower() if flag.kind is bool else str(each)


def write_config(file: Path, settings: Any) -> None:
    """Write the flags that repeat a run; its paths are absolute.

    Args:
        file: Where to.
        settings: The settings of the run.

    Raises:
        ConfigError: It cannot be written.
    """
    import yaml

    from ..tasks.loading import model_location

    content: dict[str, Any] = {}
    for flag in list_flags(type(settings)):
        value = _find(settings, flag)
        if flag.name not in _NOT_OF_THE_RUN and value is not None and value != ():
            content[flag.name] = model_location(value) if flag.name == "model" else _plain(value)
    text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
    try:
        write_text(file, f"# lntune-jax train --config {file.name} --output DIR\n{text}")
    except OSError as error:
        raise ConfigError(f"{file} cannot be written: {error.strerror or error}") from error


def _find(settings: Any, flag: Flag) -> Any:
    """The value of a flag in settings or their groups."""
    owner = flag.groups[-1] if flag.groups else type(settings)
    found = settings
    if flag.groups:
        (found,) = (
            value
            for value in (getattr(settings, each.name) for each in fields(settings))
            if isinstance(value, owner)
        )
    return getattr(found, flag.name)


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(each) for each in value]
    return str(value.expanduser().absolute()) if isinstance(value, Path) else value

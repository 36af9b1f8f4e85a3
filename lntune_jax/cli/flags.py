"""The words of a command line, read into the settings of a command.

The known flags are the fields of the dataclasses in `options`; nothing else lists them. Unknown
flags are reported first, then missing ones, then values that do not fit.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass
from typing import Annotated, Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

from ..errors import ConfigError
from ..messages import nearest

# A number below zero and a text with a dash in front are values.
_FLAG = re.compile(r"--?[A-Za-z][\w-]*(?==|$)")


@dataclass(frozen=True)
class Shown:
    """What a field's type and docstring do not say of its flag.

    Attributes:
        default: What a default that is computed later is called.
        metavar: The place-holder of the value.
        also: Other names of the flag, with their dashes.
        is_positional: Whether the value may stand without the flag.
    """

    default: str | None = None
    metavar: str | None = None
    also: tuple[str, ...] = ()
    is_positional: bool = False


def shown(default: str, metavar: str, *also: str) -> Shown:
    """A flag whose default is computed later: what that is called, and the flag's other names."""
    return Shown(default, metavar, also)


def also(*names: str, metavar: str | None = None) -> Shown:
    """A flag that is known by other names too."""
    return Shown(metavar=metavar, also=names)


class Flag(NamedTuple):
    """A flag of a command: one field of its settings, or of a group in them."""

    name: str
    groups: tuple[type, ...]
    kind: Any
    is_list: bool
    is_required: bool
    default: Any
    shown: Shown

    @property
    def written(self) -> str:
        """As it is written on the command line."""
        return write_flag(self.name)


class Given(NamedTuple):
    """Values as texts, and what a message calls the place where they were given."""

    place: str
    texts: tuple[str, ...]


def write_flag(name: str) -> str:
    """The flag of a settings field.

    Example:
        >>> write_flag("batch_size")
        '--batch-size'
    """
    return "--" + name.replace("_", "-")


def list_flags(settings: type, groups: tuple[type, ...] = ()) -> Iterator[Flag]:
    """The flags of a settings dataclass, those of its groups included.

    Example:
        >>> from lntune_jax.cli.options import RecipeFlags
        >>> [flag.written for flag in list_flags(RecipeFlags)][:2]
        ['--learning-rate', '--head-learning-rate']
    """
    hints = get_type_hints(settings, include_extras=True)
    for each in fields(settings):
        hint = hints[each.name]
        if is_dataclass(hint):
            assert isinstance(hint, type)
            yield from list_flags(hint, (*groups, hint))
            continue
        notes: list[Any] = []
        if get_origin(hint) is Annotated:
            hint, *notes = get_args(hint)
        kind, is_list = _kind_of(hint)
        yield Flag(
            each.name,
            groups,
            kind,
            is_list,
            each.default is MISSING,
            each.default,
            next((note for note in notes if isinstance(note, Shown)), Shown()),
        )


def _kind_of(hint: Any) -> tuple[Any, bool]:
    """The type of a single value, and whether there may be several."""
    if get_origin(hint) is tuple:
        return get_args(hint)[0], True
    choices = [each for each in get_args(hint) if each is not type(None)]
    is_optional = type(None) in get_args(hint)
    return (choices[0] if is_optional else hint), False


def find_flags(settings: type) -> dict[str, Flag]:
    """The flags of a command by each of their names, without dashes in front."""
    known: dict[str, Flag] = {}
    for flag in list_flags(settings):
        for name in (flag.written, *flag.shown.also):
            known[_name_in(name)] = flag
    return known


def read_words(words: Sequence[str], settings: type) -> dict[str, Given]:
    """Sort the words behind a command by flag.

    Args:
        words: `--flag value`, `--flag=value`, and positional values.
        settings: The dataclass of the command.

    Returns:
        What was given for each field that was named.

    Raises:
        ConfigError: A flag is unknown, named in two ways or without a value, or a word belongs
            to none.

    Example:
        >>> from lntune_jax.cli.options import RecipeFlags
        >>> read_words(["--lr", "0.1"], RecipeFlags)
        {'learning_rate': Given(place='--lr', texts=('0.1',))}
        >>> read_words(["--epoch", "2"], RecipeFlags)
        Traceback (most recent call last):
        lntune_jax.errors.ConfigError: unknown flag --epoch (did you mean --epochs?)
    """
    known = find_flags(settings)
    named, loose = _split(words, known)
    _refuse_unknown([place for place, _ in named if _name_in(place) not in known], known)
    given: dict[str, Given] = {}
    for place, texts in named:
        flag = known[_name_in(place)]
        before = given.get(flag.name)
        if before is not None and _name_in(before.place) != _name_in(place):
            raise ConfigError(
                f"{before.place} and {place} are the same flag; give it under one of its names"
            )
        if flag.kind is bool and texts:
            raise ConfigError(f"{place} takes no value: give it, or leave it out")
        if not texts and flag.kind is not bool:
            raise ConfigError(f"{place} needs a value")
        earlier = before.texts if before is not None and flag.is_list else ()
        given[flag.name] = Given(place, (*earlier, *texts))
    _place(loose, [flag for flag in list_flags(settings) if flag.shown.is_positional], given)
    return given


def _split(
    words: Sequence[str], known: Mapping[str, Flag]
) -> tuple[list[tuple[str, tuple[str, ...]]], list[str]]:
    """Each flag with the words that are its values, and the words that are no flag's."""
    named: list[tuple[str, tuple[str, ...]]] = []
    loose: list[str] = []
    room = 0.0  # How many more words the last flag takes.
    for number, word in enumerate(words):
        if word == "--":
            return named, [*loose, *words[number + 1 :]]
        if _FLAG.match(word):
            place, equals, value = word.partition("=")
            flag = known.get(_name_in(place))
            named.append((place, (value,) if equals else ()))
            room = 0 if equals else _room_of(flag)
        elif room:
            place, texts = named[-1]
            named[-1] = (place, (*texts, word))
            room -= 1
        else:
            loose.append(word)
    return named, loose


def _room_of(flag: Flag | None) -> float:
    # What follows an unknown flag is its own: only the flag is to be complained of.
    if flag is None or flag.is_list:
        return float("inf")
    return 0 if flag.kind is bool else 1


def _name_in(place: str) -> str:
    """The name of a flag without its two dashes; with a single one it is no flag of ours."""
    return place.removeprefix("--").replace("_", "-")


def _refuse_unknown(places: Sequence[str], known: Mapping[str, Flag]) -> None:
    told = [place + nearest(_name_in(place), known, write_flag) for place in places]
    if told:
        raise ConfigError(f"unknown flag{'s' if told[1:] else ''} {', '.join(told)}")


def _place(loose: Sequence[str], positional: Sequence[Flag], given: dict[str, Given]) -> None:
    """Give words that stand alone to the positional flags, in their order."""
    left = list(loose)
    for flag in positional:
        if left and flag.name not in given:
            count = len(left) if flag.is_list else 1
            given[flag.name] = Given(write_place(flag), tuple(left[:count]))
            del left[:count]
    if left:
        raise ConfigError(f"{left[0]!r} belongs to no flag")


def write_place(flag: Flag) -> str:
    """What a message calls a flag: its place-holder where it needs no flag."""
    if not flag.shown.is_positional:
        return flag.written
    return (flag.shown.metavar or flag.name.upper()).removesuffix(" ...")


def make_settings(settings: type, given: Mapping[str, Given]) -> Any:
    """The settings of a command from what was given.

    Args:
        settings: The dataclass of the command.
        given: By field, as `read_words` gives it.

    Raises:
        ConfigError: Something required is missing, or a value is not of its flag's type.

    Example:
        >>> from lntune_jax.cli.options import RecipeFlags
        >>> make_settings(RecipeFlags, {"epochs": Given("--epochs", ("two",))})
        Traceback (most recent call last):
        lntune_jax.errors.ConfigError: --epochs is 'two'; it must be a whole number
    """
    flags = list(list_flags(settings))
    missing = [write_place(each) for each in flags if each.is_required and each.name not in given]
    if missing:
        last = f" and {missing[-1]}" if missing[1:] else missing[-1]
        raise ConfigError(f"missing {', '.join(missing[:-1])}{last}")
    values = {flag.name: _convert(flag, given[flag.name]) for flag in flags if flag.name in given}
    return _build(settings, values)


def _build(settings: type, values: Mapping[str, Any]) -> Any:
    hints = get_type_hints(settings)
    given = {name: values[name] for name in hints if name in values}
    for name, hint in hints.items():
        if is_dataclass(hint):
            assert isinstance(hint, type)
            given[name] = _build(hint, values)
    return settings(**given)


def _convert(flag: Flag, given: Given) -> Any:
    if flag.kind is bool:
        return given.texts != ("false",)
    values = tuple(_convert_one(flag.kind, text, given.place) for text in given.texts)
    return values if flag.is_list else values[0]


def _convert_one(kind: Any, text: str, place: str) -> Any:
    if get_origin(kind) is Literal:
        return _choose(get_args(kind), text, place)
    try:
        return kind(text)
    except ValueError:
        raise ConfigError(f"{place} is {text!r}; it must be {_EXPECTED[kind]}") from None


_EXPECTED: dict[Any, str] = {int: "a whole number", float: "a number"}


def _choose(choices: Sequence[str], text: str, place: str) -> str:
    """A choice in any case, and with hyphens for underscores."""
    simple = {each.lower(): each for each in choices}
    found = simple.get(text.lower().replace("-", "_"))
    if found is None:
        raise ConfigError(
            f"{place} is {text!r}{nearest(text, choices)}; it must be one of "
            f"{', '.join(map(repr, choices))}"
        )
    return found

"""Parse the command line, run one subcommand, and turn a user's mistake into one line.

An `LNTuningError` or a bad flag is one line on stderr and exit code 2; Ctrl-C is 130, SIGTERM
in training 143; anything else is our bug and shows its traceback.
"""

from __future__ import annotations

import errno
import importlib
import os
import sys
import warnings
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

from ..errors import ConfigError, LNTuningError
from ..messages import Spelling, nearest
from . import options
from .checks import check_settings
from .config_file import expand_resume, read_config
from .flags import make_settings, read_words
from .help import describe_command, describe_program
from .output import drop_stdout, flush_stdout
from .words import flag_spelling, print_message, tell


class Command(NamedTuple):
    """A subcommand: what can be set, and the module whose `run(settings)` does the work."""

    settings: type
    module: str


COMMANDS = {
    "inspect": Command(options.InspectSettings, "inspect"),
    "plan": Command(options.PlanSettings, "plan"),
    "train": Command(options.TrainSettings, "train"),
    "evaluate": Command(options.EvaluateSettings, "evaluate"),
    "predict": Command(options.PredictSettings, "predict"),
    "generate": Command(options.GenerateSettings, "generate"),
    "convert": Command(options.ConvertSettings, "convert"),
    "merge": Command(options.MergeSettings, "merge"),
    "compare": Command(options.CompareSettings, "compare"),
    "demo": Command(options.DemoSettings, "demo"),
}

_PROGRAM = "lntune-jax"
_ABOUT = "LayerNorm tuning: train the norms of a pretrained model, save kilobytes."


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: The words after the program's name; `None` reads them from `sys.argv`.

    Returns:
        The exit code: 0 when the work is done, 2 for a mistake in flags, files or models, 130
        after Ctrl-C, 143 after SIGTERM, which training answers with a checkpoint.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    with warnings.catch_warnings():
        warnings.showwarning = partial(_print_warning, _spelling(words))
        code = _run(words)
        flush_stdout()
        return code


# What any write can end in, whatever the program does.
_OF_THE_MACHINE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EMFILE)


def _spelling(words: Sequence[str]) -> Spelling:
    """How the command that the words begin with writes the arguments that a message names."""
    command = COMMANDS.get(words[0]) if words else None
    return flag_spelling(None if command is None else command.settings)


def _quiet_logs() -> None:
    """Orbax's threads log the traceback of a save that fails, which our one line says too."""
    from absl import logging

    logging.set_verbosity(logging.FATAL)


def _run(words: list[str]) -> int:
    try:
        if not words:
            print(_help(None), end="", file=sys.stderr)
            return 2
        name, asks_for_help = _choose(words)
        if asks_for_help:
            _print_help(name)
            return 0
        assert name is not None
        settings = _parse(name, words[1:])
        return _do(COMMANDS[name], check_settings(settings))
    except LNTuningError as error:
        print_message(f"{_PROGRAM}: error: {tell(error, _spelling(words))}")
        return 2
    except OSError as error:
        if error.errno not in _OF_THE_MACHINE:
            raise
        where = f" ({error.filename})" if error.filename else ""
        print_message(f"{_PROGRAM}: error: {error.strerror}{where}")
        return 2
    except KeyboardInterrupt:
        print(f"{_PROGRAM}: stopped", file=sys.stderr)
        return 130


def _do(command: Command, settings: Any) -> int:
    # transformers would say at import that it found no PyTorch; here none is wanted.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    from ..trainer.stopping import TerminatedError

    try:
        _quiet_logs()
        importlib.import_module(f".{command.module}", __package__).run(settings)
    except TerminatedError:
        print(f"{_PROGRAM}: stopped by SIGTERM", file=sys.stderr)
        return 143
    return 0


def _choose(words: Sequence[str]) -> tuple[str | None, bool]:
    """The command that the words begin with, and whether they ask for help.

    Raises:
        ConfigError: There is no such command.
    """
    first, *rest = words
    if first in ("--help", "-h", "help"):
        first, rest = (rest[0], ["--help"]) if rest else ("", ["--help"])
        if not first:
            return None, True
    if first not in COMMANDS:
        kind = "flag" if first.startswith("-") else "command"
        raise ConfigError(
            f"unknown {kind} {first}{nearest(first, COMMANDS, str)}: expected one of "
            f"{', '.join(COMMANDS)}; see {_PROGRAM} --help"
        )
    before = rest[: rest.index("--")] if "--" in rest else rest
    return first, "--help" in before or "-h" in before


def _print_help(name: str | None) -> None:
    try:
        print(_help(name), end="")
    except BrokenPipeError:
        drop_stdout()


def _help(name: str | None) -> str:
    if name is None:
        known = {name: command.settings for name, command in COMMANDS.items()}
        return describe_program(_PROGRAM, _ABOUT, known)
    return describe_command(f"{_PROGRAM} {name}", COMMANDS[name].settings)


def _parse(name: str, words: Sequence[str]) -> Any:
    """The settings of a command; a file of settings counts less than the words."""
    settings = COMMANDS[name].settings
    try:
        if name == "train":
            words = expand_resume(words)
        given = read_words(words, settings)
        if file := given.pop("config", None):
            given = {**read_config(file.texts[0], settings), **given}
        return make_settings(settings, given)
    except ConfigError as error:
        raise ConfigError(*error.args, f"; see {_PROGRAM} {name} --help") from None


def _print_warning(spell: Spelling, message: Warning | str, *_: Any) -> None:
    """Without the line of code that warned, which says nothing to a user."""
    print_message(f"{_PROGRAM}: warning: {tell(message, spell)}")

"""Parse the command line, run one subcommand, and turn a user's mistake into one line.

An `LNTuningError` or a bad flag is one line on stderr and exit code 2; Ctrl-C is 130, SIGTERM
in training 143; anything else is our bug and shows its traceback.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import sys
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

from ..errors import LNTuningError
from ..trainer.stopping import TerminatedError
from . import demo_options, generate_options, options, trained_options, transfer_options
from .checks import check_settings
from .output import drop_stdout, flush_stdout
from .words import print_message


class Command(NamedTuple):
    """A subcommand: what can be set, and the module whose `run(settings)` does the work."""

    settings: type
    module: str


COMMANDS = {
    "inspect": Command(options.InspectSettings, "inspect"),
    "train": Command(options.TrainSettings, "train"),
    "evaluate": Command(trained_options.EvaluateSettings, "evaluate"),
    "predict": Command(trained_options.PredictSettings, "predict"),
    "generate": Command(generate_options.GenerateSettings, "generate"),
    "convert": Command(transfer_options.ConvertSettings, "convert"),
    "merge": Command(transfer_options.MergeSettings, "merge"),
    "compare": Command(transfer_options.CompareSettings, "compare"),
    "demo": Command(demo_options.DemoSettings, "demo"),
}

_PROGRAM = "lntune-jax"
_DESCRIPTION = """LayerNorm tuning: train the norms of a pretrained model, save kilobytes.

`lntune-jax COMMAND --help` explains one command."""


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
        warnings.showwarning = _print_warning
        code = _run(words)
        flush_stdout()
        return code


def _run(words: list[str]) -> int:
    try:
        settings = _parse(words)
        if settings is None:
            return 0
        settings = check_settings(settings)
        # transformers would say at import that it found no PyTorch; here none is wanted.
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
        module = next(c.module for c in COMMANDS.values() if c.settings is type(settings))
        importlib.import_module(f".{module}", __package__).run(settings)
    except LNTuningError as error:
        print_message(f"{_PROGRAM}: error: {error}")
        return 2
    except TerminatedError:
        print(f"{_PROGRAM}: stopped by SIGTERM", file=sys.stderr)
        return 143
    except KeyboardInterrupt:
        print(f"{_PROGRAM}: stopped", file=sys.stderr)
        return 130
    return 0


def _parse(words: list[str]) -> Any | None:
    """The settings, or `None` when help was asked for and printed."""
    import tyro

    markers = (
        tyro.conf.FlagCreatePairsOff,
        tyro.conf.OmitArgPrefixes,
        tyro.conf.DisallowNone,
        tyro.conf.PositionalMetavarFromFieldName,
    )
    named = words[0] if words and words[0] in COMMANDS else None
    program = f"{_PROGRAM} {named}" if named else _PROGRAM
    refusal = io.StringIO()
    try:
        # tyro draws its refusals as boxes on stderr; ours are one line.
        with contextlib.redirect_stderr(refusal):
            if named:
                return tyro.cli(
                    COMMANDS[named].settings, prog=program, args=words[1:], config=markers
                )
            return tyro.extras.subcommand_cli_from_dict(
                {name: command.settings for name, command in COMMANDS.items()},
                prog=program,
                description=_DESCRIPTION,
                args=words,
                config=markers,
            )
    except SystemExit as exit_request:
        if not exit_request.code:
            return None
    except BrokenPipeError:  # in printing help
        drop_stdout()
        return None
    raise LNTuningError(f"{_unboxed(refusal.getvalue())}; see {program} --help")


def _unboxed(box: str) -> str:
    """The sentences of one of tyro's boxes, without its frame, help texts and footer."""
    sections: list[list[str]] = [[]]
    for line in box.splitlines()[1:-1]:
        text = line.strip(" │")
        is_help_text = line.startswith("│" + 9 * " ")
        if text and not text.strip("─"):
            sections.append([])
        elif text and not is_help_text:
            sections[-1].append(text)
    told = [" ".join(section) for section in sections]
    hints = ("For full helptext", "Argument helptext")
    kept = "; ".join(text for text in told if text and not text.startswith(hints))
    return kept.rstrip(".") or "the command line cannot be read"


def _print_warning(message: Warning | str, *_: Any) -> None:
    """Without the line of code that warned, which says nothing to a user."""
    print_message(f"{_PROGRAM}: warning: {message}")

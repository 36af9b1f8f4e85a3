"""What the command line says: the library's messages with flags for arguments, on one line."""

from __future__ import annotations

import contextlib
import shutil
import sys
import textwrap

from ..errors import LNTuningError, LNTuningWarning
from ..messages import Argument, Code, Spelling
from .flags import Flag, find_flags

# Arguments whose flags have other names; the other names of a flag are in `options`.
_FLAGS = {"base": "model"}


def flag_spelling(settings: type | None) -> Spelling:
    """How a command writes an argument that a message names: as its own flag, if it has one.

    Args:
        settings: The dataclass of the command; `None` before one is known.

    Example:
        >>> from lntune_jax.cli.options import MergeSettings, TrainSettings
        >>> spell = flag_spelling(TrainSettings)
        >>> spell(Argument("overwrite", True)), spell(Argument("target_modules", ["ln_1", "ln_2"]))
        ('--overwrite', '--targets ln_1 ln_2')
        >>> flag_spelling(MergeSettings)(Argument("target_modules"))
    """
    known = {} if settings is None else find_flags(settings)

    def spell(argument: Argument) -> str | None:
        name = _FLAGS.get(argument.name, argument.name)
        flag = known.get(name.replace("_", "-"))
        return None if flag is None else _write(flag, argument.value)

    return spell


def _write(flag: Flag, value: object) -> str:
    if value is ... or value is True or isinstance(value, Code):
        return flag.written
    if value is False or value is None:
        return f"no {flag.written}"
    if isinstance(value, list | tuple):
        return f"{flag.written} {' '.join(map(str, value)) or 'none'}"
    return f"{flag.written} {value}"


def tell(about: BaseException | str, spell: Spelling) -> str:
    """The text of an error or a warning, ours with flags in it.

    Example:
        >>> from lntune_jax.cli.options import ConvertSettings
        >>> error = LNTuningError("out exists: pass ", Argument("overwrite", True))
        >>> tell(error, flag_spelling(ConvertSettings))
        'out exists: pass --overwrite'
    """
    return about.say(spell) if isinstance(about, LNTuningError | LNTuningWarning) else str(about)


def write_plainly(message: str) -> str:
    r"""One line that a terminal prints as it is: a name from a file may hold its control codes.

    Example:
        >>> write_plainly("a\n  b\x1b[2J")
        'a b\\x1b[2J'
    """
    line = " ".join(message.split())
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)


def print_message(message: str) -> None:
    """Print to stderr: one line, which can be grepped; on a terminal, lines of its width."""
    line = write_plainly(message)
    if sys.stderr.isatty():
        width = shutil.get_terminal_size().columns
        line = textwrap.fill(
            line, width, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
        )
    with contextlib.suppress(BrokenPipeError):  # `2>&1 | head`: the work goes on
        print(line, file=sys.stderr)

"""The library's messages name arguments of Python; here each becomes the flag that sets it."""

from __future__ import annotations

import contextlib
import re
import shutil
import sys
import textwrap

from ..config import CONFIG_FILE

# The one place that says which flag sets which argument or field of a config.
_FLAGS = {
    "target_modules": "--targets",
    "exclude_modules": "--exclude",
    "modules_to_save": "--save-modules",
    **{
        name: "--" + name.replace("_", "-")
        for name in (
            "name_map",
            "best_by",
            "new_head",
            "resume",
            "output",
            "on_nan",
            "clip_norm",
            "overwrite",
            "norms_only",
            "scan_layers",
            "quantize",
        )
    },
    "max_new_tokens": "--max-new-tokens",
}
# Plain words too: flags only where a value is given to them.
_WITH_VALUES = {"overwrite", "quantize", "resume", "output", "on_nan", "clip_norm"}
_VALUE = r"=True|=False|=\[\]|=\(\)|=\([^()]*\)|='[^']*'|=[0-9]+|=(?=\s|$)| is True"
_ARGUMENT = re.compile(rf"(?<![\w'./-])({'|'.join(_FLAGS)})(?![\w'/-])({_VALUE})?")
_PHRASES = {
    "pass base=params": "give the base with --model",
    "pass task as": "give --task as",
    "as modules_to_save": "as saved modules",
}
# What a tree's own norms are can be said in Python only.
_NORMS = r"norms=(lnt\.norm_modules\(model, x\))?"
_ONLY_IN_PYTHON = re.compile(
    rf"[.;] (If (it is a|they are) norms?|To say which are norms|Name norms)\b[^.;]*{_NORMS}"
    rf"(, or their paths in norms=|, and (?=modules))?"
)


def name_flags(message: str) -> str:
    """A message with flags in the place of arguments; what it says of a config file stays.

    Example:
        >>> name_flags("out exists: pass overwrite=True")
        'out exists: give --overwrite'
        >>> name_flags("quantize='int8' and scan_layers=True do not go together yet")
        '--quantize int8 and --scan-layers do not go together yet'
        >>> name_flags("with target_modules=('ln_1', 'ln_2'), or exclude_modules")
        'with --targets ln_1 ln_2, or --exclude'
    """
    if CONFIG_FILE in message:
        return message
    for word, phrase in _PHRASES.items():
        message = message.replace(word, phrase)
    message = _ARGUMENT.sub(_write_flag, _ONLY_IN_PYTHON.sub("", message))
    return re.sub(r"\b([Pp])ass (a |the )?(?=--)", lambda m: _GIVE[m[1]] + (m[2] or ""), message)


_GIVE = {"p": "give ", "P": "Give "}


def _write_flag(found: re.Match[str]) -> str:
    name, value = found[1], found[2] or ""
    if name in _WITH_VALUES and not value:
        return found[0]
    flag = _FLAGS[name]
    if value in ("=[]", "=()"):
        return f"{flag} none"
    if value == "=False":
        return f"no {flag}"
    words = value[1:] if value[1:].isdecimal() else " ".join(re.findall(r"'([^']*)'", value))
    return flag + (" is given" if value == " is True" else f" {words}" if words else "")


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
    line = write_plainly(name_flags(message))
    if sys.stderr.isatty():
        width = shutil.get_terminal_size().columns
        line = textwrap.fill(
            line, width, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
        )
    with contextlib.suppress(BrokenPipeError):  # `2>&1 | head`: the work goes on
        print(line, file=sys.stderr)

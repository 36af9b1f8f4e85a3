"""The library's messages name arguments of Python; here each becomes the flag that sets it."""

from __future__ import annotations

import re

_WORDS = {
    "pass base=params": "give the base with --model",
    "overwrite=True": "--overwrite",
    "norms_only=True": "--norms-only",
    "Pass the name_map": "Give the --name-map",
    "pass a name_map": "give a --name-map",
    "name_map=": "--name-map ",
    "pass task as": "give --task as",
    "max_new_tokens": "--max-new-tokens",
    "as modules_to_save": "as saved modules",
    "To train modules_to_save alone, pass target_modules=[]": "To train --save-modules alone, give "
    "--targets none",
    "or leave target_modules out to train": "or leave --targets out to train",
    "with target_modules=[] no norm": "with --targets none no norm",
    "is to train in modules_to_save": "is to train in --save-modules",
    "Change target_modules or exclude_modules": "Change --targets or --exclude",
    "scan_layers=False": "no --scan-layers",
    "scan_layers=True": "--scan-layers",
    "scan_layers is True": "--scan-layers is given",
}
_QUANTIZE = re.compile(r"quantize='(\w+)'")


def name_flags(message: str) -> str:
    """A message with flags in the place of arguments.

    Example:
        >>> name_flags("out exists: pass overwrite=True")
        'out exists: pass --overwrite'
        >>> name_flags("quantize='int8' and scan_layers=True do not go together yet")
        '--quantize int8 and --scan-layers do not go together yet'
    """
    for word, flag in _WORDS.items():
        message = message.replace(word, flag)
    return _QUANTIZE.sub(r"--quantize \1", message)


def write_plainly(message: str) -> str:
    r"""One line that a terminal prints as it is: a name from a file may hold its control codes.

    Example:
        >>> write_plainly("a\n  b\x1b[2J")
        'a b\\x1b[2J'
    """
    line = " ".join(message.split())
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)

"""The command line: `lntune-jax inspect | train | evaluate | predict | generate | convert | ...`.

Only `main` is public. Everything heavy (jax, transformers, matplotlib) is imported inside the
function that needs it, so that `--help` and a mistyped flag answer at once.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence

_PACKAGES = ("yaml", "rich", "transformers", "huggingface_hub", "matplotlib", "pyarrow")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: The words after the program's name; `None` reads them from `sys.argv`.

    Returns:
        The exit code: 0 when the work is done, 2 for a mistake in flags, files or models, or where
        the packages of the command line are missing, 130 after Ctrl-C, 143 after SIGTERM, which
        training answers with a checkpoint.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words[:1] in (["--version"], ["-V"]):
        print(_describe_version())
        return 0
    missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        print(
            f"lntune-jax: error: the command line needs {', '.join(missing)}: "
            "pip install 'lntune-jax[cli]'",
            file=sys.stderr,
        )
        return 2
    from .app import main

    return main(words)


def _describe_version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        own = version("lntune-jax")
    except PackageNotFoundError:
        own = "(a source tree)"
    python = ".".join(map(str, sys.version_info[:3]))
    return f"lntune-jax {own} (jax {version('jax')}, Python {python})"

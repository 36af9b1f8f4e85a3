"""Where the command line writes, and how it writes numbers."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from .output import drop_stdout


class _Lasting(Console):
    """A console whose reader (`| head -1`) may leave: the work goes on, and nothing is said."""

    def on_broken_pipe(self) -> None:
        self.quiet = True
        if not self.stderr:
            drop_stdout()


def make_console() -> Console:
    """A console on standard output; 80 columns where there is no terminal to ask."""
    return _Lasting(highlight=False)


def say(console: Console, text: str) -> None:
    """Print one line as it is: no markup, no wrapping, so that paths can be copied."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def duration(seconds: float) -> str:
    """Seconds for people.

    Example:
        >>> duration(7.25), duration(75)
        ('7.2 s', '1 min 15 s')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s"


def byte_count(path: Path) -> int:
    """Bytes of all files below a directory."""
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def short_path(path: Path) -> str:
    """A path relative to the working directory where that is shorter."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)

"""Where the command line writes, how it writes numbers, and how far training is.

Progress is a bar in a terminal, a plain line now and then elsewhere.
"""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)

from ..trainer.callbacks import Callback, RunInfo
from .output import drop_stdout

_SECONDS_BETWEEN_LINES = 10.0


class _Lasting(Console):
    """A console whose reader (`| head -1`) may leave: the work goes on, and nothing is said."""

    def on_broken_pipe(self) -> None:
        self.quiet = True
        if not self.stderr:
            drop_stdout()


def make_console() -> Console:
    """A console on standard output, for results; 80 columns where there is no terminal to ask."""
    return _Lasting(highlight=False)


def make_notes() -> Console:
    """A console on standard error, for progress and notes: a pipe gets results alone."""
    return _Lasting(highlight=False, stderr=True)


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


class TrainingProgress:
    """A context that reports steps with loss, tokens per second and time left."""

    def __init__(self, console: Console, title: str, total: int, done: int = 0):
        """Start counting.

        Args:
            console: Where to write; its `is_terminal` decides between bar and lines.
            title: A word or two for what is being done.
            total: Steps of the whole run.
            done: Steps that an earlier call has done.
        """
        self._console = console
        self._title = title
        self._total = total
        self._last_line = time.monotonic()
        # Recent steps only: the first ones compile, and would promise hours.
        self._recent = deque([(self._last_line, done)], maxlen=20)
        self._bar = _make_bar(console) if console.is_terminal else None
        if self._bar:
            self._task = self._bar.add_task(title, total=total, completed=done, figures="")

    def __enter__(self) -> TrainingProgress:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar:
            self._bar.stop()

    def update(self, done: int, loss: float | None = None, tokens_per_second: float = 0.0) -> None:
        """Report that `done` steps are done."""
        figures = "" if loss is None else f"loss {loss:.3f}  {tokens_per_second:,.0f} tokens/s"
        if self._bar:
            self._bar.update(self._task, completed=done, figures=figures)
            return
        now = time.monotonic()
        self._recent.append((now, done))
        if now - self._last_line >= _SECONDS_BETWEEN_LINES:
            self._last_line = now
            (then, earlier) = self._recent[0]
            left = (now - then) / max(done - earlier, 1) * (self._total - done)
            self.note(f"{self._title}  {done}/{self._total}  {figures}  {_clock(left)} left")

    def set(self, done: int, total: int) -> None:
        """Report `done` of `total`, where the total is known only on the way."""
        self._total = total
        if self._bar:
            self._bar.update(self._task, total=total)
        self.update(done)

    def note(self, text: str) -> None:
        """Print a line that stays, above the bar."""
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)


class ProgressCallback(Callback):
    """Shows the steps of a run, and what it says."""

    def __init__(self, console: Console):
        """Show them on this console."""
        self._console = console

    def begin(self, run: RunInfo) -> None:
        """Start the bar."""
        self._many = len(run.trials) > 1
        self._losses: dict[str | None, float] = {}
        self._rate, self._step = 0.0, run.done
        self._progress = TrainingProgress(self._console, run.title, run.total, run.done)
        self._progress.__enter__()

    def stepped(self, step: int, figures: Mapping[str, Any], trial: str | None = None) -> None:
        """Move the bar; of several adapters, the lowest loss is shown."""
        if step != self._step:
            self._step, self._rate, self._losses = step, 0.0, {}
        self._losses[trial] = figures["loss"]
        self._rate += figures["tokens_per_second"]
        self._progress.update(step, min(self._losses.values()), self._rate)

    def note(self, text: str) -> None:
        """Print a line above the bar."""
        self._progress.note(text)

    def end(self) -> None:
        """Remove the bar."""
        self._progress.__exit__()


def _make_bar(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TextColumn("{task.fields[figures]}"),
        TimeRemainingColumn(compact=True),
        TextColumn("left"),
        console=console,
        refresh_per_second=4,
        # Results stand above the bar on a terminal; in a file or a pipe they stay where they go.
        redirect_stdout=sys.stdout.isatty(),
    )


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}"

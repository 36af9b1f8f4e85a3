"""Who hears of a run: JSON lines, TensorBoard, Weights & Biases, trackio, or your own callback."""

from __future__ import annotations

import contextlib
import importlib
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import ConfigError
from ..messages import need_package
from ..storage.directories import refuse_url, write_text
from ..tasks.base import Metric


class RunInfo(NamedTuple):
    """What a callback is told when a run begins.

    Attributes:
        title: A word or two for what is being done.
        total: Steps of the whole run.
        done: Steps that earlier calls have done.
        resumed: Whether it goes on from a checkpoint.
        trials: The adapters' names; `None` for an adapter that trains alone.
        metrics: What an evaluation gives beside the loss.
        settings: How it trains, as plain values.

    Example:
        >>> RunInfo("training", 9, 3, resumed=True, trials=[None], metrics=(), settings={}).kept
        3
    """

    title: str
    total: int
    done: int
    resumed: bool
    trials: Sequence[str | None]
    metrics: Sequence[Metric]
    settings: Mapping[str, Any]

    @property
    def kept(self) -> int:
        """The last step whose lines stay: what comes after is written again; -1 keeps none."""
        return self.done if self.resumed else -1


class Callback:
    """Hears of a run; each method does nothing until you override it.

    Figures come one step late, so that the device need not wait. In a run of several adapters
    `trial` is the name of the one that they are of.

    Example:
        >>> class Printer(Callback):
        ...     def evaluated(self, step, figures, trial=None):
        ...         print(step, figures["loss"])
        >>> Printer().evaluated(3, {"loss": 0.5})
        3 0.5
    """

    def begin(self, run: RunInfo) -> None:
        """A run begins, or goes on."""

    def stepped(self, step: int, figures: Mapping[str, Any], trial: str | None = None) -> None:
        """A step is done: `loss`, `gradient_norm`, `learning_rate`, `tokens_per_second`, `epoch`.

        A step whose update was skipped has `skipped` too.
        """

    def evaluated(self, step: int, figures: Mapping[str, float], trial: str | None = None) -> None:
        """An evaluation is done: `loss`, and the task's metrics."""

    def note(self, text: str) -> None:
        """Something happened that a person should read."""

    def sync(self) -> None:
        """A checkpoint follows that counts on all that was told so far."""

    def end(self) -> None:
        """The run ends, or stops, or fails."""


@contextlib.contextmanager
def begun(callbacks: Sequence[Callback], run: RunInfo) -> Iterator[None]:
    """Tell the callbacks that a run begins and, whatever happens, that it ends.

    Of a run that fails its own error is the one that is raised; a callback that cannot end either
    is a note of it.
    """
    with contextlib.ExitStack() as stack:
        for each in callbacks:
            each.begin(run)
            stack.push(_Ending(each))
        yield


class _Ending(contextlib.AbstractContextManager):
    def __init__(self, callback: Callback):
        self.callback = callback

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        try:
            self.callback.end()
        except Exception as own:
            if error is None:
                raise
            error.add_note(f"{type(self.callback).__name__} could not end: {own}")


class JsonLines(Callback):
    """One JSON line a step, and one an evaluation, in a file.

    Example:
        >>> import tempfile
        >>> lines = JsonLines(Path(tempfile.mkdtemp()) / "metrics.jsonl")
        >>> lines.begin(RunInfo("training", 9, 0, False, [None], (), {}))
        >>> lines.stepped(1, {"loss": 0.5})
        >>> lines.end()
        >>> read_metrics(lines.path)
        [{'split': 'train', 'step': 1, 'loss': 0.5}]
    """

    def __init__(self, path: Path):
        """Write to this file; a resumed run drops the lines that it will write again."""
        self.path = path

    def begin(self, run: RunInfo) -> None:
        """Keep the lines up to the step at which the run goes on."""
        kept = [line for line in read_metrics(self.path) if line["step"] <= run.kept]
        write_text(self.path, "".join(_as_line(line) for line in kept))
        self._file = self.path.open("a", encoding="utf-8")

    def stepped(self, step: int, figures: Mapping[str, Any], trial: str | None = None) -> None:
        """Write a line."""
        self._write("train", step, figures, trial)

    def evaluated(self, step: int, figures: Mapping[str, float], trial: str | None = None) -> None:
        """Write a line."""
        self._write("eval", step, figures, trial)

    def sync(self) -> None:
        """Have every line on the disk."""
        os.fsync(self._file.fileno())

    def end(self) -> None:
        """Close the file."""
        self._file.close()

    def _write(self, split: str, step: int, figures: Mapping[str, Any], trial: str | None) -> None:
        named = {} if trial is None else {"trial": trial}
        self._file.write(_as_line({"split": split, "step": step, **named, **figures}))
        # A killed run shall lose no line that its checkpoint counts on.
        self._file.flush()


class TensorBoard(Callback):
    """Event files for TensorBoard; needs tensorboardX.

    Example:
        >>> import tempfile
        >>> board = TensorBoard(Path(tempfile.mkdtemp()))
        >>> board.begin(RunInfo("training", 9, 0, False, [None], (), {}))
        >>> board.evaluated(1, {"loss": 0.5})
        >>> board.end()
        >>> len(list(board.directory.glob("events*")))
        1
    """

    def __init__(self, directory: Path):
        """Write below this directory."""
        need_package("tensorboardX", "cli", "TensorBoard's event files", ConfigError)
        self.directory = directory

    def begin(self, run: RunInfo) -> None:
        """Open the files; those of a resumed run hide the steps that are done again."""
        from tensorboardX import SummaryWriter

        self._writer = SummaryWriter(str(self.directory), purge_step=run.kept + 1)

    def stepped(self, step: int, figures: Mapping[str, Any], trial: str | None = None) -> None:
        """Write one scalar a figure."""
        self._write("train", step, figures, trial)

    def evaluated(self, step: int, figures: Mapping[str, float], trial: str | None = None) -> None:
        """Write one scalar a figure."""
        self._write("eval", step, figures, trial)

    def end(self) -> None:
        """Close the files."""
        self._writer.close()

    def _write(self, split: str, step: int, figures: Mapping[str, Any], trial: str | None) -> None:
        for tag, value in name_scalars(split, figures, trial):
            self._writer.add_scalar(tag, value, step)


class WeightsAndBiases(Callback):
    """A run of Weights & Biases; needs wandb.

    Example:
        >>> import importlib.util
        >>> if importlib.util.find_spec("wandb"):
        ...     board = WeightsAndBiases(project="reviews", mode="offline")
    """

    _package = "wandb"

    def __init__(self, project: str = "lntune-jax", **options: Any):
        """Report to this project; the options are those of `wandb.init`."""
        need_package(self._package, self._package, type(self).__name__, ConfigError)
        self.project, self.options = project, options

    def begin(self, run: RunInfo) -> None:
        """Start a run with the recipe as its config."""
        board = importlib.import_module(self._package)
        settings = {"config": dict(run.settings), **self.options}
        self._run = board.init(project=self.project, **settings)

    def stepped(self, step: int, figures: Mapping[str, Any], trial: str | None = None) -> None:
        """Log `train/...`."""
        self._run.log(dict(name_scalars("train", figures, trial)), step=step)

    def evaluated(self, step: int, figures: Mapping[str, float], trial: str | None = None) -> None:
        """Log `eval/...`."""
        self._run.log(dict(name_scalars("eval", figures, trial)), step=step)

    def end(self) -> None:
        """Finish the run."""
        self._run.finish()


class Trackio(WeightsAndBiases):
    """A run of trackio, which keeps its figures on this machine; needs trackio.

    Example:
        >>> import importlib.util
        >>> if importlib.util.find_spec("trackio"):
        ...     board = Trackio(project="reviews")
    """

    _package = "trackio"


def name_scalars(
    split: str, figures: Mapping[str, Any], trial: str | None
) -> Iterator[tuple[str, float]]:
    """The figures' names in a dashboard, and their values.

    Example:
        >>> list(name_scalars("train", {"loss": 0.5}, "seed-1"))
        [('train/loss/seed-1', 0.5)]
    """
    for name, value in figures.items():
        yield (f"{split}/{name}" if trial is None else f"{split}/{name}/{trial}"), value


def read_metrics(lines: Path, trial: str | None = None) -> list[dict[str, Any]]:
    """The lines of a metrics file, or those of one trial; empty if there is none.

    A last line that a killed run left half written is skipped.

    Example:
        >>> read_metrics(Path("/no/such/metrics.jsonl"))
        []
    """
    refuse_url(lines, error=ConfigError)
    if not lines.exists():
        return []
    figures = []
    for line in lines.read_text(encoding="utf-8").splitlines():
        try:
            figures.append(json.loads(line))
        except ValueError:
            break
    return [each for each in figures if trial is None or each.get("trial") == trial]


def _as_line(figures: Mapping[str, Any]) -> str:
    # JSON has no infinity; a gradient norm that overflowed becomes null.
    plain = {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in figures.items()
    }
    return json.dumps(plain, allow_nan=False) + "\n"

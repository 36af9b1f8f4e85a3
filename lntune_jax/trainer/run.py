"""The files of a run's output directory, and whether a new run may write there.

`settings.json` is written first and marks a directory as a run; `summary.json` is written last
and marks the run as finished.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from ..messages import Argument, warn
from ..storage.directories import write_text
from ..storage.sealed import read_json
from ..tasks.base import Task
from .history import Evaluation
from .loop import Outcome
from .recipe import Recipe
from .schedules import metric_of, total_steps

try:
    import fcntl
except ImportError:  # Windows has none: two processes in one run are not noticed there.
    fcntl = None  # type: ignore[assignment]


@dataclass(frozen=True)
class RunFiles:
    """Paths of a run: an output directory and what lies in it."""

    directory: Path
    adapter: Path
    adapters: Path
    config: Path
    checkpoints: Path
    figure: Path
    metrics: Path
    settings: Path
    summary: Path
    sweep: Path
    sweep_figure: Path
    tensorboard: Path

    @classmethod
    def at(cls, directory: Path) -> RunFiles:
        """The files of the run in `directory`, whether they exist or not."""
        whole = directory.expanduser().resolve()
        return cls(whole, **{name: whole / entry for name, entry in _ENTRIES.items()})

    @property
    def lock(self) -> Path:
        """The file that the training process holds locked; `clear` leaves it alone."""
        return self.directory / "run.lock"

    def is_finished(self) -> bool:
        """Whether a run has been completed here."""
        return self.summary.exists()

    def is_started(self) -> bool:
        """Whether a run has been started here."""
        return self.settings.exists()

    def clear(self) -> None:
        """Remove the files of a run, and only these."""
        for entry in _ENTRIES.values():
            path = self.directory / entry
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)


_ENTRIES = {
    "adapter": "adapter",
    "adapters": "adapters",
    "config": "run.yaml",
    "checkpoints": "checkpoints",
    "figure": "curves.png",
    "metrics": "metrics.jsonl",
    "settings": "settings.json",
    "summary": "summary.json",
    "sweep": "sweep.json",
    "sweep_figure": "sweep.png",
    "tensorboard": "tensorboard",
}


# A resumed run may get more of these; all else is the run's own.
_MAY_GROW = ("max_steps", "epochs")


def check_run(
    files: RunFiles,
    settings: Mapping[str, Any],
    *,
    resume: bool,
    overwrite: bool,
) -> bool:
    """Refuse an output directory in which this run may not start or go on.

    Args:
        files: The directory.
        settings: All that the run's result depends on, as plain JSON.
        resume: Go on with a run that is there.
        overwrite: Replace a run that is there.

    Returns:
        Whether a run that is there gets more steps than it was started with.

    Raises:
        ConfigError: If a run is there and neither flag is given, or both are, or the run was
            started with other settings; or what is there was made by something else.
    """
    if resume and overwrite:
        raise ConfigError(
            Argument("resume", True),
            " and ",
            Argument("overwrite", True),
            " contradict each other; pass one of them",
        )
    if files.directory.exists() and not files.directory.is_dir():
        raise ConfigError(_output(files), " is a file, not a directory")
    if not files.is_started():
        found = [name for name in _ENTRIES.values() if (files.directory / name).exists()]
        if found:
            raise ConfigError(
                _output(files),
                f" holds {', '.join(found)}, but no settings.json: it was never a run of "
                "lntune-jax, so that nothing in it is replaced; give another directory",
            )
        return False
    if overwrite:
        return False
    if not resume:
        state = "a finished run" if files.is_finished() else "an unfinished run"
        raise ConfigError(
            _output(files),
            f" holds {state}; pass ",
            Argument("resume", True),
            " to go on with it, ",
            Argument("overwrite", True),
            " to replace it, or another directory",
        )
    try:
        before = read_fields(files.settings)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"cannot resume {files.directory}: its settings.json is damaged ({error}); pass ",
            Argument("overwrite", True),
            " to start again",
        ) from error
    now = json.loads(json.dumps(settings))
    _check_same(before, now, files)
    return any(before.get(name) != now.get(name) for name in _MAY_GROW)


def read_fields(file: Path) -> dict[str, Any]:
    """The content of one of a run's JSON files.

    Raises:
        OSError: It cannot be read.
        ValueError: It is damaged.
    """
    fields = read_json(file)
    if not isinstance(fields, dict):
        raise ValueError("it holds no object")
    return fields


def start_run(
    files: RunFiles, settings: Mapping[str, Any], *, overwrite: bool, grows: bool = False
) -> None:
    """Make the output directory and write `settings.json`, unless a run goes on there.

    Args:
        files: The directory.
        settings: As for `check_run`.
        overwrite: Remove the run that is there.
        grows: What `check_run` gave: the run gets more steps, and is no longer finished.

    Raises:
        ConfigError: If the directory cannot be written.
    """
    try:
        if overwrite:
            files.clear()
        if grows:
            files.summary.unlink(missing_ok=True)
        if grows or not files.is_started():
            files.directory.mkdir(parents=True, exist_ok=True)
            text = json.dumps(settings, indent=2) + "\n"
            write_text(files.settings, text)
    except OSError as error:
        raise ConfigError(
            _output(files), f" cannot be written: {error.strerror or error}"
        ) from error


@contextlib.contextmanager
def locked(files: RunFiles) -> Iterator[None]:
    """Within it no other process trains in the directory; the system lets go at any death.

    Args:
        files: The directory, which is made where it is missing.

    Raises:
        ConfigError: Another process is training there, or the directory cannot be written.

    Example:
        >>> import tempfile
        >>> files = RunFiles.at(Path(tempfile.mkdtemp()))
        >>> with locked(files):
        ...     print(files.lock.exists())
        True
        >>> files.lock.exists()
        False
    """
    is_new = not files.directory.exists()
    try:
        handle = _take(files)
        if handle is not None:
            os.ftruncate(handle.fileno(), 0)
            os.write(handle.fileno(), f"{os.getpid()}\n".encode())
    except OSError as error:
        raise ConfigError(
            _output(files), f" cannot be written: {error.strerror or error}"
        ) from error
    with handle or contextlib.nullcontext():
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                if handle is not None:
                    # Still locked: whoever has it open sees that it has left the directory.
                    files.lock.unlink()
                if is_new:
                    files.directory.rmdir()  # where nothing has been written


def _take(files: RunFiles) -> Any:
    """The lock file, open and locked; `None` where the system or its disk has no locks."""
    while True:
        files.directory.mkdir(parents=True, exist_ok=True)
        if fcntl is None:
            return None
        handle = files.lock.open("ab+", buffering=0)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # One that its holder has removed in the meantime locks nobody out.
            if os.path.samestat(os.fstat(handle.fileno()), files.lock.stat()):
                return handle
        except BlockingIOError:
            handle.seek(0)
            holder = handle.read(20).decode(errors="replace").strip()
            handle.close()
            raise ConfigError(
                f"another process is training in {files.directory}"
                + (f" (pid {holder})" if holder else "")
                + "; wait for it, end it, or give another directory"
            ) from None
        except FileNotFoundError:
            pass
        except OSError:  # a network's disk without locks
            handle.close()
            return None
        handle.close()


def _check_same(
    before: Mapping[str, Any],
    now: Mapping[str, Any],
    files: RunFiles,
) -> None:
    for name in sorted(before.keys() | now.keys()):
        if before.get(name) == now.get(name):
            continue
        if name not in before and not now[name]:
            continue  # A flag that the run's version did not have, and that is off.
        if name in _MAY_GROW and _is_more(before.get(name), now.get(name)):
            continue
        if name.endswith("_sha256"):
            raise ConfigError(
                f"cannot resume {files.directory}: the content of ",
                Argument(name.removesuffix("_sha256")),
                " has changed since the run was started; pass ",
                Argument("overwrite", True),
                " to start again",
            )
        raise ConfigError(
            f"cannot resume {files.directory}: it was started with ",
            Argument(name),
            f" {_shown(before.get(name))}, not {_shown(now.get(name))}; pass the same value, or ",
            Argument("overwrite", True),
            " to start again",
        )


def _output(files: RunFiles) -> Argument:
    return Argument("output", str(files.directory))


def _is_more(before: int | None, now: int | None) -> bool:
    """Whether a limit was raised; `None` is no limit."""
    return before is not None and (now is None or now > before)


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(map(str, value)) or "unset"
    return "unset" if value is None else str(value)


@dataclass(frozen=True)
class Summary:
    """The figures of a finished run, as `summary.json` holds them.

    Attributes:
        trainable: Parameters that train.
        total: Parameters in all.
        percent: The former in percent of the latter.
        training_rows: Rows trained on.
        evaluation_rows: Rows evaluated on.
        steps: Steps done.
        planned_steps: Steps that the recipe asks for.
        best: The step whose adapter was kept, and its figures.
        first: The same of the first evaluation; of the untouched base where that was measured.
        seconds: Time spent.
        adapter_bytes: Size of the adapter.
        compilations: Programs compiled by the last call.
    """

    trainable: int
    total: int
    percent: float
    training_rows: int
    evaluation_rows: int
    steps: int
    planned_steps: int
    best: dict[str, float]
    first: dict[str, float]
    seconds: float
    adapter_bytes: int
    compilations: int


def finish_run(
    task: Task,
    recipe: Recipe,
    outcome: Outcome,
    files: RunFiles,
    *,
    number: int = 0,
    name: str | None = None,
) -> Summary:
    """Save the adapter and write the summary, in this order.

    Args:
        task: What was trained.
        recipe: How.
        outcome: What became of it.
        files: Where everything goes.
        number: Which of the outcome's adapters is the run's own.
        name: Its name, of several.
    """
    import lntune_jax as lnt

    fitted = outcome.fitted[number]
    lnt.save_adapter(
        files.adapter,
        fitted.best,
        task.config,
        base=task.params,
        overwrite=True,
        name_map=task.name_map,
        task=task.record or None,
    )
    evaluations, metric = fitted.history.evaluations, metric_of(task, recipe)
    best = fitted.history.best(metric) if evaluations else Evaluation(outcome.step)
    first = evaluations[0] if evaluations else best
    report = lnt.report_params(task.params, task.config, name_map=task.name_map)
    summary = Summary(
        trainable=report.trainable,
        total=report.total,
        percent=report.percent,
        training_rows=task.training_rows,
        evaluation_rows=task.evaluation_rows,
        steps=outcome.step,
        planned_steps=total_steps(task, recipe),
        best={"step": best.step, **best.figures},
        first={"step": first.step, **first.figures},
        seconds=round(outcome.seconds, 2),
        adapter_bytes=byte_count(files.adapter),
        compilations=outcome.compilations,
    )
    write_text(files.summary, json.dumps(asdict(summary), indent=2) + "\n")
    if evaluations and best.step == 0 < outcome.step:
        whose = "" if name is None else f"{name}: "
        warn(
            f"{whose}no evaluation was better than the untouched base: the adapter is the base's; "
            "lower the learning rate, or train longer",
            UserWarning,
        )
    return summary


def byte_count(path: Path) -> int:
    """Bytes of all files below a directory."""
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def load_summary(files: RunFiles) -> Summary:
    """Read what `finish_run` wrote.

    Raises:
        ConfigError: If it is damaged.
    """
    try:
        return Summary(**read_fields(files.summary))
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(
            f"{files.summary} is damaged ({error}): delete it, and pass ",
            Argument("resume", True),
            " to write it again",
        ) from error

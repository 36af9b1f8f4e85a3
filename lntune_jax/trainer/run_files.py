"""The files of a run's output directory, and whether a new run may write there.

`settings.json` is written first and marks a directory as a run; `summary.json` is written last
and marks the run as finished.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..cli.base import model_location
from ..cli.flags import write_flag
from ..errors import ConfigError
from ..storage.directories import write_text
from ..storage.sealed import read_json

# Flags of `train` that change where a run stands, or on which devices, but not what it computes;
# and the one with which a run goes on that has met a loss that is no number.
_WITHOUT_EFFECT = (
    *("config", "output", "resume", "overwrite", "stop_after_steps"),
    *("checkpoint_every", "checkpoint_minutes"),
    *("distributed", "coordinator", "num_processes", "process_id", "mesh", "heartbeat_seconds"),
    "on_nan",
)


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


def check_run(files: RunFiles, settings: Any, *, resume: bool, overwrite: bool) -> None:
    """Refuse an output directory in which this run may not start or go on.

    Args:
        files: The directory.
        settings: The settings of the run, a dataclass.
        resume: Go on with a run that is there.
        overwrite: Replace a run that is there.

    Raises:
        ConfigError: If a run is there and neither flag is given, or both are, or the run was
            started with other settings.
    """
    if resume and overwrite:
        raise ConfigError("--resume and --overwrite contradict each other; give one of them")
    if files.directory.exists() and not files.directory.is_dir():
        raise ConfigError(f"--output {files.directory} is a file, not a directory")
    if overwrite or not files.is_started():
        return
    if not resume:
        state = "a finished run" if files.is_finished() else "an unfinished run"
        raise ConfigError(
            f"--output {files.directory} holds {state}; give --resume to go on with it, "
            "--overwrite to replace it, or another directory"
        )
    try:
        before = read_fields(files.settings)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"cannot resume {files.directory}: its settings.json is damaged ({error}); give "
            "--overwrite to start again"
        ) from error
    _check_same(before, _describe(settings), files)


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


def start_run(files: RunFiles, settings: Any, *, overwrite: bool) -> None:
    """Make the output directory and write `settings.json`, unless a run goes on there.

    Raises:
        ConfigError: If the directory cannot be written.
    """
    try:
        if overwrite:
            files.clear()
        if not files.is_started():
            files.directory.mkdir(parents=True, exist_ok=True)
            text = json.dumps(_describe(settings), indent=2) + "\n"
            write_text(files.settings, text)
    except OSError as error:
        raise ConfigError(
            f"--output {files.directory} cannot be written: {error.strerror or error}"
        ) from error


def _describe(settings: Any) -> dict[str, Any]:
    """Flags and values as plain JSON, with a checksum for each data file."""
    described: dict[str, Any] = {}
    _flatten(asdict(settings), described)
    # A directory may be named from elsewhere when the run goes on; a hub id stays as it is.
    described["model"] = model_location(described["model"])
    for name in ("data", "eval_data"):
        path = described.get(name)
        if path is not None and Path(path).is_file():
            described[f"{name}_sha256"] = _checksum(path)
    if described.get("more_data"):
        described["more_data_sha256"] = [_checksum(path) for path in described["more_data"]]
    return described


def _checksum(path: str) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def _flatten(values: dict[str, Any], into: dict[str, Any]) -> None:
    for name, value in values.items():
        if isinstance(value, dict):
            _flatten(value, into)
        elif name not in _WITHOUT_EFFECT:
            into[name] = (
                [_plain(each) for each in value] if isinstance(value, tuple) else _plain(value)
            )


def _plain(value: Any) -> Any:
    return str(value.expanduser().resolve()) if isinstance(value, Path) else value


def _check_same(before: dict[str, Any], now: dict[str, Any], files: RunFiles) -> None:
    for name in sorted(before.keys() | now.keys()):
        if before.get(name) == now.get(name):
            continue
        if name not in before and not now[name]:
            continue  # A flag that the run's version did not have, and that is off.
        if name.endswith("_sha256"):
            flag = write_flag(name.removesuffix("_sha256"))
            raise ConfigError(
                f"cannot resume {files.directory}: the content of {flag} has changed since the "
                "run was started; give --overwrite to start again"
            )
        raise ConfigError(
            f"cannot resume {files.directory}: it was started with {write_flag(name)} "
            f"{_shown(before.get(name))}, not {_shown(now.get(name))}; give the same value, or "
            "--overwrite to start again"
        )


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(map(str, value)) or "unset"
    return "unset" if value is None else str(value)

"""Several processes as one run: how they find each other, and how one ends when another is lost."""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from ..errors import ConfigError, LNTuningError
from ..trainer.run import RunFiles, check_run
from ..trainer.stopping import TerminatedError
from .agreement import LeaveTogetherError, check_agreement, failing_together
from .inspect import parse_mesh
from .options import Processes, TrainSettings
from .words import flag_spelling, print_message, tell

# What all processes share; the rest of a run's files only the first one writes.
_SHARED = ("directory", "adapter", "adapters", "checkpoints")

# Outlives the process by a moment: JAX ends it from within when another one is lost.
_WATCHER = """
import sys
if sys.stdin.buffer.read() != b"done":
    print(sys.argv[1], file=sys.stderr, flush=True)
"""

_CURE = "start all processes again, with --resume"


@contextlib.contextmanager
def joined(settings: Processes, describe: Callable[[], Mapping[str, Any]] = dict) -> Iterator[Any]:
    """Join the other processes and give the mesh of all their devices.

    A process alone gives the mesh of --mesh over its own devices, or `None`. With others, an error
    ends the process at once, with a message: at its ordinary end it would wait for the others,
    which wait for it.

    Args:
        settings: The flags.
        describe: Gives what all processes must have alike, by its name.

    Raises:
        ConfigError: The flags do not go together, no coordinator is found, or the processes differ
            in something; the message names it.
    """
    if not settings.distributed:
        _refuse_lone_flags(settings)
        sizes = parse_mesh(settings.mesh)
        yield _make_mesh(sizes) if sizes else None
        return
    sizes = parse_mesh(settings.mesh)
    _initialize(settings)
    import jax

    name = f"process {jax.process_index()} of {jax.process_count()}"
    reason = "it was killed, or another one was lost"
    seconds = settings.heartbeat_seconds
    late = f"{name} had SIGTERM {seconds} seconds ago, and the others come to no step's end"
    with (
        _watched(f"lntune-jax: error: {name} has ended: {reason}; {_CURE}") as watcher,
        _ends_after_sigterm(seconds, lambda: _end(watcher, f"{late}; {_CURE}", 143)),
    ):
        try:
            with failing_together():
                described = describe()
            check_agreement(described)
            yield _make_mesh(sizes)
        except TerminatedError:  # All of them leave at the same step.
            _release(watcher)
            jax.distributed.shutdown()
            raise
        except LeaveTogetherError as error:
            _release(watcher)
            jax.distributed.shutdown()
            raise error.__cause__ or error from None
        except KeyboardInterrupt:
            _end(watcher, f"{name}: stopped", 130)
        except Exception as error:
            first = (str(error).strip().splitlines() or [type(error).__name__])[0]
            if _is_lost(error):
                _end(watcher, f"{name} lost another one ({first[:300]}); {_CURE}", 2)
            if isinstance(error, LNTuningError):
                told = tell(error, flag_spelling(TrainSettings))
                _end(watcher, f"{name}: {told}", 2)
            sys.excepthook(type(error), error, error.__traceback__)
            _end(watcher, f"{name} has failed: see above", 1)
        jax.distributed.shutdown()


@contextlib.contextmanager
def own_files(files: RunFiles, mesh: Any) -> Iterator[RunFiles]:
    """The files that this process writes: of all but the first, in a folder for nobody."""
    if mesh is None or is_first():
        yield files
        return
    names = [each.name for each in fields(files) if each.name not in _SHARED]
    with tempfile.TemporaryDirectory(prefix="lntune-jax-") as scratch:
        own = {name: Path(scratch) / getattr(files, name).name for name in names}
        yield replace(files, **own)


def is_first() -> bool:
    """Whether this is the process that writes and speaks for all."""
    import jax

    return jax.process_index() == 0


def wait_for_all(what: str, mesh: Any) -> None:
    """Wait until every process is here."""
    if mesh is not None:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(what)


def check_shared(files: RunFiles, settings: Mapping[str, Any]) -> None:
    """Check that the first process's directory, flags and data are this one's too.

    Raises:
        ConfigError: They are not.
    """
    if not files.is_started():
        raise ConfigError(
            f"--output {files.directory} is not the directory that the first process sees: name "
            "one on a disk that all of them share"
        )
    check_run(files, settings, resume=True, overwrite=False)


def _refuse_lone_flags(settings: Processes) -> None:
    for name in ("coordinator", "num_processes", "process_id"):
        if getattr(settings, name) is not None:
            raise ConfigError(f"--{name.replace('_', '-')} goes with --distributed")


def _initialize(settings: Processes) -> None:
    import jax

    found = {
        "coordinator_address": settings.coordinator,
        "num_processes": _number(settings.num_processes, "JAX_NUM_PROCESSES"),
        "process_id": _number(settings.process_id, "JAX_PROCESS_ID"),
    }
    try:
        jax.distributed.initialize(
            **found,
            heartbeat_timeout_seconds=settings.heartbeat_seconds,
            shutdown_timeout_seconds=settings.heartbeat_seconds,
        )
    except (ValueError, RuntimeError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
        raise ConfigError(
            f"--distributed cannot begin: {first} Give --coordinator HOST:PORT, --num-processes "
            "and --process-id where no launcher is recognised"
        ) from error


def _number(given: int | None, variable: str) -> int | None:
    text = os.environ.get(variable)
    if given is not None or text is None:
        return given
    if not text.isdecimal():
        raise ConfigError(f"${variable} is {text!r}; expected a whole number")
    return int(text)


def _make_mesh(sizes: dict[str, int]) -> Any:
    import jax

    from ..models.estimating import check_mesh

    sizes = check_mesh(sizes) or {"data": jax.device_count()}
    count, devices = math.prod(sizes.values()), jax.devices()
    if jax.process_count() > 1 and count != len(devices):
        raise ConfigError(
            f"--mesh has {count} devices, and the {jax.process_count()} processes have "
            f"{len(devices)}: every device must be on the mesh"
        )
    if count > len(devices):
        raise ConfigError(
            f"--mesh has {count} devices, and JAX finds {len(devices)} here; give smaller sizes, "
            "or --distributed where the devices belong to several processes"
        )
    kinds = (jax.sharding.AxisType.Auto,) * len(sizes)
    return jax.make_mesh(
        tuple(sizes.values()), tuple(sizes), axis_types=kinds, devices=devices[:count]
    )


def describe_devices(mesh: Any) -> str | None:
    """A line about devices that are here and not used; `None` where all are.

    Example:
        >>> describe_devices(None)
    """
    import jax

    found = jax.device_count()
    used = 1 if mesh is None else mesh.size
    if used == found:
        return None
    return f"training uses {used} of {found} devices; --mesh data={found} divides batches over all"


@contextlib.contextmanager
def _watched(message: str) -> Iterator[subprocess.Popen[bytes]]:
    """A child that prints the message if this process ends without leaving the context."""
    command = [sys.executable, "-I", "-c", _WATCHER, message]
    watcher = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
    yield watcher
    _release(watcher)


@contextlib.contextmanager
def _ends_after_sigterm(seconds: int, end: Callable[[], None]) -> Iterator[None]:
    """Call `end` if the context is not left so long after the first SIGTERM.

    JAX's own handler, in C, notes a signal for the step at which all leave. Python's stands before
    it and hands the first one on. It is heard of through a pipe, by a thread, because the main
    thread may be waiting for another process for ever.
    """
    if os.name == "nt" or threading.current_thread() is not threading.main_thread():
        yield
        return
    theirs = _get_handler(signal.SIGTERM)
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    is_left = threading.Event()

    def listen() -> None:
        while came := os.read(reader, 1):
            if came[0] == signal.SIGTERM:
                _set_handler(signal.SIGTERM, theirs)
                os.kill(os.getpid(), signal.SIGTERM)
                if not is_left.wait(seconds):
                    end()
                return

    signal.signal(signal.SIGTERM, lambda *_: None)
    before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    listener = threading.Thread(target=listen, daemon=True)
    listener.start()
    try:
        yield
    finally:
        is_left.set()
        signal.set_wakeup_fd(before)
        _set_handler(signal.SIGTERM, theirs)
        os.close(writer)
        listener.join()
        os.close(reader)


def _get_handler(number: int) -> int | None:
    """The handler of a signal as C has it: Python cannot name one that is not its own."""
    get = ctypes.pythonapi.PyOS_getsig
    get.restype, get.argtypes = ctypes.c_void_p, [ctypes.c_int]
    return get(number)


def _set_handler(number: int, handler: int | None) -> None:
    put = ctypes.pythonapi.PyOS_setsig
    put.restype, put.argtypes = ctypes.c_void_p, [ctypes.c_int, ctypes.c_void_p]
    put(number, handler)


def _release(watcher: subprocess.Popen[bytes]) -> None:
    watcher.communicate(b"done")


def _end(watcher: subprocess.Popen[bytes], message: str, code: int) -> None:
    """End with a message, and without the farewell in which each process waits for all."""
    _release(watcher)
    print_message(f"lntune-jax: error: {message}")
    sys.stderr.flush()
    sys.stdout.flush()
    os._exit(code)


def _is_lost(error: BaseException | None) -> bool:
    """Whether an error says that the network, and not the program or its user, is at fault."""
    if isinstance(error, LNTuningError):
        return _is_lost(error.__cause__)
    if error is None or (isinstance(error, OSError) and not isinstance(error, ConnectionError)):
        return False
    words = ("gloo", "nccl", "connection closed", "connection reset", "unavailable", "heartbeat")
    text = f"{type(error).__name__} {error}".lower()
    return any(word in text for word in words)

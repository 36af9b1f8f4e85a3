"""Writing a directory whole or not at all, and replacing one without ever losing it.

Everything is written and flushed beside the target under a hidden name, then moved in one step;
an older directory leaves only after the new one stands in its place.
"""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path

from ..errors import LNTuningError
from ..messages import shorten

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # linux/fcntl.h, linux/fs.h
_ATTEMPTS = 20  # at a target that other processes create and replace at the same moment
UNWRITABLE = "What was there is not damaged; pass another path or make this one writable"


def write_directory(
    target: Path,
    fill: Callable[[Path], None],
    *,
    overwrite: bool,
    error: type[LNTuningError],
) -> None:
    """Makes the directory `target` with what `fill` writes, or leaves everything as it was.

    Args:
        target: an absolute path; its parents are made.
        fill: writes the contents into the directory it is given.
        overwrite: whether a directory that is there may be replaced. Whether it is one that may
            be lost is for the caller to check.
        error: what is raised where the target exists or the file system refuses.

    Example:
        >>> import tempfile
        >>> target = Path(tempfile.mkdtemp()) / "out"
        >>> write_directory(
        ...     target, lambda new: (new / "a").touch(), overwrite=False, error=LNTuningError
        ... )
        >>> [path.name for path in target.iterdir()]
        ['a']
    """
    new = _name_beside(target, "new")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        new.mkdir()
        fill(new)
        sync_tree(new)
        _publish(new, target, overwrite)
    except OSError as cause:
        raise error(
            f"cannot write {target}: {cause.strerror or cause} ({cause.filename or new}). "
            f"{UNWRITABLE}"
        ) from cause
    finally:
        # Either what was half written, or the older directory after the exchange.
        shutil.rmtree(new, ignore_errors=True)
    for aside in list_asides(target):  # left by a crash, and now out of date
        shutil.rmtree(aside, ignore_errors=True)


def write_text(file: Path, text: str) -> None:
    """Writes a text file whole or not at all: a reader finds the old text or the new one.

    Raises:
        OSError: the file system refuses.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp()) / "a.txt"
        >>> write_text(file, "new")
        >>> file.read_text()
        'new'
    """
    new = _name_beside(file, "new")
    try:
        new.write_text(text, encoding="utf-8")
        sync(new)
        new.replace(file)
    finally:
        new.unlink(missing_ok=True)
    sync(file.parent)


def resolve_path(path: str | os.PathLike[str], *, error: type[LNTuningError]) -> Path:
    """The absolute path, links followed, so that what is replaced is the directory itself.

    Args:
        path: what a caller gave.
        error: what is raised where it is no path, or none that the file system can have.
    """
    if isinstance(path, str) and "://" in path:
        raise error(f"{path!r} is a URL, and only local paths are read and written: copy it first")
    try:
        resolved = Path(path).expanduser().resolve()
        _refuse_long_names(resolved)
    except (TypeError, ValueError, RuntimeError, OSError) as cause:
        why = getattr(cause, "strerror", None) or cause
        raise error(f"{shorten(repr(path))} is no path of a directory: {why}") from None
    return resolved


def identify(directory: Path) -> tuple[int, int] | None:
    """Which directory has this name now, to see whether another process has replaced it.

    The number of a directory may be used again, so it comes with when its entries last changed.
    """
    try:
        found = directory.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns


def list_asides(target: Path) -> list[Path]:
    """Older versions of `target` that an interrupted replacement left beside it, newest first."""
    prefix = f".{target.name}.old-"
    try:
        found = [path for path in target.parent.iterdir() if path.name.startswith(prefix)]
        return sorted(found, key=lambda path: path.stat().st_mtime_ns, reverse=True)
    except OSError:
        return []


def sync_tree(directory: Path) -> None:
    """Flushes every file and directory below `directory` to the disk, and itself."""
    for parent, _, names in os.walk(directory, topdown=False):
        for name in names:
            sync(Path(parent) / name)
        sync(Path(parent))


def sync(path: Path) -> None:
    """Flushes one file or directory to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _refuse_long_names(path: Path) -> None:
    """Raises where a name is longer than the file system takes; any other trouble comes later."""
    try:
        path.lstat()
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise


def _name_beside(target: Path, kind: str) -> Path:
    """A new hidden name in the target's own directory, so that a move never crosses disks."""
    return target.with_name(f".{target.name}.{kind}-{uuid.uuid4().hex[:12]}")


def _publish(new: Path, target: Path, overwrite: bool) -> None:
    for attempt in range(_ATTEMPTS):
        try:
            if overwrite and os.path.lexists(target):
                if not _exchange(new, target):
                    _move_in_two_steps(new, target)
            else:
                new.rename(target)  # refused where a directory with contents has appeared
            break
        except OSError as error:
            raced = (errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT)
            if not overwrite or error.errno not in raced or attempt == _ATTEMPTS - 1:
                raise
    sync(target.parent)


def _exchange(new: Path, target: Path) -> bool:
    """Swaps two directories in one step, where the system can (Linux); False where it cannot."""
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError, TypeError):
        return False
    if rename(_AT_FDCWD, os.fsencode(new), _AT_FDCWD, os.fsencode(target), _RENAME_EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EPERM):
        return False
    raise OSError(number, os.strerror(number), str(target))


def _move_in_two_steps(new: Path, target: Path) -> None:
    """The older one aside, then the new one in; after a crash between, the older one is whole."""
    aside = _name_beside(target, "old")
    target.rename(aside)
    try:
        new.rename(target)
    except BaseException:
        # Put it back, unless another process has put a whole directory there meanwhile.
        if not os.path.lexists(target):
            aside.rename(target)
        raise
    try:
        sync(target.parent)
    finally:
        shutil.rmtree(aside, ignore_errors=True)

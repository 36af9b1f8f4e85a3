"""Writing a directory whole or not at all, and replacing one without ever losing it.

Everything is written and flushed beside the target under a hidden name, then moved in one step;
an older directory leaves only after the new one stands in its place. Nothing that the library did
not write is ever deleted.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import hashlib
import os
import re
import shutil
import stat
import uuid
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TypeVar

from ..arguments import check_flag
from ..errors import AdapterError, LNTuningError
from ..messages import Argument, list_names, shorten, warn
from .sealed import list_files

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # linux/fcntl.h, linux/fs.h
_ATTEMPTS = 20  # at a target that other processes create and replace at the same moment
_LONGEST_NAME = 255  # bytes, on every file system in use
# What file systems answer that cannot flush a directory: SMB, 9p and FUSE among them. PostgreSQL
# passes over the first two likewise (src/backend/storage/file/fd.c, fsync_fname_ext).
_NO_FLUSH = frozenset({errno.EINVAL, errno.EBADF, errno.ENOTSUP, errno.ENOSYS})
# A scheme of two letters or more, so no drive of Windows; pathlib makes one slash of two.
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")
UNWRITABLE = "What was there is not damaged; pass another path or make this one writable"

ListOwn = Callable[[Path], Collection[str]]
_T = TypeVar("_T")


def write_directory(
    target: Path, fill: Callable[[Path], None], *, noun: str, list_own: ListOwn, overwrite: bool
) -> None:
    """Makes the directory `target` with what `fill` writes, or leaves everything as it was.

    What a person puts into an older directory while it is being replaced is kept beside it, with
    a warning that says where.

    Args:
        target: an absolute path; its parents are made.
        fill: writes the contents into the directory it is given.
        noun: what messages call such a directory: "adapter".
        list_own: the files of a directory, relative to it, that the library wrote. Only these may
            be replaced; they are deleted in this order.
        overwrite: whether a directory with nothing else in it is replaced.

    Raises:
        AdapterError: the target exists, holds something else, or the file system refuses.

    Example:
        >>> import tempfile
        >>> target = Path(tempfile.mkdtemp()) / "out"
        >>> write_directory(
        ...     target,
        ...     lambda new: (new / "a").touch(),
        ...     noun="letter",
        ...     list_own=lambda directory: ["a"],
        ...     overwrite=False,
        ... )
        >>> [path.name for path in target.iterdir()]
        ['a']
    """
    check_target(target, noun=noun, list_own=list_own, overwrite=overwrite)
    new, mine = _name_beside(target, ".new"), None
    parents = [path for path in target.parents if not path.exists()]
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        new.mkdir()
        mine = _get_number(new)
        fill(new)
        sync_tree(new)
        check_target(target, noun=noun, list_own=list_own, overwrite=overwrite)
        _publish(new, target, overwrite)
        sync(target.parent)
    except OSError as cause:
        raise AdapterError(
            f"cannot write {target}: {cause.strerror or cause} ({cause.filename or new}). "
            f"{UNWRITABLE}"
        ) from cause
    finally:
        if mine is not None and _get_number(new) == mine:  # not in place, perhaps half written
            shutil.rmtree(new, ignore_errors=True)
        for parent in parents:  # empty ones alone
            with contextlib.suppress(OSError):
                parent.rmdir()
        for old in (new, *_list_outdated(target)):
            _discard(old, target, list_own)


def check_target(target: Path, *, noun: str, list_own: ListOwn, overwrite: bool) -> None:
    """Refuses a path that exists, unless all that is there may be replaced.

    Raises:
        AdapterError: the message says what is there.
        ArgumentError: `overwrite` is neither True nor False.

    Example:
        >>> check_target(Path("no/such"), noun="bank", list_own=lambda _: [], overwrite=False)
    """
    check_flag("overwrite", overwrite)  # "no" would replace what is there
    found = is_directory(target)
    if found is None:
        return
    if not overwrite:
        raise AdapterError(
            f"{target} exists: pass another path, or ",
            Argument("overwrite", True),
            f" to replace the {noun} there",
        )
    if not found:
        raise AdapterError(
            f"{target} is a file, and ", Argument("overwrite", True), f" replaces {noun}s only"
        )
    foreign = _list_settled(target, list_own)
    if foreign:
        raise AdapterError(
            f"{target} holds no {noun}, or what lntune_jax did not write ({list_names(foreign)}): ",
            Argument("overwrite", True),
            f" replaces {noun}s only. Pass another path, or move these files",
        )


def is_directory(target: Path) -> bool | None:
    """Whether a path is a directory; None where there is nothing.

    It is looked at once: of two looks the second may find what another process did meanwhile.

    Example:
        >>> is_directory(Path("no/such")) is None
        True
    """
    try:
        return stat.S_ISDIR(target.stat().st_mode)
    except OSError:
        return False if target.is_symlink() else None  # a link to nothing


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
    new = _name_beside(file, ".new")
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
    refuse_url(path, error=error)
    try:
        if not os.fspath(path):
            raise ValueError("it is empty")
        resolved = Path(path).expanduser().resolve()
        str(resolved).encode()  # Orbax takes no other names
        _refuse_long_names(resolved)
    except (TypeError, ValueError, RuntimeError, OSError) as cause:
        why = getattr(cause, "strerror", None) or cause
        raise error(f"{shorten(repr(path), 80)} is no path of a directory: {why}") from None
    return resolved


def refuse_url(path: object, *, error: type[LNTuningError], what: str = "the path") -> None:
    """Raises where a path is a URL, or what pathlib makes of one; anything else is not looked at.

    Args:
        path: what a caller gave.
        error: what is raised.
        what: what the message calls it.

    Example:
        >>> try:
        ...     refuse_url(Path("gs://bucket/run"), error=AdapterError)
        ... except AdapterError as error:
        ...     print(str(error).partition(":/bucket/run' ")[2].partition(".")[0])
        is a URL, and only local paths are read and written
    """
    text = os.fspath(path) if isinstance(path, os.PathLike) else path
    if isinstance(text, str) and _URL.match(text):
        raise error(
            f"{what} {shorten(repr(text))} is a URL, and only local paths are read and written. "
            "Copy it to this machine first, or leave file:// out; where a model or adapter of the "
            "Hugging Face hub may stand, pass its id 'owner/name'"
        )


def identify(directory: Path) -> tuple[int, int] | None:
    """Which directory or file has this name now, to see whether another process has replaced it.

    The number of a directory may be used again, so it comes with when its entries last changed.
    """
    try:
        found = directory.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns


def read_settled(
    find: Callable[[], Path], read: Callable[[Path], _T], files: Collection[str] = ()
) -> tuple[Path, _T]:
    """Reads a directory, and again while another process replaces it under the reader's hands.

    Args:
        find: gives the directory; what it raises is raised.
        read: reads it, and raises AdapterError where files do not fit together.
        files: those of the directory that carry no checksums of one another: where one of them
            changes meanwhile, what was read may be half of each version, and is read again.

    Returns:
        The directory and what was read.

    Raises:
        AdapterError: as `read` does; or the directory never stays as it is.

    Example:
        >>> read_settled(Path.cwd, lambda directory: "read")[1]
        'read'
    """
    for attempt in range(_ATTEMPTS):
        directory = find()
        before = [identify(directory / name) for name in ("", *files)]
        try:
            found = read(directory)
        except AdapterError:
            after = [identify(directory / name) for name in ("", *files)]
            if after == before or attempt == _ATTEMPTS - 1:
                raise
        else:
            if not files or before == [identify(directory / name) for name in ("", *files)]:
                return directory, found
    raise AdapterError(
        f"{find()} is replaced again and again while it is read: stop what writes there"
    )


def list_asides(target: Path) -> list[Path]:
    """Older versions of `target` that an interrupted replacement left beside it, newest first."""
    prefix = _prefix_beside(target, ".old")
    times: dict[Path, int] = {}
    with contextlib.suppress(OSError):
        for path in target.parent.iterdir():
            if path.name.startswith(prefix):
                with contextlib.suppress(FileNotFoundError):  # another process was faster
                    times[path] = path.stat().st_mtime_ns
    return sorted(times, key=lambda path: times[path], reverse=True)


def sync_tree(directory: Path) -> None:
    """Flushes every file and directory below `directory` to the disk, and itself."""
    for parent, _, names in os.walk(directory, topdown=False):
        for name in names:
            sync(Path(parent) / name)
        sync(Path(parent))


def sync(path: Path) -> None:
    """Flushes one file or directory to the disk; a directory only where the file system can."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_FLUSH or not path.is_dir():
            raise
    finally:
        os.close(descriptor)


def _refuse_long_names(path: Path) -> None:
    """Raises where a name is longer than the file system takes; any other trouble comes later."""
    try:
        path.lstat()
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise


def _prefix_beside(target: Path, kind: str) -> str:
    """How the names of a kind begin that stand beside a target: its own name, where that fits."""
    name, longest = target.name, _LONGEST_NAME - len(f"{kind}-{uuid.uuid4().hex[:12]}") - 1
    if len(os.fsencode(name)) > longest:
        name = hashlib.sha256(os.fsencode(name)).hexdigest()[:32]
    return f".{name}{kind}-"


def _name_beside(target: Path, kind: str) -> Path:
    """A new hidden name in the target's own directory, so that a move never crosses disks."""
    return target.with_name(_prefix_beside(target, kind) + uuid.uuid4().hex[:12])


def _list_settled(target: Path, list_own: ListOwn) -> list[str]:
    """What is foreign in one directory: looked at again if another process replaced it meanwhile.

    Else the record of the older version would be held against the files of the newer one.
    """
    foreign: list[str] = []
    for _ in range(_ATTEMPTS):
        before = identify(target)
        foreign = _list_foreign(target, list_own)
        if not foreign or identify(target) == before:
            break
    return foreign


def _list_foreign(directory: Path, list_own: ListOwn) -> list[str]:
    """What the library did not write: names at the top, or files and links further down.

    Where there is anything at the top, such as in a home directory, the rest is not gone through.
    """
    own = set(list_own(directory))
    tops = {path.partition("/")[0] for path in own}
    try:
        foreign = sorted(path.name for path in directory.iterdir() if path.name not in tops)
    except OSError:  # away for a moment, where the system cannot exchange two
        return []
    return foreign or [path for path in list_files(directory) if path not in own]


def _publish(new: Path, target: Path, overwrite: bool) -> None:
    for attempt in range(_ATTEMPTS):
        try:
            if not overwrite or not os.path.lexists(target):
                new.rename(target)  # refused where a directory with contents has appeared
            elif not _exchange(new, target):
                _move_in_two_steps(new, target)
            break
        except OSError as error:
            raced = (errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT)
            if not overwrite or error.errno not in raced or attempt == _ATTEMPTS - 1:
                raise


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
    aside = _name_beside(target, ".old")
    try:
        target.rename(aside)
        new.rename(target)
    except BaseException:
        # Put it back, unless another process has put a whole directory there meanwhile.
        if not os.path.lexists(target):
            with contextlib.suppress(OSError):
                aside.rename(target)
        raise


def _list_outdated(target: Path) -> list[Path]:
    """The older versions beside a target that is there, so that none of them is the only one.

    The target is looked at after the list is made. Another writer may take it aside at any moment,
    and then that version is not in the list.
    """
    asides = list_asides(target)
    if not asides or not target.is_dir():
        return []
    try:
        sync(target.parent)  # what is there must be on the disk before the others go
    except OSError:
        return []
    return asides


def _discard(old: Path, target: Path, list_own: ListOwn) -> None:
    """Deletes what the library wrote of an older version; what is left is kept beside the target.

    Only names that are there are deleted: a record may come from a stranger.
    """
    if old.name.startswith(_prefix_beside(target, ".old")):
        try:
            # A name of its own: other writers clean up too, and readers look for older versions.
            old = old.rename(_name_beside(target, ".new"))
        except OSError:
            return
    elif not os.path.lexists(old):
        return
    left = [target.name]  # a file or a link that took the older version's place
    if old.is_dir() and not old.is_symlink():
        there, own = set(list_files(old)), list_own(old)
        for name in own:
            if name in there:
                with contextlib.suppress(OSError):
                    (old / name).unlink()
        for parent, _, _ in os.walk(old, topdown=False):
            with contextlib.suppress(OSError):  # not empty
                Path(parent).rmdir()
        # NFS keeps a file that is open elsewhere under such a name until it is closed.
        mine = [name for name in list_files(old) if not Path(name).name.startswith(".nfs")]
        left = [name for name in mine if name not in own]
    if left:
        kept = _name_beside(target, ".kept")
        kept = old.rename(kept.with_name(kept.name.removeprefix(".")))
        warn(
            f"{list_names(left)} appeared in {target} while it was replaced, and was not written "
            f"by lntune_jax: it is kept in {kept}. Move it where it belongs",
            UserWarning,
        )


def _get_number(directory: Path) -> int | None:
    try:
        return directory.lstat().st_ino
    except OSError:
        return None

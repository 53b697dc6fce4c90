"""Files and folders that are complete or absent, and on the disk once a call has returned.

What is written takes its place under a temporary name beside it, ``.NAME.HEX.tmp``, which its writer holds a lock on. What
a killed writer left has no lock any more, and the next one at that place takes it away.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import re
import shutil
import stat
import sys
import uuid
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

from kdrs.errors import DataError, KdrsError, MachineError, quoted, shown

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

REMEDY = "check permissions and space, or name another folder with --out"
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NO_EXCHANGE = (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EPERM, errno.EXDEV)
_NO_FOLLOW = getattr(os, "O_NOFOLLOW", 0)
_FOLDER = os.O_RDONLY | getattr(os, "O_DIRECTORY", 0) | _NO_FOLLOW
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | _NO_FOLLOW
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2


# --- one file -------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def replacing(
    path: Path, remedy: str = REMEDY, *, make_folder: bool = False, needed: int | None = None
) -> Iterator[Path]:
    """A temporary name, ending in ``.tmp``, in the folder of ``path``: what is written there takes its place in one go at the
    end. Raises ``MachineError`` if the disk does not take it, with the ``needed`` bytes where they are known; ``path`` is
    then what it was. A link at ``path`` is replaced, never written through."""
    temporary: Path | None = None
    lock: int | None = None
    try:
        if make_folder:
            path.parent.mkdir(parents=True, exist_ok=True)
        _sweep_files(path)
        temporary, lock = _made(path, lambda new: os.close(os.open(new, _NEW_FILE, 0o666)), os.O_RDWR | _NO_FOLLOW)
        with disk_errors():
            yield temporary
        if not _is_at(lock, temporary):  # a library put a file of its own there
            os.close(lock)
            lock = None
            lock = os.open(temporary, os.O_RDWR | _NO_FOLLOW)
            _lock(lock)
        sync(temporary)
        os.replace(temporary, path)
        sync(path.parent)
    except OSError as error:
        raise unwritable(path, error, remedy, needed) from error
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
        if lock is not None:
            os.close(lock)


def write_bytes(path: Path, content: bytes, remedy: str = REMEDY, *, make_folder: bool = False) -> None:
    """Writes a file in one go; errors as of ``replacing``."""
    with replacing(path, remedy, make_folder=make_folder, needed=len(content)) as temporary:
        temporary.write_bytes(content)


def allow_as_usual(path: Path) -> None:
    """Gives a file the permissions that a new one has: safetensors gives 0600, whatever the umask."""
    mask = os.umask(0)
    os.umask(mask)
    path.chmod(0o666 & ~mask)


def sync(path: Path) -> None:
    """Flushes a file or folder to the disk."""
    if path.is_dir() and os.name == "nt":
        return  # Windows opens no folders
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def disk_errors() -> Iterator[None]:
    """What libraries raise where the disk refuses a write, as the ``OSError`` that it is.

    The Rust libraries (safetensors, polars) have errors of their own, or an ``OSError`` without a number: that of the system
    is in their text.
    """
    try:
        yield
    except Exception as error:
        kind, text = type(error), str(error)
        theirs = kind.__module__.partition(".")[0] in ("safetensors", "safetensors_rust", "polars")
        if not theirs and not (isinstance(error, OSError) and error.errno is None):
            raise
        if code := re.search(r"os error (\d+)|Os \{ code: (\d+)", text):  # the second: safetensors before 0.5
            number = int(code[1] or code[2])
            raise OSError(number, os.strerror(number)) from error
        if kind.__name__ == "SafetensorError" and re.search(r"I/O|IoError|write", text):
            raise OSError(text) from error
        raise


def unwritable(path: Path, error: OSError, remedy: str = REMEDY, needed: int | None = None) -> MachineError:
    """What is wrong with writing there, with the space that is left and needed where that is the cause."""
    space = ""
    if error.errno in _NO_SPACE:
        takes = "" if needed is None else f"; {_megabytes(needed)} are needed"
        with contextlib.suppress(OSError):
            place = next(place for place in (path, *path.absolute().parents) if place.exists())
            space = f"{takes}; {_megabytes(shutil.disk_usage(place).free)} are free"
    if error.errno == errno.ENOENT and not path.parent.exists():
        where = shown(str(path.parent), 300)
        return MachineError(
            f"cannot write {shown(str(path), 300)}: the folder {where} does not exist",
            f"make it first: mkdir -p {quoted(path.parent)}; or name another with --out",
        )
    return MachineError(f"cannot write {shown(str(path), 300)}: {error.strerror or shown(str(error))}{space}", remedy)


# --- a folder of files ----------------------------------------------------------------------------------------------


class NewFolder:
    """A folder in the making: files are written into it by name, each of them new, and flushed."""

    def __init__(self, path: Path, handle: int | None):
        self.path, self._handle = path, handle

    def write(self, name: str, content: bytes) -> None:
        """Writes one file. Raises ``OSError``, as ``new_folder`` expects it."""
        at: dict[str, Any] = {} if self._handle is None else {"dir_fd": self._handle}
        place = name if self._handle is not None else self.path / name
        with os.fdopen(os.open(place, _NEW_FILE, 0o666, **at), "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())


@contextlib.contextmanager
def new_folder(
    target: Path,
    names: Collection[str],
    is_ours: Callable[[Path], bool],
    *,
    overwrite: bool,
    kind: str,
    needed: int | None = None,
    refusal: type[KdrsError] = DataError,
) -> Iterator[NewFolder]:
    """A folder beside ``target`` that takes its place in one go at the end, with everything that was written into it.

    ``target`` is absent or empty, or (with ``overwrite``) one of ours: ``is_ours`` says so, and it holds nothing but files
    of ``names``. It then changes places with the new one in one call; where the system has no such call it is moved away
    first, and the next command puts it back should this one die in between. ``kind`` names what it is, ``needed`` the
    bytes it takes. Raises ``refusal`` for a place that may not be taken, ``MachineError`` where the disk refuses; the
    place is then what it was, and nothing is left beside it.
    """
    check_place(target, names, is_ours, overwrite=overwrite, kind=kind, refusal=refusal)
    made = [place for place in (target.parent, *target.parent.parents) if not place.exists()]
    folder: NewFolder | None = None
    lock: int | None = None
    done = False
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        sweep(target, names, is_ours)
        if os.name == "nt":
            temporary = target.with_name(_temporary(target.name, "tmp"))
            temporary.mkdir()
        else:
            temporary, lock = _made(target, os.mkdir, _FOLDER)
        folder = NewFolder(temporary, lock)
        with disk_errors():
            yield folder
        if lock is not None:
            os.fsync(lock)
        # what stands there may have changed
        check_place(target, names, is_ours, overwrite=overwrite, kind=kind, refusal=refusal)
        _take_place(temporary, target, names)
        done = True
    except OSError as error:
        raise unwritable(target, error, needed=needed) from error
    finally:
        if folder is not None:
            remove_folder(folder.path, names)
        if lock is not None:
            os.close(lock)
        for place in () if done else made:
            with contextlib.suppress(OSError):
                place.rmdir()


def check_place(
    target: Path,
    names: Collection[str],
    is_ours: Callable[[Path], bool],
    *,
    overwrite: bool,
    kind: str,
    refusal: type[KdrsError] = DataError,
) -> None:
    """Refuse, before any work is done, a place that ``new_folder`` would refuse. Changes nothing.

    Raises ``refusal`` for what is in the way and ``MachineError`` for a link or a folder that cannot be read or written.
    """
    place = shown(str(target), 300)
    other = "name another folder"
    if not target.name or target.name in (".", ".."):
        raise refusal(f"{place} is no place for a {kind}", "name a new folder")
    try:
        found = os.lstat(target)
    except FileNotFoundError:
        return
    except (OSError, ValueError) as error:
        cause = error.strerror if isinstance(error, OSError) else str(error)
        raise MachineError(f"cannot write {place}: {shown(cause or '')}", REMEDY) from error
    if stat.S_ISLNK(found.st_mode):
        raise MachineError(f"{place} is a link, and what it points to is not replaced", "name the folder itself")
    if not stat.S_ISDIR(found.st_mode):
        raise refusal(f"{place} exists and is no folder", other)
    try:
        entries = sorted(os.scandir(target), key=lambda entry: entry.name)
    except OSError as error:
        raise MachineError(f"cannot read {place}: {error.strerror or error}", REMEDY) from error
    if not entries:
        return
    if not is_ours(target):
        raise refusal(f"{place} exists, is not empty and holds no {kind}", other)
    if not overwrite:
        raise refusal(f"{place} already holds a {kind}", f"{other}, or replace it with --overwrite (overwrite=True)")
    foreign = [entry.name for entry in entries if entry.name not in names or entry.is_dir(follow_symlinks=False)]
    if foreign:
        count = f" and {len(foreign) - 1:,} more" if len(foreign) > 1 else ""
        raise refusal(f"{place} holds a {kind} and also {shown(foreign[0])}{count}", f"move it away, or {other}")


def sweep(target: Path, names: Collection[str], is_ours: Callable[[Path], bool]) -> None:
    """Take away what killed writers of the folder ``target`` left beside it, and put back what one had moved away.

    Touched are folders called ``.NAME.HEX.tmp`` and ``.NAME.HEX.old`` whose writer is dead (nobody holds their lock) and
    which hold nothing but files of ``names``; ``is_ours`` says of a folder that was moved away that it is complete.
    """
    if fcntl is None:
        return
    left = sorted(_left_beside(target, "tmp|old"), key=lambda path: path.suffix)  # .old first
    for path in left:
        with contextlib.suppress(OSError):
            handle = os.open(path, _FOLDER)
            try:
                if not _lock(handle) or not _is_at(handle, path):
                    continue
                if path.suffix == ".old" and not os.path.lexists(target) and is_ours(path):
                    os.rename(path, target)
                    sync(target.parent)
                elif all(entry in names for entry in os.listdir(handle)):
                    remove_folder(path, names)
            finally:
                os.close(handle)


def remove_folder(path: Path, names: Collection[str]) -> None:
    """Remove a folder that holds nothing but files of ``names``; anything else stays, and the folder with it. Links are
    removed, not followed. What the system refuses to remove stays."""
    with contextlib.suppress(OSError):
        handle = os.open(path, _FOLDER) if os.name != "nt" else None
        try:
            for name in names:
                with contextlib.suppress(OSError):
                    if handle is None:
                        (path / name).unlink()
                    else:
                        os.unlink(name, dir_fd=handle)
        finally:
            if handle is not None:
                os.close(handle)
        os.rmdir(path)


def exchange(one: Path, other: Path) -> bool:
    """Let two names change places in one call; False where the system or the file system has no such call."""
    renameat2 = _renameat2()
    if renameat2 is None:
        return False
    if renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in _NO_EXCHANGE:
        return False
    raise OSError(code, os.strerror(code), str(one))


def _renameat2() -> Any:
    if not sys.platform.startswith("linux"):
        return None
    try:
        return ctypes.CDLL(None, use_errno=True).renameat2  # glibc 2.28, musl 1.2.6
    except (OSError, AttributeError):
        return None


def _take_place(new: Path, target: Path, names: Collection[str]) -> None:
    """Give ``new`` the name ``target``. What stood there is removed last; after an error it stands there again."""
    if not os.path.lexists(target) or not os.listdir(target):
        if os.name == "nt" and target.exists():
            target.rmdir()
        os.rename(new, target)
        sync(target.parent)
        return
    if exchange(new, target):
        sync(target.parent)
        return  # `new` is the old one now, and goes as every temporary folder does
    old = target.with_name(_temporary(target.name, "old"))
    lock = os.open(target, _FOLDER) if os.name != "nt" else None
    try:
        if lock is not None and _lock(lock) is False:
            raise OSError(errno.EBUSY, "another process is replacing it", str(target))
        os.rename(target, old)
        try:
            os.rename(new, target)
        except BaseException:
            with contextlib.suppress(OSError):
                os.rename(old, target)
            raise
        sync(target.parent)
        remove_folder(old, names)
    finally:
        if lock is not None:
            os.close(lock)


def _made(target: Path, make: Callable[[Path], None], flags: int) -> tuple[Path, int]:
    """A new file or folder beside ``target``, open and locked."""
    for _ in range(100):
        temporary = target.with_name(_temporary(target.name, "tmp"))
        make(temporary)
        try:
            handle = os.open(temporary, flags)
        except FileNotFoundError:
            continue  # somebody swept it before it was locked
        if _lock(handle) is not False and _is_at(handle, temporary):
            return temporary, handle
        os.close(handle)
    raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), str(target))


def _lock(handle: int) -> bool | None:
    """Lock an open file for as long as it is open: whether that went, None where there are no locks."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _is_at(handle: int, path: Path) -> bool:
    """Whether the open file is still the one of that name."""
    try:
        return os.path.samestat(os.fstat(handle), os.lstat(path))
    except OSError:
        return False


def _sweep_files(path: Path) -> None:
    """Take away what killed writers of the file ``path`` left."""
    if fcntl is None:
        return
    for left in _left_beside(path, "tmp"):
        with contextlib.suppress(OSError):
            handle = os.open(left, os.O_RDWR | _NO_FOLLOW | getattr(os, "O_NONBLOCK", 0))
            try:
                if stat.S_ISREG(os.fstat(handle).st_mode) and _lock(handle) and _is_at(handle, left):
                    left.unlink()
            finally:
                os.close(handle)


def _left_beside(target: Path, suffixes: str) -> list[Path]:
    form = re.compile(re.escape(f".{_short(target.name)}.") + rf"[0-9a-f]{{12}}\.({suffixes})")
    try:
        with os.scandir(target.parent) as entries:
            return [Path(entry.path) for entry in entries if form.fullmatch(entry.name)]
    except OSError:
        return []


def _temporary(name: str, suffix: str) -> str:
    return f".{_short(name)}.{uuid.uuid4().hex[:12]}.{suffix}"


def _short(name: str) -> str:
    """The name, cut so that a temporary name of it is one that file systems take (255 bytes)."""
    return os.fsdecode(os.fsencode(name)[:230])


def _megabytes(count: int) -> str:
    return f"{max(count / 1e6, 0.1):.1f} MB"

"""The folder of a run: whose it is, who works in it, and what a killed process left there.

A folder becomes a run's only if it was absent or empty, or carries kdrs's own mark, the text in LOCK. Nothing is written
through a link: a run directory may come from somebody else.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import socket
import stat
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from kdrs._files import unwritable
from kdrs.data.dataset import is_dataset, put_back
from kdrs.errors import ArtefactError, ConfigError, DataError, InUse, MachineError, quoted, shown

PATH = 300
LOCK = "LOCK"
HEAD = ("LOCK", "ids", "data.json", "env.json", "STATUS.json")
"""What a run directory has before config.toml is written, which makes it a run."""
FOLDERS = ("ids", "checkpoint", "stages", "trackers")
"""A run's folders that hold files of its own."""
OWN_FILE = re.compile(
    r"config\.toml|(env|data|STATUS|teachers|digests|manifest|previous|users|items|report(-\w+)?)\.json|metrics\.jsonl"
    r"|report-\w+\.npz|(model|(state|best)-\d+|\d+)\.safetensors"
)
_TEMPORARY = re.compile(r"\.(?P<name>.+)\.[0-9a-f]{12}\.tmp")
_OF_SAFETENSORS = re.compile(r"\.tmp[A-Za-z0-9]{6}")
_MARK = re.compile(r"(kdrs run: )?process \d+ on \S+, since \d{4}-\d\d-\d\d \d\d:\d\d:\d\d")
_NO_FOLLOW = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NONBLOCK", 0)


def check_there(paths: Iterable[str | Path], remedy: str = "check the path") -> None:
    """Raises ``ArtefactError`` for a run, a teacher or a student that is not there."""
    for path in paths:
        if not Path(path).exists():
            raise ArtefactError(
                f"there is no run directory, teacher file or student file {shown(str(path), PATH)}", remedy
            )


def check_data(path: str | Path, run: Path) -> None:
    """Raises ``DataError`` where the data set of a run that is to go on is not there, whatever else may be wrong with it."""
    put_back(Path(path))
    if not is_dataset(path):
        raise DataError(
            f"the data set of {shown(str(run), PATH)} is not at {shown(str(path), PATH)}",
            f"put it there, or say where it is now: kdrs resume {quoted(run)} --data PATH",
        )


def holds_run(path: Path) -> bool:
    """Whether a folder holds a run that was begun, or what is left of one."""
    if not (path / "config.toml").is_file():
        return False
    return os.path.lexists(path / "data.json") or bool(_MARK.fullmatch(_mark(path / LOCK) or ""))


def check_none_begun(places: Sequence[Path]) -> None:
    """Raises ``ConfigError`` where some of several seeds were begun already. Said before any is trained: the others would be
    trained first, and these fail then."""
    begun = [place for place in places if holds_run(place)]
    if not begun:
        return
    names = [shown(place.name, 60) for place in begun]
    some = ", ".join(names[:6]) + (f" and {len(names) - 6:,} more" if len(names) > 6 else "")
    raise ConfigError(
        f"{shown(str(begun[0].parent), PATH)} holds {'runs' if len(begun) > 1 else 'a run'} already: {some}",
        "--resume takes finished seeds as they are, goes on with begun ones and trains the others; or name another folder with "
        "--out",
    )


def seeds_in(path: Path) -> list[Path]:
    """The runs of a folder that is none itself and holds one a seed, ``seed-N``, by their numbers; of other folders none."""
    if not path.is_dir() or (path / "config.toml").is_file():
        return []
    found = [place for place in path.glob("seed-*") if re.fullmatch(r"seed-\d+", place.name, re.ASCII)]
    begun = [place for place in found if (place / "config.toml").is_file()]
    return sorted(begun, key=lambda place: int(place.name.removeprefix("seed-")))


def check_place(path: Path) -> None:
    """Raises ``ConfigError`` for a place that is neither free, nor a run, nor one whose beginning was cut off by a kill.
    Changes nothing."""
    if not os.path.lexists(path) or holds_run(path):
        return
    foreign = ConfigError(f"{shown(str(path), PATH)} exists and is no run directory", "name another folder with --out")
    if not path.is_dir():
        raise foreign
    with os.scandir(path) as found:
        entries = {entry.name for entry in found}
    if not entries:
        return
    mark = _mark(path / LOCK)
    begun = mark is not None and bool(_MARK.fullmatch(mark)) and all(n in HEAD or is_temporary(n) for n in entries)
    if not begun and not (mark == "" and entries == {LOCK}):  # killed between making the file and writing to it
        raise foreign


def check_free(path: Path, remedy: str = "name another folder with --out") -> None:
    """Raises what `Run.create` would raise for the place of a new run, and makes nothing. The ``remedy`` is for a run that is
    there."""
    if (path / "config.toml").is_file():
        raise ConfigError(f"{shown(str(path), PATH)} already holds a run", remedy)
    check_place(path)
    check_writable(path)


def check_writable(path: Path) -> None:
    """Raises ``MachineError`` where nothing can be made at a path that is not there yet, and makes nothing."""
    nearest = next(place for place in (path, *path.absolute().parents) if place.exists())
    may = os.access(nearest, os.W_OK, effective_ids=os.access in os.supports_effective_ids)
    for wrong, code in ((not nearest.is_dir(), errno.ENOTDIR), (not may, errno.EACCES)):
        if wrong:
            raise unwritable(path, OSError(code, os.strerror(code)))


def is_temporary(name: str) -> bool:
    """Whether a file of this name is one that a run was writing when it was killed."""
    own = _TEMPORARY.fullmatch(name)
    return bool(own and (OWN_FILE.fullmatch(own["name"]) or own["name"] == "README.md")) or bool(
        _OF_SAFETENSORS.fullmatch(name)
    )


def sweep(path: Path) -> None:
    """Takes away what killed writers left in a run whose lock is held. Other files stay, whatever they are called."""
    for folder in (path, *(path / name for name in FOLDERS)):
        with contextlib.suppress(OSError):
            if not stat.S_ISDIR(os.lstat(folder).st_mode) and folder != path:
                continue
            with os.scandir(folder) as entries:
                left = [e.path for e in entries if is_temporary(e.name) and e.is_file(follow_symlinks=False)]
            for name in left:
                os.unlink(name)


def check_inside(path: Path) -> None:
    """Raises ``MachineError`` for links and files in the place of a run's folders, and folders in the place of its files, which
    would else be found out when the run has trained. Changes nothing."""
    for name in (*FOLDERS, "parts", "peers"):
        if os.path.lexists(path / name) and not stat.S_ISDIR(os.lstat(path / name).st_mode):
            raise _no_folder(path / name)
    for folder in (path, *(path / name for name in FOLDERS if (path / name).is_dir())):
        with os.scandir(folder) as entries:
            for entry in entries:
                if OWN_FILE.fullmatch(entry.name) and entry.is_dir(follow_symlinks=False):
                    raise MachineError(
                        f"{shown(entry.path, PATH)} is a folder; a run has a file there",
                        "take it away, or restore the file",
                    )


def own_folder(path: Path) -> Path:
    """A folder in a run, made if it is not there. Raises ``MachineError`` for a link or a file in its place."""
    try:
        with contextlib.suppress(FileExistsError):
            os.mkdir(path)
        if not stat.S_ISDIR(os.lstat(path).st_mode):
            raise _no_folder(path)
    except OSError as error:
        raise unwritable(path, error) from error
    return path


@contextlib.contextmanager
def claimed(stem: Path) -> Iterator[Path]:
    """A new folder of that name, or with a number behind it: no other process gets the same. Taken away again where it stays
    empty. Raises ``MachineError`` if none can be made."""
    made: list[Path] = []
    place, count = stem, 1
    try:
        try:
            made += [folder for folder in (stem.parent, *stem.parent.parents) if not folder.exists()]
            stem.parent.mkdir(parents=True, exist_ok=True)
            while True:
                try:
                    os.mkdir(place)
                    break
                except FileExistsError:
                    count += 1
                    place = stem.with_name(f"{stem.name}-{count}")
        except OSError as error:
            raise unwritable(place, error) from error
        made.insert(0, place)
        yield place
    finally:
        for folder in made:
            with contextlib.suppress(OSError):
                folder.rmdir()


def append(path: Path, content: bytes) -> None:
    """Adds to a file, made if it is not there, or leaves it as it was. Raises ``MachineError``; links are not followed."""
    try:
        handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | _NO_FOLLOW, 0o666)
        try:
            before = os.fstat(handle)
            if not stat.S_ISREG(before.st_mode):
                raise OSError(errno.EINVAL, "it is no file")
            try:
                written = os.write(handle, content)
                if written < len(content):  # the disk is full: the next call says so
                    os.write(handle, content[written:])
            except OSError:
                with contextlib.suppress(OSError):
                    os.ftruncate(handle, before.st_size)
                raise
        finally:
            os.close(handle)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise MachineError(f"{shown(str(path), PATH)} is a link", "put the file itself in its place") from error
        raise unwritable(path, error, needed=len(content)) from error


class Lock:
    """The lock of a run directory: held by a process while it works there, released by the kernel however it ends."""

    def __init__(self, path: Path):
        """Raises ``InUse`` if another process holds it, ``MachineError`` if what is called LOCK is no such file."""
        import fcntl

        file = path / LOCK
        name = shown(str(file), PATH)
        try:
            self._handle = os.open(file, os.O_RDWR | os.O_CREAT | _NO_FOLLOW, 0o666)
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
                raise _no_lock(name) from error
            raise
        try:
            found = os.fstat(self._handle)
            if not stat.S_ISREG(found.st_mode) or found.st_nlink != 1:
                raise _no_lock(name)
            text = os.read(self._handle, 1024).decode("utf-8", "replace")
            if text and not _MARK.fullmatch(text):
                raise _no_lock(name)
            try:
                fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                holder = text.removeprefix("kdrs run: ") or "another process"
                raise InUse(
                    f"{shown(str(path), PATH)} is in use by {shown(holder, 200)}", "wait for it, or name another folder"
                ) from None
            if not os.path.samestat(os.fstat(self._handle), os.lstat(file)):
                raise MachineError(f"{name} was taken away meanwhile", "try again")
            since = time.strftime("%Y-%m-%d %H:%M:%S")
            mark = f"kdrs run: process {os.getpid()} on {socket.gethostname() or '-'}, since {since}".encode()
            try:
                os.pwrite(self._handle, mark, 0)  # over the former one, then cut: it is ours at every moment
                os.ftruncate(self._handle, len(mark))
            except OSError:
                if not text:
                    os.unlink(file)
                raise
        except BaseException:
            os.close(self._handle)
            raise

    def release(self) -> None:
        os.close(self._handle)


def _no_lock(name: str) -> MachineError:
    return MachineError(f"{name} is no lock of a kdrs run, and is not written to", "take it away")


def _no_folder(path: Path) -> MachineError:
    return MachineError(
        f"{shown(str(path), PATH)} is a link or a file; kdrs writes into folders of the run itself",
        "put a folder in its place",
    )


def _mark(path: Path) -> str | None:
    """The text of a LOCK file; None if there is no such file."""
    try:
        handle = os.open(path, os.O_RDONLY | _NO_FOLLOW)
    except OSError:
        return None
    try:
        regular = stat.S_ISREG(os.fstat(handle).st_mode)
        return os.read(handle, 1024).decode("utf-8", "replace") if regular else None
    finally:
        os.close(handle)

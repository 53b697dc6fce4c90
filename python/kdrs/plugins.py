"""Classes that kdrs does not bring along: those of installed packages, by their entry points, and ``module:Class``.

Code is imported because a run file or a command names it, and by Python's own import alone. What a file of weights holds names
no code, no run's folder is ever searched, and a module that lies in one is refused however it came onto the path.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import os
import re
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

from kdrs.errors import ConfigError, nearest, quoted, shown

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

T = TypeVar("T")

OF_A_RUN = ("config.toml", "data.json", "STATUS.json")
"""What every run directory that can be opened holds."""


class ClassError(ConfigError):
    """A class that is not there, or cannot be used (exit code 2; where a run needs it to be opened, `MissingKnowledge`)."""


@dataclass(frozen=True)
class Kind(Generic[T]):
    """A kind of class that users may bring along."""

    what: str
    """As messages call it: model."""
    group: str
    """The group of entry points: kdrs.models."""
    known: Mapping[str, type[T]]
    """Those that come along. Their names always win."""
    base: type
    """What a class must be derived from."""
    derive: str
    """How users call that."""
    defines: tuple[str, ...]
    """Methods that it must define itself."""
    config: type | None = None
    """What its ``Config`` must be derived from, where it has options."""
    options: str = ""
    """How users call that."""
    built_with: tuple[str, ...] = ()
    """What it is built with, by place."""

    def find(self, name: str) -> type[T]:
        """The class of that name. Raises ``ClassError`` where there is none, or it cannot be imported or used."""
        if name in self.known:
            return self.known[name]
        found = source_of(self, name)
        if found is None:
            if "." in name:
                start, _, end = name.rpartition(".")
                raise ClassError(
                    f"unknown {self.what} {shown(name)!r}",
                    f"a class of your own is written as {shown(f'{start}:{end}')}",
                )
            raise ClassError(
                f"unknown {self.what} {shown(name)!r}", nearest(name, {*self.known, *installed(self.group)})
            )
        return _usable(self, name, found)


@dataclass(frozen=True)
class Source:
    """Where a class is to be had."""

    module: str
    attribute: str
    package: str | None = None
    """Name and version of the installed package whose entry point it is."""


def is_reference(name: str) -> bool:
    """Whether a name is that of a class: ``package.module:Class``."""
    return ":" in name


def label(name: str) -> str:
    """A short name: that of the class without its module, in letters that files and terms may have."""
    if not is_reference(name):
        return name
    return re.sub(r"[^A-Za-z0-9_+-]+", "-", name.rpartition(":")[2].rpartition(".")[2]).strip("-_") or "own"


def source_of(kind: Kind[Any], name: str) -> Source | None:
    """Where the class of that name is to be had, which imports nothing; None for one that comes along or is not known."""
    if name in kind.known:
        return None
    if is_reference(name):
        module, _, attribute = name.partition(":")
        if not all(part.isidentifier() for part in (*module.split("."), *attribute.split("."))):
            raise ClassError(f"{kind.what} {shown(name)!r} names no class", "write it as package.module:Class")
        return Source(module, attribute)
    entries = installed(kind.group).get(name, ())
    packages = [_package(entry) for entry in entries]
    if len(entries) > 1:
        choices = " or ".join(f"{entry.module}:{entry.attr}" for entry in entries)
        raise ClassError(
            f"the {kind.what} {shown(name)!r} is in {len(entries)} packages: {shown(', '.join(packages), 300)}",
            f"name the class: {shown(choices, 300)}",
        )
    return Source(entries[0].module, entries[0].attr, packages[0]) if entries else None


def installed(group: str) -> Mapping[str, tuple[EntryPoint, ...]]:
    """Entry points of installed packages by name. None of them is imported."""
    return _installed(group, tuple(sys.path))


@cache
def _installed(group: str, path: tuple[str, ...]) -> Mapping[str, tuple[EntryPoint, ...]]:
    from importlib.metadata import entry_points

    found: dict[str, dict[str, EntryPoint]] = {}
    for entry in entry_points(group=group):
        # a package that is seen twice on the path has the same ones
        found.setdefault(entry.name, {}).setdefault(f"{_package(entry)} {entry.value}", entry)
    return {name: tuple(entries[key] for key in sorted(entries)) for name, entries in sorted(found.items())}


def descriptions(kind: Kind[Any]) -> dict[str, str]:
    """Package and class of every installed one whose name is not that of one that comes along."""
    return {
        name: "; ".join(f"{_package(entry)}: {entry.value}" for entry in entries)
        for name, entries in installed(kind.group).items()
        if name not in kind.known
    }


def _package(entry: EntryPoint) -> str:
    return "an unknown package" if entry.dist is None else f"{entry.dist.name} {entry.dist.version}"


# --- importing ------------------------------------------------------------------------------------------------------

_folders: list[str] = []


def look_in(*folders: str | Path) -> None:
    """Folders that are searched too, behind all that Python searches, once a class is named that is not there. The command line
    names the run file's and the current one."""
    _folders[:] = [os.path.abspath(folder) for folder in folders]


def folders() -> tuple[str, ...]:
    """Those of `look_in`."""
    return tuple(_folders)


_closed: list[Path] = []


@contextmanager
def closed(folder: str | Path) -> Iterator[None]:
    """No module that lies in this folder, or below, is imported inside."""
    _closed.append(Path(folder).resolve())
    try:
        yield
    finally:
        _closed.pop()


def _usable(kind: Kind[T], name: str, source: Source) -> type[T]:
    where = f"{kind.what} {shown(name, 200)!r}"
    if source.package is not None:
        where += f" of the package {shown(source.package)}"
    value: Any = _imported(where, source)
    for part in source.attribute.split("."):
        if not hasattr(value, part):
            own = [
                key for key, other in vars(value).items() if isinstance(other, type) and issubclass(other, kind.base)
            ]
            raise ClassError(
                f"{where}: {shown(source.module)} has no {shown(part)}",
                nearest(part, own) if own else f"define it there, a class derived from {kind.derive}",
            )
        value = getattr(value, part)
    if not (isinstance(value, type) and issubclass(value, kind.base)):
        raise ClassError(
            f"{where}: {shown(source.attribute)} is {_described(value)}, not derived from {kind.derive}",
            f"write class {shown(source.attribute)}({kind.derive})",
        )
    for method in kind.defines:
        if getattr(value, method) is getattr(kind.base, method):
            raise ClassError(
                f"{where}: {shown(source.attribute)} defines no {method}", f"define it, as {kind.derive} says"
            )
    config = getattr(value, "Config", None)
    if kind.config is not None and not (isinstance(config, type) and issubclass(config, kind.config)):
        raise ClassError(
            f"{where}: its Config is {_described(config)}, which are no options",
            f"derive it from {kind.options}, or leave it out",
        )
    _check_signature(kind, where, value)
    known = {"kdrs", "torch", *sys.stdlib_module_names}
    for module in {cls.__module__ for cls in value.__mro__}:  # what it inherits may be of other files
        if module in sys.modules and module.partition(".")[0] not in known:
            _note_used(module)
    return cast("type[T]", value)


def _check_signature(kind: Kind[Any], where: str, cls: type[Any]) -> None:
    """Raises ``ClassError`` for a class that cannot be called as it will be."""
    try:
        signature = inspect.signature(cls.__init__)
    except (TypeError, ValueError):  # it has none that can be read
        return
    try:
        signature.bind(None, *kind.built_with)
    except TypeError as error:
        raise ClassError(
            f"{where}: {shown(cls.__name__)}.__init__ takes {shown(str(signature), 200)}: {shown(str(error))}",
            f"write it as def __init__(self, {', '.join(kind.built_with)})"
            if kind.built_with
            else "it is built with nothing: def __init__(self)",
        ) from None


def _described(value: Any) -> str:
    return f"the class {shown(value.__name__)}" if isinstance(value, type) else f"a {type(value).__name__}"


def _imported(where: str, source: Source) -> ModuleType:
    module = source.module
    if module in sys.modules:
        return sys.modules[module]
    _search_further()
    _check_place(where, module)
    try:
        return importlib.import_module(module)
    except KeyboardInterrupt:
        raise
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if module == missing or module.startswith(f"{missing}."):
            package = "the package that has it" if source.package is None else shown(source.package)
            raise ClassError(
                f"{where}: there is no module {shown(missing)}",
                f"install {package}, or name the folder that {shown(missing)} lies in: PYTHONPATH=FOLDER kdrs ...",
            ) from error
        raise ClassError(
            f"{where}: its module {shown(module)} needs {shown(missing)}, which is not installed", "install that too"
        ) from error
    except BaseException as error:  # a script may even leave by sys.exit
        said = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        raise ClassError(
            f"{where}: its module {shown(module)} cannot be imported: {shown(said, 300)}{_line_of(error, module)}",
            "mend it; kdrs --debug ... shows the traceback",
        ) from error


def _search_further() -> None:
    if not sys.flags.safe_path:  # python -P: nothing but what is installed
        for folder in _folders:
            if folder not in sys.path:
                sys.path.append(folder)
                importlib.invalidate_caches()


def _check_place(where: str, module: str) -> None:
    """Raises ``ClassError`` for a module that lies in a run directory: whoever gives a run away must not give code away with
    it."""
    top = module.partition(".")[0]
    if top in sys.modules:
        return
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return
    if spec is None:
        return
    places = [*([spec.origin] if spec.has_location and spec.origin else []), *(spec.submodule_search_locations or ())]
    for place in places:
        for folder in Path(place).resolve().parents:
            if folder in _closed or all((folder / name).is_file() for name in OF_A_RUN):
                raise ClassError(
                    f"{where}: the module {shown(top)} lies in the run directory {shown(str(folder), 300)}, where no code is "
                    "taken from",
                    f"look at it, and put it into a folder of its own: PYTHONPATH=FOLDER kdrs ..., not {quoted(folder)}",
                )


def _line_of(error: BaseException, module: str) -> str:
    if isinstance(error, SyntaxError) and error.filename:
        return f" ({shown(error.filename, 300)}:{error.lineno})"
    spec = importlib.util.find_spec(module) if "." not in module else None
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if spec is not None and frame.filename == spec.origin:
            return f" ({shown(frame.filename, 300)}:{frame.lineno})"
    return ""


# --- whose code it was ----------------------------------------------------------------------------------------------

_used: set[str] = set()
"""Files, and folders of packages, that classes were taken from."""


def file_of(source: Source) -> str | None:
    """The file that an imported class came from, if it has one."""
    found = getattr(sys.modules.get(source.module), "__file__", None)
    return found if isinstance(found, str) else None


def _note_used(module: str) -> None:
    top = sys.modules.get(module.partition(".")[0])
    folders = [str(folder) + os.sep for folder in getattr(top, "__path__", ())]
    own = getattr(sys.modules[module], "__file__", None)
    _used.update(folders or ([own] if own else []))


def blamed(error: BaseException) -> str | None:
    """File and line of the code of one's own that an error came out of, the innermost; None if none was at work."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if any(
            frame.filename == place or (place[-1] == os.sep and frame.filename.startswith(place)) for place in _used
        ):
            return f"{shown(frame.filename, 300)}:{frame.lineno}"
    return None

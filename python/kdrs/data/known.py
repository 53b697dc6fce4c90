"""Data sets that are known by name: where their files come from, what they must hash to, how they are prepared."""

from __future__ import annotations

import hashlib
import io
import logging
import os
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from kdrs._files import write_bytes
from kdrs.data._guard import guarded
from kdrs.data._options import Options
from kdrs.data.prepare import PRESETS, Recipe
from kdrs.errors import ConfigError, DataError, KdrsError, MachineError, nearest, shown

log = logging.getLogger("kdrs.data")

ATTEMPTS = 3
TIMEOUT = 60.0
PAUSE = 1.0
"""Seconds before the second attempt; doubled before the third."""
MOST_DOWNLOADED = 200 * 2**20
ELSEWHERE = "name another folder with --to or KDRS_CACHE"


class Origin(Protocol):
    """Somewhere a file can be had from; ``str`` of it is shown to users."""

    def bytes(self) -> bytes:
        """The file. Raises ``MachineError`` if it cannot be had."""


@dataclass(frozen=True)
class Url:
    """A file at a public address."""

    url: str

    def bytes(self) -> bytes:
        import http.client
        import urllib.error
        import urllib.request

        for attempt in range(1, ATTEMPTS + 1):
            try:
                with urllib.request.urlopen(self.url, timeout=TIMEOUT) as answer:
                    data = answer.read(MOST_DOWNLOADED + 1)
                if len(data) > MOST_DOWNLOADED:
                    raise MachineError(f"{self.url} sends more than {MOST_DOWNLOADED >> 20} MB")
                return data
            except (urllib.error.URLError, http.client.HTTPException, OSError) as error:
                refused = isinstance(error, urllib.error.HTTPError) and 400 <= error.code < 500
                if attempt == ATTEMPTS or refused:
                    raise MachineError(f"cannot fetch {self.url}: {shown(str(error))}") from error
                log.warning("attempt %d of %d failed for %s: %s", attempt, ATTEMPTS, self.url, error)
                time.sleep(PAUSE * 2 ** (attempt - 1))
        raise AssertionError("unreachable")

    def __str__(self) -> str:
        return self.url


@dataclass(frozen=True)
class ZipMember:
    """One member of a zip archive; ``head`` is put before it."""

    archive: Origin
    member: str
    head: bytes = b""

    def bytes(self) -> bytes:
        return self.head + member_of(self.archive.bytes(), self.member, str(self.archive))

    def __str__(self) -> str:
        return f"{self.archive} ({self.member})"


@dataclass(frozen=True)
class Wheel:
    """A file inside a Python wheel, downloaded by pip and never installed."""

    requirement: str
    member: str

    def bytes(self) -> bytes:
        import subprocess

        with tempfile.TemporaryDirectory(prefix="kdrs-") as folder:
            command = [
                *(sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--quiet"),
                *("--disable-pip-version-check", "--retries", str(ATTEMPTS), "--dest", folder, self.requirement),
            ]
            try:
                done = subprocess.run(command, capture_output=True, text=True, timeout=10 * TIMEOUT, check=False)
            except (OSError, subprocess.TimeoutExpired) as error:
                raise MachineError(f"pip cannot download {self.requirement}: {error}") from error
            wheels = list(Path(folder).glob("*.whl"))
            if done.returncode or len(wheels) != 1:
                reason = (done.stderr.strip().splitlines() or ["pip gave no reason"])[-1]
                raise MachineError(f"pip cannot download {self.requirement}: {shown(reason, 200)}")
            return member_of(wheels[0].read_bytes(), self.member, wheels[0].name)

    def __str__(self) -> str:
        return f"wheel {self.requirement} ({self.member})"


def member_of(archive: bytes, member: str, name: str) -> bytes:
    """One member of a zip archive, read in memory. Raises ``DataError`` if there is none, or it is too large."""
    if not archive.startswith(b"PK"):
        raise DataError(f"{name} is no zip archive: it begins {shown(archive[:40])}")
    with guarded(f"{name} is no zip archive", "fetch it again"), zipfile.ZipFile(io.BytesIO(archive)) as opened:
        if member not in opened.namelist():
            raise DataError(f"{name} has no member {member}")
        if opened.getinfo(member).file_size > MOST_DOWNLOADED:
            raise DataError(f"{member} in {name} unpacks to more than {MOST_DOWNLOADED >> 20} MB")
        return opened.read(member)


@dataclass(frozen=True)
class KnownFile:
    """A file, its SHA-256 and its origins, tried in this order."""

    name: str
    sha256: str
    origins: tuple[Origin, ...] = ()


@dataclass(frozen=True)
class Known:
    """A data set: its files by part ("all" for one file to be split), what it is, and its usual preparation."""

    name: str
    title: str
    source: str
    """Who publishes it and on what terms."""
    files: Mapping[str, KnownFile]
    recipe: Recipe
    folders: tuple[str, ...] = ()
    """Names of its folder below KDRS_DATA, besides its own name."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    terms: str | None = None
    """On what terms it may be used, where its publisher says so."""


_GITHUB = "https://raw.githubusercontent.com"
_ML_HEAD = b"user_id:token\titem_id:token\trating:float\ttimestamp:float\n"

KNOWN: dict[str, Known] = {
    known.name: known
    for known in (
        Known(
            "ml-100k",
            "MovieLens 100K in RecBole's atomic form",
            "GroupLens, https://grouplens.org/datasets/movielens/100k (research use; not to be redistributed)",
            {
                "all": KnownFile(
                    "ml-100k.inter",
                    "4edb74e2a81178c2ba9ff381495f754f996c4aea351b1272ca36b43da0935eff",
                    (
                        Wheel("recbole==1.2.1", "recbole/dataset_example/ml-100k/ml-100k.inter"),
                        # The same rows under RecBole's header: byte for byte the same file.
                        ZipMember(
                            Url("https://files.grouplens.org/datasets/movielens/ml-100k.zip"),
                            "ml-100k/u.data",
                            _ML_HEAD,
                        ),
                    ),
                )
            },
            Recipe(Options(format="inter"), min_rating=4.0, k_core=5, split="leave-one-out"),
            terms="research use; neither to be redistributed nor used commercially without permission",
        ),
        Known(
            "citeulike-t",
            "CiteULike-t: who keeps which scientific article",
            "Wang, Chen and Li (IJCAI 2013), https://github.com/js05212/citeulike-t",
            {
                "all": KnownFile(
                    "users.dat",
                    "02d5d429b2c0362e0ed79f6ef204666b4092563d21493abf4dfb521e8a7078bf",
                    (Url(f"{_GITHUB}/js05212/citeulike-t/master/users.dat"),),
                )
            },
            Recipe(Options(format="counted-lists"), **PRESETS["loo-499"]),
            ("citeulike",),
        ),
        Known(
            "citeulike-loo",
            "CiteULike-t, the leave-one-out split (seed 0) of the DE-RRD code; candidates are drawn anew",
            "Kang et al. (CIKM 2020), https://github.com/SeongKu-Kang/DE-RRD_CIKM20",
            {
                "train": KnownFile("train.tsv", "06770d084d9d13b1e81207acf7dc31c5ff0e106a6c3ce4d3a1775f2dd5610119"),
                "valid": KnownFile("valid.tsv", "8f8dd3d7690a5b1526f4f830bc5bbf38cfd157b630942fd38679f527be0ef520"),
                "test": KnownFile("test.tsv", "8ff7f0ed693720d7e628e16ce1c1cf8faa8e7148de961b736b5c719675c142eb"),
            },
            Recipe(Options(format="tsv", header=True), split="given", candidates=499, id_order="numeric"),
            ("citeulike_loo",),
        ),
        Known(
            "foursquare",
            "Foursquare check-ins as used by SAE-NAD and HyperKDMA",
            "Ma et al. (CIKM 2018)",
            {"all": KnownFile("users.dat", "808c42ee414bdef5990e4f61143e2e02f1d266c59b303f37b4050a99d2536c78")},
            Recipe(Options(format="counted-lists"), **PRESETS["loo-499"]),
        ),
        Known(
            "gowalla",
            "Gowalla check-ins in the NGCF and LightGCN split; no validation part",
            "He et al. (SIGIR 2020), https://github.com/kuandeng/LightGCN",
            {
                part: KnownFile(
                    f"{part}.txt", digest, (Url(f"{_GITHUB}/kuandeng/LightGCN/master/Data/gowalla/{part}.txt"),)
                )
                for part, digest in (
                    ("train", "0f086326b28a56c2e6dcb81d86ee72d4ccb7eed3a8d26788392356d8f51111cc"),
                    ("test", "099a2a73924e4b754dc6efd730d764f492321b53c38eb93298850c83acf57be3"),
                )
            },
            Recipe(Options(format="user-lists"), split="given", id_order="numeric"),
        ),
        Known(
            "beauty",
            "Amazon Beauty, 5-core, each user's items in order of time",
            "Zhou et al. (CIKM 2020), https://github.com/RUCAIBox/CIKM2020-S3Rec",
            {
                "all": KnownFile(
                    "Beauty.txt",
                    "226cce9c3105299ca0db9615d7d3fb32b3175e90da43100ae352599f0f0107b8",
                    (Url(f"{_GITHUB}/RUCAIBox/CIKM2020-S3Rec/master/data/Beauty.txt"),),
                )
            },
            Recipe(Options(format="user-lists"), split="last-n", id_order="numeric"),
        ),
    )
}


def known(name: str) -> Known:
    """The data set of a name, ``_`` and ``-`` alike. Raises ``ConfigError`` with the nearest name."""
    wanted = name.lower().replace("_", "-")
    for data in KNOWN.values():
        if wanted in (data.name, *(folder.replace("_", "-") for folder in data.folders)):
            return data
    raise ConfigError(f"unknown data set {shown(name)}", nearest(name, KNOWN))


def known_by_files(sources: Iterable[Mapping[str, Any]]) -> Known | None:
    """The data set that a prepared one was made from: all its ``sources`` (records with ``sha256``) are files of it."""
    digests = {str(source.get("sha256")) for source in sources}
    for data in KNOWN.values():
        if digests and digests <= {file.sha256 for file in data.files.values()}:
            return data
    return None


def is_known(name: str) -> bool:
    """Whether ``known`` finds the name."""
    try:
        known(name)
    except ConfigError:
        return False
    return True


def cache_folder() -> Path:
    """Where fetched files are kept: KDRS_CACHE, else the user's cache folder."""
    if os.environ.get("KDRS_CACHE"):
        return Path(os.environ["KDRS_CACHE"])
    from kdrs._libraries import platformdirs

    return Path(platformdirs.user_cache_dir("kdrs"))


def fetch(name: str, to: str | os.PathLike[str] | None = None) -> dict[str, Path]:
    """The files of a known data set by part, each checked against its SHA-256.

    They are looked for in ``to``, in KDRS_DATA (as ``<name>/<file>``) and in the cache, then fetched from their
    origins, unless KDRS_OFFLINE=1. With ``to`` they end there, else where they were found, or in the cache. A file
    is complete and right, or absent.

    Raises ``ConfigError`` for an unknown name, ``DataError`` for a file of another checksum, ``MachineError`` if a
    file is nowhere to be had.
    """
    data = known(name)
    return {part: _fetched(data, file, None if to is None else Path(to)) for part, file in data.files.items()}


def _fetched(data: Known, file: KnownFile, to: Path | None) -> Path:
    cached = cache_folder() / "data" / data.name / file.name
    target = cached if to is None else to / file.name
    if to is not None and target.exists():
        if _digest(target) == file.sha256:
            return target
        raise DataError(
            f"{shown(str(target))} is there already and is not {file.name} of {data.name} (SHA-256 differs)",
            "move it away, or name another folder",
        )
    places = [cached]
    if os.environ.get("KDRS_DATA"):
        folders = (data.name, *data.folders)
        places = [*(Path(os.environ["KDRS_DATA"]) / folder / file.name for folder in folders), cached]
    for place in places:
        if not place.is_file():
            continue
        if _digest(place) != file.sha256:
            log.warning("%s is not %s of %s (SHA-256 differs): passed over", place, file.name, data.name)
            continue
        if to is not None:
            write_bytes(target, place.read_bytes(), ELSEWHERE, make_folder=True)
            return target
        return place
    write_bytes(target, _downloaded(data, file, cached), ELSEWHERE, make_folder=True)
    return target


def _downloaded(data: Known, file: KnownFile, cached: Path) -> bytes:
    by_hand = (
        f"place {file.name} (SHA-256 {file.sha256}) from {data.source} in {cached.parent}, "
        f"or in $KDRS_DATA/{(data.name, *data.folders)[-1]}"
    )
    if os.environ.get("KDRS_OFFLINE", "") not in ("", "0"):
        raise MachineError(f"{file.name} of {data.name} is not here and KDRS_OFFLINE is set", by_hand)
    if not file.origins:
        raise MachineError(f"{file.name} of {data.name} has no public address that kdrs knows", by_hand)
    log.info("%s: %s", data.title, data.source)
    failures: list[KdrsError] = []
    for origin in file.origins:
        log.info("fetching %s", origin)
        try:
            content = origin.bytes()
        except (MachineError, DataError) as error:
            log.warning("%s", error.cause)
            failures.append(error)
            continue
        found = hashlib.sha256(content).hexdigest()
        if found == file.sha256:
            return content
        page = content.lstrip()[:15].lower()
        kind = "an HTML page" if page.startswith((b"<!doctype html", b"<html")) else f"SHA-256 {found[:16]}..."
        failures.append(
            DataError(f"{origin} gave {kind}, {len(content):,} bytes; wanted SHA-256 {file.sha256[:16]}...")
        )
        log.warning("%s", failures[-1].cause)
    last = next((error for error in failures if isinstance(error, DataError)), failures[-1])
    raise type(last)(f"{last.cause}; nothing was kept", by_hand) from last


def _digest(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise MachineError(f"cannot read {shown(str(path))}: {error.strerror or error}") from error

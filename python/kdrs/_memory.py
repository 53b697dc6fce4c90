"""How much memory there is, and how much of it this process may still take."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

_CGROUPS = Path("/sys/fs/cgroup")


def memory_limit() -> int | None:
    """Bytes that this process may use: the cgroup's limit where there is one, else the machine's memory."""
    limits = [limit for limit, _ in _cgroup_limits()]
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        limits.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    return min(limits, default=None)


def memory_at_hand() -> int | None:
    """Bytes that this process may still take: what its cgroups, the machine and its own limits (``ulimit``) leave.

    ``None`` where the system tells none of them.
    """
    left = [limit - used for limit, used in _cgroup_limits()]
    available = _field(Path("/proc/meminfo"), "MemAvailable:")
    if available is not None:
        left.append(available * 1024)
    left += _left_by_ulimit()
    return None if not left else max(min(left), 0)


def _cgroup_limits() -> Iterator[tuple[int, int]]:
    """Limit and use (file pages that can be dropped apart), in bytes, of each cgroup from this process's to the root."""
    below = ""
    for line in (_text(Path("/proc/self/cgroup")) or "").splitlines():
        _, controllers, path = (*line.split(":", 2), "", "")[:3]
        if controllers in ("", "memory"):
            below = path.strip("/")
    folders = [_CGROUPS, _CGROUPS / "memory"]
    parts = [part for part in below.split("/") if part not in ("", "..")]
    folders += [root.joinpath(*parts[:n]) for root in folders[:2] for n in range(1, len(parts) + 1)]
    for folder in folders:
        for most, used, droppable in (
            ("memory.max", "memory.current", "inactive_file"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        ):
            limit = _text(folder / most)
            if limit is not None and limit.isdecimal() and int(limit) < 1 << 60:
                taken = _text(folder / used) or ""
                cache = _field(folder / "memory.stat", droppable) or 0
                yield int(limit), max((int(taken) if taken.isdecimal() else 0) - cache, 0)


def _left_by_ulimit() -> list[int]:
    """Bytes that the limits on address space and data leave this process."""
    try:
        import resource
    except ImportError:  # no Unix
        return []
    sizes = (_text(Path("/proc/self/statm")) or "").split()
    page = os.sysconf("SC_PAGE_SIZE")
    left = []
    for kind, place in ((resource.RLIMIT_AS, 0), (resource.RLIMIT_DATA, 5)):
        limit = resource.getrlimit(kind)[0]
        if limit != resource.RLIM_INFINITY:
            left.append(limit - (int(sizes[place]) * page if len(sizes) > place else 0))
    return left


def _text(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return None


def _field(path: Path, name: str) -> int | None:
    """The number that follows ``name`` on its line."""
    for line in (_text(path) or "").splitlines():
        words = line.split()
        if len(words) >= 2 and words[0] == name and words[1].isdecimal():
            return int(words[1])
    return None

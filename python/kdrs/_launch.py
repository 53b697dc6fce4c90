"""Whether this process is one of several that torchrun started, from the environment alone: nothing is imported for it."""

from __future__ import annotations

import os
from typing import NamedTuple

from kdrs.errors import ConfigError, shown

NEEDED = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
"""What torchrun sets for each of its processes."""


class Launch(NamedTuple):
    """A process among those that were started together."""

    rank: int
    """From 0; 0 is the one that writes and prints."""
    size: int
    """How many there are, over all machines."""
    local_rank: int
    """Its number on its machine, and that of its CUDA device."""
    restarts: int
    """How often torchrun has started all of them anew (``--max-restarts``)."""

    @property
    def first(self) -> bool:
        return self.rank == 0


def launched() -> Launch | None:
    """What torchrun says of this process; None for one that runs by itself."""
    try:
        rank, size, local = (int(os.environ[name]) for name in NEEDED[:3])
    except (KeyError, ValueError):
        return None
    if size < 2 or not 0 <= rank < size or not all(name in os.environ for name in NEEDED):
        return None
    restarts = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return Launch(rank, size, local, int(restarts) if restarts.isdecimal() else 0)


def check_launched() -> None:
    """Raises ``ConfigError`` where the environment says that this is one of several processes, and not all that each must know:
    it would do by itself what all of them were started for, once in each."""
    values = {name: os.environ.get(name, "") for name in NEEDED}
    said = {
        name: values[name] for name, alone in (("WORLD_SIZE", "1"), ("RANK", "0")) if values[name] not in ("", alone)
    }
    if values["WORLD_SIZE"] == "1" or not said or launched() is not None:
        return
    told = " and ".join(f"{name}={shown(value)}" for name, value in said.items())
    missing = [name for name, value in values.items() if not value]
    what = (
        f"{', '.join(missing)} not set"
        if missing
        else f"LOCAL_RANK={shown(values['LOCAL_RANK'])}: they do not go together"
    )
    raise ConfigError(
        f"the environment says that several processes were started ({told}), with {what}",
        "start them by torchrun, which sets all of it; to run this one by itself: env -u WORLD_SIZE -u RANK kdrs ...",
    )

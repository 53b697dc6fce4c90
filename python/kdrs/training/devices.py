"""Ids on their way to the device that trains: copies that nobody waits for, and what is known of ids without asking there.

A step on an accelerator is queued; whatever needs a value of a tensor waits until all before it is done. The ids of a batch
come from the host, which can go on knowing them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

PINNED = 64 << 20
"""Bytes that are copied by way of pinned memory at most."""
_HOST = "_kdrs_host"


def to_device(ids: NDArray[Any], device: torch.device) -> Tensor:
    """int64, of the shape of ``ids``, integers of any width; on the CPU no copy if they are int64.

    To an accelerator by way of pinned memory and as they are: the copy is queued like any other work, and takes no more bytes
    than they have. What is larger than `PINNED`, an epoch's draws of many users, is copied as it lies: torch keeps pinned
    memory for good.
    """
    ids = np.ascontiguousarray(ids)
    tensor = torch.from_numpy(ids if ids.flags.writeable else ids.copy())  # torch warns of memory that it may not write
    if device.type in ("cpu", "meta"):
        return tensor.to(device, torch.int64)
    if tensor.nbytes > PINNED:
        return tensor.to(device).to(torch.int64)
    return tensor.pin_memory().to(device, non_blocking=True).to(torch.int64)


def known(tensor: Tensor, ids: NDArray[Any]) -> Tensor:
    """``tensor``, of which `host_of` now gives ``ids``, the same numbers. Nothing else has them: not its copies or parts."""
    if tensor.device.type != "cpu":
        setattr(tensor, _HOST, ids)
    return tensor


def host_of(tensor: Tensor) -> NDArray[Any] | None:
    """The numbers of a tensor on an accelerator, where they are known without waiting for it; None where they are not, and on
    the CPU."""
    found: NDArray[Any] | None = getattr(tensor, _HOST, None)
    return found


def numbers_of(tensor: Tensor) -> NDArray[Any]:
    """The numbers of a tensor: those that are known, or after waiting for the device."""
    found = host_of(tensor)
    return tensor.cpu().numpy() if found is None else found


def unique_of(ids: Tensor) -> tuple[Tensor, Tensor]:
    """The distinct ids of any shape, ascending, int64 [E], and how often each is there, int64 [E]."""
    host = host_of(ids)
    if host is None:
        found: tuple[Tensor, Tensor] = torch.unique(ids, return_counts=True)
        return found
    distinct, counts = np.unique(host, return_counts=True)
    return known(to_device(distinct, ids.device), distinct), to_device(counts, ids.device)


def places_of(ids: Tensor) -> tuple[Tensor, Tensor]:
    """The distinct ids of int64 [B], ascending, int64 [E], and the place of each id among them, int64 [B]."""
    host = host_of(ids)
    if host is None:
        found: tuple[Tensor, Tensor] = torch.unique(ids, return_inverse=True)
        return found
    distinct, places = np.unique(host, return_inverse=True)
    return known(to_device(distinct, ids.device), distinct), to_device(places, ids.device)


def taken(ids: Tensor, places: Tensor) -> Tensor:
    """``ids[places]``, known where both are."""
    found, host, where = ids[places], host_of(ids), host_of(places)
    return found if host is None or where is None else known(found, host[where])


def counts_of(ids: Tensor, size: int) -> Tensor:
    """int64 [size]: how often each of 0 to ``size`` - 1 is among ``ids``, int64 of any shape. ``torch.bincount`` asks an
    accelerator for the largest first."""
    ids = ids.reshape(-1)
    if ids.device.type == "cpu":
        return torch.bincount(ids, minlength=size)
    return ids.new_zeros(size).scatter_add_(0, ids, torch.ones_like(ids))

"""Several processes that train and evaluate together, as torchrun starts them: who takes part, and what they tell each other.

Everything that passes between processes passes through `Group`, which counts the bytes. Tensors on the CPU go by gloo, those of
CUDA devices by NCCL. A process that is alone has no group (`current` is None), and nothing here is called.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kdrs._launch import Launch, check_launched, launched
from kdrs.errors import (
    ArtefactError,
    ConfigError,
    DataError,
    KdrsError,
    MachineError,
    MissingKnowledge,
    ScoreError,
    TrainingError,
    shown,
)

T = TypeVar("T")
TIMEOUT = "KDRS_PROCESS_TIMEOUT"
"""Environment variable: seconds that a process waits for the others before it gives them up."""
PATIENCE = 1800.0
NOTICE = 1.0
"""Seconds in which a process that failed has said so before its connections close."""
_ERRORS = {
    cls.__name__: cls
    for cls in (
        ArtefactError, ConfigError, DataError, KdrsError, MachineError, MissingKnowledge, ScoreError, TrainingError,
    )
}  # fmt: skip


class LostProcess(MachineError):
    """Another process is gone or does not answer (exit code 5, or that of an error that it has told). ``speaks`` in one process
    alone, and in none where it has told what was wrong."""

    speaks = True


class Group:
    """The processes of a run, seen from one of them. All of them call the same methods in the same order."""

    def __init__(self, launch: Launch, store: Any):
        self.rank, self.size, self.local_rank = launch.rank, launch.size, launch.local_rank
        self.restarts = launch.restarts
        self._store = store
        self.sent = 0
        """Bytes that this process has sent: of an all-gather its share to each of the others, of an all-reduce twice the tensor
        less its own part, as the ring does it."""
        self.calls = 0
        self._lent: list[Tensor] = []
        """What gloo's threads may still hold."""

    @property
    def first(self) -> bool:
        return self.rank == 0

    # --- tensors ------------------------------------------------------------------------------------------------------

    def add_up(self, tensor: Tensor) -> Tensor:
        """The sum of all processes' tensors of one shape, the same bytes for each; in place."""
        import torch.distributed as dist

        self._count(2 * tensor.nbytes * (self.size - 1) // self.size)
        own = tensor.detach()  # of the same memory, and nobody's but gloo's: a gradient has other holders
        with self._lending(own):
            dist.all_reduce(own)
        return tensor

    def gather(self, tensor: Tensor) -> Tensor:
        """All processes' tensors of one shape [...]: [W, ...], in order of rank."""
        import torch.distributed as dist

        tensor = tensor.contiguous()
        self._count(tensor.nbytes * (self.size - 1))
        out = tensor.new_empty(self.size, *tensor.shape)
        parts, own = list(out.view(self.size, -1).unbind()), tensor.detach().view(-1)
        with self._lending(*parts, own):
            dist.all_gather(parts, own)  # into parts of one tensor: older gloo has no all_gather_into_tensor
        return out

    def gather_parts(self, tensor: Tensor, counts: Sequence[int]) -> Tensor:
        """Rows of all processes, one after the other: each has ``counts[rank]`` of them, as all know."""
        most = max(counts)
        if not most:
            return tensor
        padded = tensor.new_zeros(most, *tensor.shape[1:])
        padded[: tensor.shape[0]] = tensor
        found = self.gather(padded)
        return torch.cat([part[:count] for part, count in zip(found, counts, strict=True)])

    def any(self, *flags: bool) -> list[bool]:
        """Of each flag whether any process has raised it."""
        return [bool(value) for value in self.add_up(torch.tensor(flags, dtype=torch.int32)).tolist()]

    def gather_arrays(self, arrays: Sequence[NDArray[Any]]) -> list[list[NDArray[Any]]]:
        """Each process's arrays, in order of rank: as many, and of the same types, in each; lengths [n] may differ."""
        lengths = self.gather(torch.tensor([array.size for array in arrays], dtype=torch.int64)).tolist()
        joined = b"".join(np.ascontiguousarray(array).tobytes() for array in arrays)
        sizes = [sum(n * array.itemsize for n, array in zip(own, arrays, strict=True)) for own in lengths]
        payload = (
            torch.from_numpy(np.frombuffer(joined, np.uint8).copy()) if joined else torch.zeros(0, dtype=torch.uint8)
        )
        found, start = self.gather_parts(payload, sizes).numpy(), 0
        out: list[list[NDArray[Any]]] = []
        for own in lengths:
            out.append([])
            for n, array in zip(own, arrays, strict=True):
                stop = start + n * array.itemsize
                out[-1].append(np.frombuffer(found[start:stop].tobytes(), array.dtype))
                start = stop
        return out

    # --- words --------------------------------------------------------------------------------------------------------

    def told(self, text: str | None) -> str:
        """What the first process says, in each."""
        import torch.distributed as dist

        size = torch.tensor([len(text.encode()) if text is not None and self.first else 0])
        with self._lending(size):
            dist.broadcast(size, 0)
        payload = torch.zeros(int(size), dtype=torch.uint8)
        if self.first and text is not None and int(size):
            payload = torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)
        if int(size):
            with self._lending(payload):
                dist.broadcast(payload, 0)
        self._count((8 + int(size)) * (self.size - 1) * self.first)
        return payload.numpy().tobytes().decode()

    def on_first(self, call: Callable[[], T]) -> T | None:
        """Does something in the first process alone, and its result there; None in the others. Where it raises, all do."""
        if not self.first:
            _raise_told(json.loads(self.told(None)))
            return None
        try:
            result = call()
        except BaseException as error:
            self.told(json.dumps(_in_words(error)))
            raise
        self.told("{}")
        return result

    def agree(self, said: Mapping[str, Any]) -> None:
        """Raises ``ConfigError`` in all processes where one says something else than the others: plain values, by name.

        What they do next must fit together, or gloo ends them without a word; what is exchanged here is of one size.
        """
        text = json.dumps(said, sort_keys=True, default=str).encode()
        digest = np.frombuffer(hashlib.blake2b(text, digest_size=16).digest(), np.int64)
        found = self.gather(torch.from_numpy(digest.copy()))
        same = (found == found[0]).all(dim=1).tolist()
        if all(same):
            return
        other = same.index(False)
        told = json.dumps(said, default=str).encode()  # in the order in which it is said
        texts = self.gather_arrays([np.frombuffer(told, np.uint8)])
        ours, theirs = (dict(_flat(json.loads(texts[rank][0].tobytes()))) for rank in (0, other))
        name = next(name for name in [*ours, *theirs] if ours.get(name) != theirs.get(name))
        raise ConfigError(
            f"the processes were not started alike: {shown(name)} is {_word(ours, name)} in process 0 and "
            f"{_word(theirs, name)} in process {other}",
            "start all with the same command, the same version of kdrs, the same data set and teachers",
        )

    # --- ends ---------------------------------------------------------------------------------------------------------

    def part(self) -> None:
        """Waits for all: who hosts the store must not go before the others have read it."""
        self.any(True)

    def announce(self, error: BaseException) -> None:
        """Lets the others know of an error that ends this process. It ``speaks`` where it is the first of a group."""
        if hasattr(error, "speaks"):
            return

        def announced() -> bool:
            first = self._store.add("errors", 1) == 1
            if first:
                self._store.set("error", json.dumps(_in_words(error)))
            return first

        error.speaks = _in_time(announced, True)  # type: ignore[attr-defined]

    def take_leave(self) -> None:
        """After an error. The first, which may host the store, goes last: the others ask it who speaks."""

        def wait() -> None:
            until, heard = time.monotonic() + NOTICE, self._store.add("left", 1)
            while self.first and heard < self.size and time.monotonic() < until:
                time.sleep(0.02)
                heard = self._store.add("left", 0)

        _in_time(wait, None)

    def take_back(self) -> None:
        """Waits until gloo's threads have let go of all that they were lent."""
        until = time.monotonic() + 2 * NOTICE
        while self._still_lent() and time.monotonic() < until:
            time.sleep(0.001)
        _former.extend(self._lent)  # by an operation that never ended: its other process is gone

    def _still_lent(self) -> bool:
        self._lent = [tensor for tensor in self._lent if tensor._use_count() > 1]
        return bool(self._lent)

    @contextmanager
    def _lending(self, *tensors: Tensor) -> Iterator[None]:
        """Keeps what is exchanged for as long as a thread of gloo's holds it: a moment longer than the call. The last to let go
        of a tensor must be Python: a thread that does it waits for the GIL, and in a process that is about to end it is aborted
        with all others. What torch raises where a process is gone is a `LostProcess`."""
        self._lent.extend(tensors)
        try:
            yield
        except RuntimeError as error:
            raise self._lost(error) from error
        self._still_lent()

    def _lost(self, error: RuntimeError) -> LostProcess:

        def told() -> Any:
            until = time.monotonic() + NOTICE
            while time.monotonic() < until:
                if self._store.check(["error"]):
                    return json.loads(self._store.get("error"))
                time.sleep(0.05)
            return None

        known = _in_time(told, None)
        said = str(error)
        waited = "imeout" in said or "imed out" in said
        lost = LostProcess(
            f"process {self.rank} of {self.size} has lost another one: "
            + ("it did not answer in time" if waited else "it ended without a word, or its machine is gone"),
            "look for its own message, or for a kill for want of memory; the last checkpoint is untouched: the same command "
            "with --resume goes on from it",
        )
        if known is not None:
            lost.speaks, lost.exit_code = False, int(known["code"])
        else:
            lost.speaks = _in_time(lambda: self._store.add("lost", 1) == 1, True)
        return lost

    def _count(self, n_bytes: int) -> None:
        self.sent += n_bytes
        self.calls += 1


_current: list[Group] = []
_former: list[Any] = []
"""torch's group that was left last, and what it still holds, kept until the next one is joined. The group's end waits for
gloo's threads and holds the GIL: with torch 2.4 a process hung there for ever where one of them waited for the GIL."""


def current() -> Group | None:
    """The group that this process has joined."""
    return _current[-1] if _current else None


@contextmanager
def joined(said: Mapping[str, Any] | None = None) -> Iterator[Group | None]:
    """Joins the processes that torchrun started, for as long as the block lasts; None for a process that runs by itself. Within
    a group it is that group. ``said`` is what all of them must be about to do (`Group.agree`).

    Raises ``MachineError`` where the others cannot be reached, ``ConfigError`` where the program has a process group already,
    where the others do something else, and for one of several that was not told all that it must know.
    """
    if not _current:
        check_launched()
    launch = launched()
    if _current or launch is None:
        yield current()
        return
    group = _join(launch)
    _current.append(group)
    import torch.distributed as dist

    try:
        if said is not None:
            group.agree(said)
        yield group
        group.part()
    except BaseException as error:
        group.announce(error)
        group.take_leave()
        raise
    finally:
        _current.clear()
        group.take_back()
        if dist.is_initialized():
            _former.append(dist.group.WORLD)
        with suppress(RuntimeError):
            dist.destroy_process_group()


def _join(launch: Launch) -> Group:
    import torch.distributed as dist
    from torch.distributed.rendezvous import rendezvous

    if not dist.is_available():
        raise MachineError("this torch has no torch.distributed", "install one that has, or run one process")
    if dist.is_initialized():
        raise ConfigError(
            "this program has called torch.distributed.init_process_group itself",
            "let kdrs do it: call kdrs.execute before it; or unset WORLD_SIZE in the process that is to run alone",
        )
    timeout = timedelta(seconds=_patience())
    _former.clear()  # its store may hold the port
    try:
        store, rank, size = next(iter(rendezvous("env://", timeout=timeout)))
        backend = "cpu:gloo"
        if torch.cuda.is_available():
            backend += ",cuda:nccl"
            if launch.local_rank < torch.cuda.device_count():
                torch.cuda.set_device(launch.local_rank)
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=timeout)
    except (RuntimeError, ValueError) as error:
        lost = MachineError(
            f"process {launch.rank} of {launch.size} cannot reach the others at "
            f"{shown(os.environ['MASTER_ADDR'])}:{shown(os.environ['MASTER_PORT'])}: {shown(str(error).splitlines()[0], 200)}",
            "look for another one's own message; else check torchrun's --rdzv-endpoint and the network between the machines "
            "(GLOO_SOCKET_IFNAME names the interface)",
        )
        lost.speaks = True  # type: ignore[attr-defined]  # the first one, who speaks for all, may be the one that is gone
        raise lost from error
    return Group(launch, dist.PrefixStore("kdrs", store))


def _in_time(ask: Callable[[], T], otherwise: T) -> T:
    """What the processes' store answers, or ``otherwise`` where it does not: torch waits for ever for one whose host stands
    still."""
    found: list[T] = []

    def call() -> None:
        with suppress(RuntimeError):
            found.append(ask())

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(2 * NOTICE)
    return found[0] if found else otherwise


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _word(values: Mapping[str, Any], name: str) -> str:
    return shown(str(values[name]), 100) if name in values else "not said"


def _patience() -> float:
    text = os.environ.get(TIMEOUT)
    if text is None:
        return PATIENCE
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 1 <= seconds < 1e7:
        raise ConfigError(f"{TIMEOUT} is {shown(text)}", "allowed: seconds, from 1")
    return seconds


def _in_words(error: BaseException) -> Mapping[str, Any]:
    if isinstance(error, KdrsError):
        kind = next(cls.__name__ for cls in type(error).__mro__ if cls.__name__ in _ERRORS)
        return {"type": kind, "cause": error.cause, "remedy": error.remedy, "code": error.exit_code}
    code = 130 if isinstance(error, KeyboardInterrupt) else getattr(error, "exit_code", 1)
    cause = shown(f"{type(error).__name__}: {error}", 500)
    return {"type": "TrainingError", "cause": f"internal: {cause}", "remedy": None, "code": code}


def _raise_told(told: Mapping[str, Any]) -> None:
    if told:
        error = _ERRORS[told["type"]](told["cause"], told["remedy"])
        error.exit_code = int(told["code"])
        error.speaks = False  # type: ignore[attr-defined]
        raise error

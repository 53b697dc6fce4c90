"""A device that is none: what training does on a GPU, seen without one.

Inside `pretending` there is a device (`DEVICE`) whose tensors hold their values in main memory and compute there, but that code
takes for an accelerator: it is not ``cpu``, so that whatever the core does for tensors in main memory is out of reach. As on
CUDA, tensors of the two do not mix, and generators belong to one of them. `Watch` notes what a step costs there beside
kernels: waiting for the device, and copies to it.

torch's name for an unused device whose gradients its engine works out in the calling thread is ``lazy``.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

import kdrs

PACKAGE = Path(kdrs.__file__).parent
DEVICE = torch.device("lazy:0")
aten = torch.ops.aten


class MixedDevices(RuntimeError):
    """What CUDA would refuse: tensors of two devices in one operation, or another device's generator."""


class Pretended(Tensor):
    """A tensor of the device."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> Pretended:
        # compressed sparse rows pass for dense ones: torch cannot wrap them
        layout: dict[str, Any] = {"dtype": inner.dtype, "device": DEVICE}
        if inner.layout == torch.sparse_coo:
            layout["layout"] = inner.layout
        elif inner.layout == torch.strided:
            layout |= {"strides": inner.stride(), "storage_offset": inner.storage_offset()}
        made = Tensor._make_wrapper_subclass(cls, inner.shape, **layout)  # type: ignore[attr-defined]
        made.inner = inner
        return made  # type: ignore[no-any-return]

    def __repr__(self) -> str:  # type: ignore[override]
        return f"Pretended({self.inner!r})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return carried_out(func, args, kwargs or {}, None)


@dataclass(frozen=True)
class Event:
    kind: str
    """``wait``: the host waits for the device; ``upload``: a copy to it from memory that is not pinned."""
    operation: str
    place: str
    """Where in kdrs."""


@dataclass
class Watch:
    """What happened."""

    events: list[Event] = field(default_factory=list)
    generators: set[int] = field(default_factory=set)
    """Those of the device, by where they lie."""
    pinned: list[Tensor] = field(default_factory=list)
    """What was put into pinned memory."""

    def note(self, kind: str, operation: str) -> None:
        self.events.append(Event(kind, operation, _place()))

    def count(self, kind: str) -> Counter[str]:
        """How often, by the function of kdrs that asked for it."""
        return Counter(event.place for event in self.events if event.kind == kind)


@contextmanager
def pretending() -> Iterator[Watch]:
    """The device is there inside."""
    watch, own = Watch(), torch.Generator
    made: list[torch.Generator] = []

    class Generator(own):  # type: ignore[misc, valid-type]
        def __new__(cls, device: Any = "cpu") -> Any:
            if torch.device(device).type != DEVICE.type:
                return own(device)
            made.append(own())
            watch.generators.add(made[-1]._cdata)
            return made[-1]

    with mock.patch.object(torch, "Generator", Generator), _Constructors(watch), _Mode(watch):
        yield watch


class _Constructors(TorchFunctionMode):
    """What torch moves to a device, or reads from it, past the modes that see operations."""

    def __init__(self, watch: Watch):
        super().__init__()
        self.watch = watch

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is Tensor.pin_memory and not isinstance(args[0], Pretended):
            self.watch.pinned.append(args[0].clone())
            return self.watch.pinned[-1]
        if func is Tensor.tolist and isinstance(args[0], Pretended):
            return args[0].cpu().tolist()
        if func is Tensor.new_tensor and isinstance(args[0], Pretended):
            kwargs.setdefault("dtype", args[0].dtype)
            return torch.tensor(*args[1:], **kwargs).to(DEVICE)
        device = kwargs.get("device")
        if func in (torch.tensor, torch.as_tensor) and device is not None and torch.device(device).type == DEVICE.type:
            return func(*args, **{**kwargs, "device": None}).to(DEVICE)
        return func(*args, **kwargs)


class _Mode(TorchDispatchMode):
    def __init__(self, watch: Watch):
        super().__init__()
        self.watch = watch

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return carried_out(func, args, kwargs or {}, self.watch)


_WAITS = {
    "_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive", "equal", "bincount",
    "isin", "_coalesce", "histc", "linalg_eigh", "_linalg_eigh", "_linalg_svd", "_linalg_check_errors",
}  # fmt: skip
"""Operations after which the host must know a value that is on the device. ``isin`` sorts and so makes lists unique."""
_FREE = {"_to_copy", "copy_"}
"""Operations that take tensors of two devices."""
_INDEXED = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index", "_unsafe_index_put"}


def carried_out(func: Any, args: Any, kwargs: Any, watch: Watch | None) -> Any:
    """The operation on what the tensors hold; its results are of the device if one of the tensors or ``device`` is."""
    name = func.overloadpacket.__name__
    tensors = [each for each in tree_flatten((args, kwargs))[0] if isinstance(each, Tensor)]
    ours = [each for each in tensors if isinstance(each, Pretended)]
    asked = kwargs.get("device")
    goal = None if asked is None else torch.device(asked).type == DEVICE.type
    if name not in _FREE:
        _check(name, tensors, ours)
    if watch is not None:
        noise = kwargs.get("generator")
        if noise is not None and (noise._cdata in watch.generators) != (bool(ours) or bool(goal)):
            raise MixedDevices(f"{name} with a generator of another device, at {_place()}")
        _note(watch, name, func, args, kwargs, goal)
    if goal:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    plain = lambda each: each.inner if isinstance(each, Pretended) else each
    found = func(*tree_map(plain, args), **tree_map(plain, kwargs))
    if not (ours if goal is None else goal):
        return found
    back = {id(each.inner): each for each in ours}  # in place: the tensor itself

    def own(each: Any) -> Any:
        if not isinstance(each, Tensor):
            return each
        return back[id(each)] if id(each) in back else Pretended(each)

    return args[0] if name == "copy_" else tree_map(own, found)


def _check(name: str, tensors: list[Tensor], ours: list[Tensor]) -> None:
    # a number in main memory may be an operand, as on CUDA
    others = [each for each in tensors if not isinstance(each, Pretended) and (each.ndim or name in _INDEXED)]
    if ours and others:
        raise MixedDevices(f"{name} of tensors on {DEVICE.type} and cpu, at {_place()}")


def _note(watch: Watch, name: str, func: Any, args: Any, kwargs: Any, goal: bool | None) -> None:
    first = args[0] if args else None
    ours = isinstance(first, Pretended)
    if name == "copy_":
        goal, first, ours = isinstance(args[0], Pretended), args[1], isinstance(args[1], Pretended)
    if name in _FREE and goal is not None and isinstance(first, Tensor) and ours != goal:
        if not goal:
            watch.note("wait", name)
        elif first.ndim and not (kwargs.get("non_blocking") and any(first is each for each in watch.pinned)):
            watch.note("upload", name)
    elif ours and (name in _WAITS or (name == "repeat_interleave" and kwargs.get("output_size") is None)):
        watch.note("wait", name)
    elif ours and name in _INDEXED:
        masks = [each for each in args[1] if each is not None and each.dtype in (torch.bool, torch.uint8)]
        filled = name != "index" and len(masks) == len(args[1]) and args[2].numel() == 1  # masked_fill in its place
        if masks and not filled:
            watch.note("wait", name)


def _place() -> str:
    """The innermost function of kdrs on the stack, as ``distillers/rrd.py:loss``."""
    frame = sys._getframe(1)
    while frame is not None:
        file = Path(frame.f_code.co_filename)
        if file.is_relative_to(PACKAGE):  # a checkout may be called kdrs as well, with all libraries below it
            return f"{file.relative_to(PACKAGE).as_posix()}:{frame.f_code.co_name}"
        frame = frame.f_back  # type: ignore[assignment]
    return "elsewhere"

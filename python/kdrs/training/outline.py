"""Models, helpers and teachers of which sizes alone are asked: how large a run is, without making it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from kdrs.training.queries import Task

OUTLINE = torch.device("meta")
"""The device of an outline: what is built for a task there has its shapes and no values. It answers how large it is and what it
refuses; it makes no lists and reads no weights."""


def is_outline(task: Task) -> bool:
    """Whether what is built for a task is asked for its sizes alone."""
    return task.device.type == OUTLINE.type


@contextmanager
def building(task: Task) -> Iterator[None]:
    """What is built inside is for the task: for an outline new tensors have shapes alone."""
    if not is_outline(task):
        yield
        return
    with OUTLINE, _Undrawn():
        yield


_DRAWS = {
    Tensor.normal_,
    Tensor.uniform_,
    *(getattr(nn.init, name) for name in ("normal_", "uniform_", "kaiming_normal_", "kaiming_uniform_")),
}
"""Those of ``nn.init`` that torch hands over before it calls the tensor's own."""


class _Undrawn(TorchFunctionMode):
    """Tensors without values draw no initial ones: torch would load its compiler for that, which takes seconds."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _DRAWS:
            tensor: Tensor = args[0] if args else kwargs["tensor"]
            if tensor.is_meta:
                return tensor
        return func(*args, **kwargs)

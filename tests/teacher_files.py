"""Teacher files of toy data, and methods that read them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load_file, save_file

import kdrs
from kdrs.core.sampling import stream
from kdrs.distillers import DISTILLERS
from kdrs.training.queries import Epoch
from test_contract import SMALL, build
from test_sequential import built

DIM = 6


def vectors(data: kdrs.Dataset, dim: int = DIM, seed: int = 0) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    return {
        "users": rng.standard_normal((data.n_users, dim)).astype(np.float32),
        "items": rng.standard_normal((data.n_items, dim)).astype(np.float32),
        "user_ids": list(data.users),
        "item_ids": list(data.items),
    }


def lists(data: kdrs.Dataset, k: int = 30, seed: int = 0) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    topk = np.argsort(rng.random((data.n_users, data.n_items)), axis=1)[:, :k].astype(np.int32)
    return {"topk": topk, "user_ids": list(data.users), "item_ids": list(data.items)}


def teacher_of(path: Path, data: kdrs.Dataset, task: Any = None, **given: Any) -> kdrs.FileTeacher:
    kdrs.save_teacher(path / "t.safetensors", **given)
    task = kdrs.PairTask(data.train, batch_size=64) if task is None else task
    return kdrs.FileTeacher(path / "t.safetensors", task, dataset=data)


def method_of(name: str, teacher: Any, task: Any, **options: Any) -> Any:
    cls = DISTILLERS[name]
    return cls(cls.Config(**{**SMALL[name], **options}), [teacher], task, 4, stream(0, name))


def loss_of(method: Any, task: Any, model: str = "bpr", epoch: int = 1) -> torch.Tensor:
    student = build(task, model, 4, seed=1) if model == "bpr" else built(model, task)
    known = kdrs.ModelTeacher(student, task, live=True)
    method.on_epoch_start(Epoch(epoch, 0, 3), method.draw(Epoch(epoch, 0, 3)), known)
    batch = next(iter(task.draw(Epoch(epoch, 0, 3))))
    return method.loss(student(batch.queries), batch)


def changed(path: Path, metadata: dict[str, str] | None = None, **tensors: Any) -> Path:
    """The same file with other contents; None takes a tensor out."""
    from safetensors import safe_open

    held = load_file(path) | tensors
    with safe_open(path, "np") as file:
        told = dict(file.metadata()) | (metadata or {})
    save_file({name: value for name, value in held.items() if value is not None}, path, metadata=told)
    return path

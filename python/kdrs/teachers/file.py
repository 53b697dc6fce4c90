"""A teacher in a file that any library can write."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kdrs.core import ranking
from kdrs.core.ranking import Ranking
from kdrs.errors import ArtefactError, MissingKnowledge, shown
from kdrs.teachers.base import Scored, Stage, as_array
from kdrs.teachers.foreign import refuse_foreign
from kdrs.teachers.tensors import check_scores_of, check_tensor, read_lists
from kdrs.training.outline import OUTLINE, is_outline
from kdrs.training.queries import Queries, Task
from kdrs.training.view import DotView, Factors, View


class FileTeacher(Scored):
    """A teacher that any library can write: one safetensors file, ``kdrs = "teacher/1"`` in its metadata.

    It holds any of ``users`` float [U, D] and ``items`` float [I, D] (score = dot product), ``item_bias`` float [I],
    ``topk`` int [U, K] best first (-1 pads), ``topk_scores`` float [U, K] that descend (what stands at padding does not
    count); and, in the metadata, ``users_digest`` and
    ``items_digest`` of the id lists (``kdrs.data.Ids.digest``), so that a teacher of other ids is refused and not
    averaged in. Pickles are never loaded.

    ``stages`` are earlier selves, ``epoch`` is this one's; `FileTeacher.trajectory` reads them from a folder.

    Tensors may be of any float (or integer) type, contiguous or not; they are copied to float32 and never written to. For an
    outline (`kdrs.training.outline.OUTLINE`) shapes, types and digests are read and checked, and no values.

    Raises ``ArtefactError`` for files that are no such thing, for shapes, values and ids that do not fit the task, for lists
    whose scores rise.
    """

    def __init__(
        self,
        path: str | Path,
        task: Task,
        *,
        digests: dict[str, str] | None = None,
        stages: Sequence[Stage] = (),
        epoch: int = -1,
    ):
        self.path, self.task, self.asked, self.name = Path(path), task, task, str(path)
        self._stages, self.epoch = stages, epoch
        tensors, metadata = (read_head if is_outline(task) else read_safetensors)(self.path)
        if metadata.get("kdrs") != "teacher/1":
            raise ArtefactError(
                f"{shown(self.name, 300)} is no kdrs teacher file: its metadata say kdrs = {shown(str(metadata.get('kdrs')))}",
                'write it with safetensors and metadata {"kdrs": "teacher/1"}; the README shows how',
            )
        unknown = sorted(set(tensors) - {"users", "items", "item_bias", "topk", "topk_scores"})
        if unknown:
            raise ArtefactError(
                f"{shown(self.name, 300)} holds {shown(unknown[0])}",
                "allowed: users, items, item_bias, topk, topk_scores",
            )
        self._check_ids(metadata, digests)
        self._factors = self._read_factors(tensors)
        self._n_listed = self._check_lists(tensors)
        self._lists = None if self._n_listed is None or is_outline(task) else self._read_lists(tensors)
        self.n_bytes = sum(tensor.nbytes for tensor in tensors.values())
        """Bytes of its tensors as they lie in the file."""
        sides = (("users", "topk", "topk_scores"), ("items", "item_bias"))
        found = [[tensors[name] for name in side if name in tensors] for side in sides]
        self.row_bytes = max(sum(tensor.nbytes / len(tensor) for tensor in side) for side in found)
        """Bytes of a user or an item, the larger of the two."""
        self._ranked: Ranking | None = None
        if self._factors is None and self._n_listed is None:
            raise ArtefactError(f"{shown(self.name, 300)} holds neither users and items nor topk", "export one of them")

    @classmethod
    def trajectory(cls, folder: str | Path, task: Task, *, digests: dict[str, str] | None = None) -> FileTeacher:
        """A folder of teacher files as the stages of one teacher, the last file being the teacher itself.

        Files named by numbers (``0010.safetensors``) are in that order, and the numbers are their epochs; any others are in
        the order of their names.
        """
        files = trajectory_files(folder)
        if not files:
            raise ArtefactError(f"{shown(str(folder))} holds no teacher files", "check the path")
        epochs = [int(path.stem) if path.stem.isdecimal() else -1 for path in files]
        stages = [
            Stage(epoch, partial(cls, path, task, digests=digests, epoch=epoch))
            for epoch, path in zip(epochs[:-1], files[:-1], strict=True)
        ]
        teacher = cls(files[-1], task, digests=digests, stages=stages, epoch=epochs[-1])
        teacher.name = str(folder)
        return teacher

    @property
    def dim(self) -> int:
        return self._vectors("embeddings").queries.shape[1]

    @property
    def lists(self) -> Ranking | None:
        """The users' lists as they were given, [U, K], less what each has seen; None if it holds none."""
        return self._lists

    def view(self, queries: Queries) -> View:
        factors = self._vectors("scores and embeddings")
        users, items, bias = factors
        embedding = torch.nn.functional.embedding
        return DotView(queries, lambda q: embedding(q.users, users), lambda i: embedding(i, items), lambda: items, bias)

    def topk(self, k: int) -> Ranking:
        k = min(k, self.task.n_items)
        if self._lists is not None and self._lists.items.shape[1] >= k:
            return per_query(Ranking(self._lists.items[:, :k], self._lists.scores[:, :k]), self.task)
        self.check_lists(k)
        assert self._factors is not None
        if self._ranked is None or self._ranked.items.shape[1] < k:
            users, items, bias = self._factors
            ranked = ranking.topk(users, items, k, seen=self.task.seen, bias=bias)
            self._ranked = Ranking(as_array(ranked.items), as_array(ranked.scores))
        return per_query(Ranking(self._ranked.items[:, :k], self._ranked.scores[:, :k]), self.task)

    def check_scores(self) -> None:
        self._vectors("scores and embeddings")

    def check_lists(self, k: int, *, keep_seen: bool = False) -> None:
        k = min(k, self.task.n_items)
        if keep_seen:
            self._vectors("lists that keep what was seen")
        if self._factors is None and self._n_listed is not None and self._n_listed < k:
            raise MissingKnowledge(
                f"teacher {shown(self.name, 300)} lists {self._n_listed} items a query; {k} were asked for",
                "export longer lists, or lower the method's pool",
            )

    def check_users(self) -> None:
        self._vectors("the users of each item")

    def topk_blocks(self, k: int, *, keep_seen: bool = False) -> Iterator[tuple[slice, Ranking]]:
        k = min(k, self.task.n_items)
        self.check_lists(k, keep_seen=keep_seen)
        if keep_seen or (self._factors is not None and (self._lists is None or self._lists.items.shape[1] < k)):
            yield from super().topk_blocks(k, keep_seen=keep_seen)
        else:
            ranked = self.topk(k)
            for part in self._blocks(k):
                yield part, Ranking(ranked.items[part], ranked.scores[part])

    def top_users(self, k: int) -> np.ndarray:
        self.check_users()
        return super().top_users(k)

    def stages(self) -> Sequence[Stage]:
        return (*self._stages, Stage(self.epoch, lambda: self))

    def factors(self) -> Factors | None:
        return self._factors

    def _vectors(self, what: str) -> Factors:
        if self._factors is None:
            raise MissingKnowledge(
                f"teacher {shown(self.name, 300)} holds only a ranking; {what} were asked for",
                "export user and item vectors, or use a method that needs a ranking alone, such as rrd",
            )
        return self._factors

    def _check_ids(self, metadata: dict[str, str], digests: dict[str, str] | None) -> None:
        stated = {kind: metadata.get(f"{kind}_digest") for kind in ("users", "items")}
        for kind, digest in (digests or {}).items():
            if stated[kind] is None:
                warnings.warn(
                    f"teacher {shown(self.name, 300)} states no {kind}_digest: that its {kind} are in the data set's order is "
                    "taken on trust; look at the teacher's own metrics",
                    stacklevel=4,
                )
            elif stated[kind] != digest:
                raise ArtefactError(
                    f"teacher {shown(self.name, 300)} was made for other {kind} (digest {shown(str(stated[kind]), 12)}, the "
                    f"data set's is {digest[:12]})",
                    f"export it with its {kind} in the data set's order and the digest of `kdrs data describe`",
                )

    def _read_factors(self, tensors: dict[str, Tensor]) -> Factors | None:
        present = [name for name in ("users", "items", "item_bias") if name in tensors]
        if not present:
            return None
        if "users" not in present or "items" not in present:
            raise ArtefactError(
                f"{shown(self.name, 300)} holds {' and '.join(present)} alone", "users and items go together; save both"
            )
        rows = {"users": self.task.n_users, "items": self.task.n_items}
        for name in ("users", "items"):
            check_tensor(self.name, name, tensors[name], rows[name], "D", rows)
        if "item_bias" in present:
            check_tensor(self.name, "item_bias", tensors["item_bias"], rows["items"], None, rows)
        users, items = tensors["users"], tensors["items"]
        if users.shape[1] != items.shape[1] or not users.shape[1]:
            raise ArtefactError(
                f"{shown(self.name, 300)}: users have {users.shape[1]} dimensions, items {items.shape[1]}",
                "allowed: equally many, one or more; their dot product is the score",
            )
        device = self.task.device
        bias = tensors["item_bias"].float().to(device) if "item_bias" in tensors else None
        factors = Factors(users.float().to(device).contiguous(), items.float().to(device).contiguous(), bias)
        if is_outline(self.task):
            return factors
        largest = float(factors.queries.abs().max()) * float(factors.items.abs().max()) * users.shape[1]
        if largest > torch.finfo(torch.float32).max:
            raise ArtefactError(
                f"{shown(self.name, 300)}: products of its users and items may be past the float32 range",
                "scale the vectors down",
            )
        return factors

    def _check_lists(self, tensors: dict[str, Tensor]) -> int | None:
        """Items that its lists have room for, by their shape and type; None without lists."""
        if "topk" not in tensors:
            if "topk_scores" in tensors:
                raise ArtefactError(
                    f"{shown(self.name, 300)} holds topk_scores without topk", "save the lists' items as topk"
                )
            return None
        rows = {"users": self.task.n_users, "items": self.task.n_items}
        check_tensor(self.name, "topk", tensors["topk"], rows["users"], "K", rows, ids=True)
        check_scores_of(self.name, tensors["topk"], tensors.get("topk_scores"))
        return int(tensors["topk"].shape[1])

    def _read_lists(self, tensors: dict[str, Tensor]) -> Ranking:
        lists, scores = read_lists(self.name, tensors["topk"], tensors.get("topk_scores"), self.task.n_items)
        lists, scores = _drop_seen(lists, scores, self.task)
        return Ranking(lists.astype(np.int32), scores)


def trajectory_files(folder: str | Path) -> list[Path]:
    """The teacher files in a folder that is no run, the latest last; none if it is something else."""
    folder = Path(folder)
    if not folder.is_dir() or any((folder / name).is_file() for name in ("config.toml", "data.json", "STATUS.json")):
        return []
    files = sorted(folder.glob("*.safetensors"))
    numbered = all(path.stem.isdecimal() for path in files)
    return sorted(files, key=lambda path: int(path.stem)) if numbered else files


def per_query(ranked: Ranking, task: Task) -> Ranking:
    """Lists of users [U, K] as lists of the task's queries [Q, K]: each query gets its user's."""
    if task.owners is None:
        return ranked
    return Ranking(ranked.items[task.owners], ranked.scores[task.owners])


def _drop_seen(lists: np.ndarray, scores: np.ndarray, task: Task) -> tuple[np.ndarray, np.ndarray]:
    """Lists of users without what the user has seen and without holes; the rest keeps its order."""
    keys = task.seen.row_of_pair.astype(np.int64) * task.n_items + task.seen.indices
    rows = np.arange(lists.shape[0], dtype=np.int64)[:, None]
    dropped = (lists < 0) | np.isin(rows * task.n_items + lists, keys)
    order = np.argsort(dropped, axis=1, kind="stable")
    lists = np.where(dropped, -1, lists)
    scores = np.where(dropped, -np.inf, scores).astype(np.float32)
    return np.take_along_axis(lists, order, 1), np.take_along_axis(scores, order, 1)


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file; ``ArtefactError`` for anything else, which is never unpickled."""
    return _opened(path, lambda file, key: file.get_tensor(key))


def read_head(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The same with the tensors' shapes and types alone: they are on torch's meta device. Costs the same for any size."""

    def shape_of(file: Any, key: str) -> Tensor:
        stored = file.get_slice(key)
        shape = stored.get_shape()
        dtype = (stored[:0] if shape else file.get_tensor(key)).dtype
        return torch.empty(shape, dtype=dtype, device=OUTLINE)

    return _opened(path, shape_of)


def _opened(path: Path, read: Callable[[Any, str], Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise ArtefactError(f"no file {shown(str(path), 300)}", "check the path")
    refuse_foreign(path)
    try:
        with safe_open(str(path), framework="pt") as file:
            return {key: read(file, key) for key in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise ArtefactError(
            f"{shown(str(path), 300)} is no readable safetensors file: {shown(str(error))}", "export it again"
        ) from None

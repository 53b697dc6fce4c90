"""A teacher in a file that any library can write."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from kdrs.core import ranking
from kdrs.core.ranking import Ranking
from kdrs.data.dataset import Dataset
from kdrs.errors import ArtefactError, ConfigError, MissingKnowledge, nearest, shown
from kdrs.teachers.arranging import arranged, bias_of_the_last, check_matched, means_of_items
from kdrs.teachers.base import Scored, Stage, as_array, owners_of
from kdrs.teachers.confidence import Confidence
from kdrs.teachers.ids import IDS, Joined, names_in
from kdrs.teachers.lists import Lists, arranged_lists, instance_rows, stacked
from kdrs.teachers.opening import read_head, read_safetensors
from kdrs.teachers.saving import ALONE, KEYS, LISTS, MISSING, ROWS
from kdrs.teachers.tensors import check_beside, check_tensor
from kdrs.training.outline import is_outline
from kdrs.training.queries import Queries, Task
from kdrs.training.sequences import SequenceTask
from kdrs.training.view import DotView, Factors, View

TENSORS = {
    "teacher/1": ("users", "items", "item_bias", "topk", "topk_scores"),
    "teacher/2": (*ROWS, *(f"{LISTS[1]}{part}" for part in ("", "_scores", "_weights")), *KEYS),
}
"""The tensors of each form, ids aside."""
COMPLETE = {"users": ("users", "topk"), "items": ("items",)}
"""The tensors that should have a row for each of the data set's ids. Lists may leave out any item."""


class FileTeacher(Scored):
    """A teacher that any library can write: one safetensors file, ``kdrs = "teacher/2"`` in its metadata.

    It holds any of ``users`` float [U, D] and ``items`` float [I, D] (score = dot product), ``item_bias`` float [I],
    ``topk`` int [U, K] best first (-1 pads), ``topk_scores`` float [U, K] that descend (what stands at padding does not
    count), ``topk_weights``; ``items`` alone; lists for the training instances of a sequence model. Ids are inside, and rows
    are joined with ``dataset`` by id, in whatever order they are: `kdrs.save_teacher` writes it and tells the rest.
    Pickles are never loaded.

    ``"teacher/1"`` is read too: no ids, rows in the data set's order, and ``users_digest`` and ``items_digest`` of the id
    lists (``kdrs.data.Ids.digest``) in the metadata, so that a teacher of other ids is refused and not averaged in.
    ``digests`` are the data set's, where that itself is not given.

    ``stages`` are earlier selves, ``epoch`` is this one's; `FileTeacher.trajectory` reads them from a folder. ``name`` is
    what messages call it, the path if not given.

    Tensors may be of any float (or integer) type, contiguous or not; they are copied to float32 and never written to. For an
    outline (`kdrs.training.outline.OUTLINE`) shapes, types and ids are read and checked, and no values.

    Raises ``ArtefactError`` for files that are no such thing, for shapes, values and ids that do not fit the task, for lists
    whose scores rise; ``ConfigError`` for a file of ids without ``dataset``.
    """

    def __init__(
        self,
        path: str | Path,
        task: Task,
        *,
        dataset: Dataset | None = None,
        digests: dict[str, str] | None = None,
        stages: Sequence[Stage] = (),
        epoch: int = -1,
        name: str | None = None,
    ):
        self.path, self.task, self.asked, self.name = Path(path), task, task, name or str(path)
        self._stages, self.epoch = stages, epoch
        ids = [name for side in IDS.values() for name in side]
        tensors, metadata = read_head(self.path, ids) if is_outline(task) else read_safetensors(self.path)
        self.version = self._version(tensors, metadata)
        self.missing, self.items_alone = metadata.get("missing", "refuse"), metadata.get("users", "mean")
        self.joined: dict[str, Joined] = {}
        """How the file's users and items go together with the data set's."""
        if self.version == "teacher/1":
            if digests is None and dataset is not None:
                digests = {"users": dataset.users.digest, "items": dataset.items.digest}
            self._check_digests(metadata, digests)
            self.joined = {"users": Joined.same(task.n_users), "items": Joined.same(task.n_items)}
        else:
            self._join(tensors, dataset)
        self._check_tensors(tensors)
        self._absent: np.ndarray | None = None  # bool [U]: users of whom it knows nothing
        self._items: Tensor | None = None  # vectors of items where there are none of users
        self._factors = self._read_factors(tensors)
        self.n_listed = self._listed(tensors)
        """Items that its lists have room for; None if it holds none for the task."""
        self._lists, self._by_query = self._read_lists(tensors)
        self._confidence: Confidence | None = None
        held = {name: tensor for name, tensor in tensors.items() if name not in ids}
        self.n_bytes = sum(tensor.nbytes for tensor in held.values())
        """Bytes of its tensors as they lie in the file, ids aside."""
        sides = [[name for name, side in ROWS.items() if side == own and name in held] for own in ("users", "items")]
        self.row_bytes = max(sum(held[name].nbytes / max(len(held[name]), 1) for name in side) for side in sides)
        """Bytes of a user or an item, the larger of the two."""
        self._ranked: Ranking | None = None

    @classmethod
    def trajectory(
        cls,
        folder: str | Path,
        task: Task,
        *,
        dataset: Dataset | None = None,
        digests: dict[str, str] | None = None,
    ) -> FileTeacher:
        """A folder of teacher files as the stages of one teacher, the last file being the teacher itself.

        Files named by numbers (``0010.safetensors``) are in that order, and the numbers are their epochs; any others are in
        the order of their names.
        """
        files = trajectory_files(folder)
        if not files:
            raise ArtefactError(f"{shown(str(folder))} holds no teacher files", "check the path")
        epochs = [int(path.stem) if path.stem.isdecimal() else -1 for path in files]
        read = partial(cls, task=task, dataset=dataset, digests=digests)
        stages = [
            Stage(epoch, partial(read, path, epoch=epoch)) for epoch, path in zip(epochs[:-1], files[:-1], strict=True)
        ]
        teacher = read(files[-1], stages=stages, epoch=epochs[-1])
        teacher.name = str(folder)
        return teacher

    @property
    def dim(self) -> int:
        return int(self._vectors("embeddings").shape[1])

    @property
    def sides(self) -> tuple[str, ...]:
        return ("users", "items") if self._items is None else ("items",)

    @property
    def lists(self) -> Ranking | None:
        """The users' lists as they were given, [U, K], less what each has seen; None if it holds none."""
        return None if self._lists is None or self._by_query else self._lists.ranked

    def confidence(self) -> Confidence | None:
        if self._lists is None or self._lists.weights is None:
            return None
        if self._confidence is None:
            rows = None if self._by_query else self.task.owners
            items = self._lists.ranked.items
            self._confidence = Confidence(items, self._lists.weights, self.task.n_items, rows, self.task.device)
        return self._confidence

    def view(self, queries: Queries) -> View:
        embedding = torch.nn.functional.embedding
        if self._factors is None:
            items = self._vectors("scores and embeddings")
            return DotView(queries, self._no_users, lambda i: embedding(i, items), lambda: items)
        users, items, bias = self._factors
        return DotView(queries, lambda q: embedding(q.users, users), lambda i: embedding(i, items), lambda: items, bias)

    def topk(self, k: int) -> Ranking:
        k = min(k, self.task.n_items)
        if self._lists is not None and self._lists.ranked.items.shape[1] >= k:
            items, scores = self._lists.ranked
            return self._per_query(Ranking(items[:, :k], scores[:, :k]), self._by_query)
        self.check_lists(k)
        assert self._factors is not None
        if self._ranked is None or self._ranked.items.shape[1] < k:
            users, items, bias = self._factors
            ranked = ranking.topk(users, items, k, seen=self.task.seen, bias=bias)
            self._ranked = self._without_absent(Ranking(as_array(ranked.items), as_array(ranked.scores)), slice(None))
        return self._per_query(Ranking(self._ranked.items[:, :k], self._ranked.scores[:, :k]))

    def check_scores(self) -> None:
        if self._factors is None:
            raise self._lacks("scores and embeddings")

    def check_lists(self, k: int, *, keep_seen: bool = False) -> None:
        k = min(k, self.task.n_items)
        if self._factors is not None:
            return
        if keep_seen:
            raise self._lacks("lists that keep what was seen")
        if self.n_listed is None:
            raise self._lacks("lists")
        if self.n_listed < k:
            raise MissingKnowledge(
                f"teacher {shown(self.name, 300)} lists {self.n_listed} items a query; {k} were asked for",
                f"export longer lists, or ask for fewer: --set distill.0.pool={self.n_listed} (rrd, sld; dcd, with "
                f"distill.0.correction_pool={self.n_listed}), --set distill.0.items={self.n_listed} (rd)",
            )

    def check_users(self) -> None:
        if self._factors is None:
            raise self._lacks("the users of each item")

    def topk_blocks(self, k: int, *, keep_seen: bool = False) -> Iterator[tuple[slice, Ranking]]:
        k = min(k, self.task.n_items)
        self.check_lists(k, keep_seen=keep_seen)
        width = 0 if self._lists is None else self._lists.ranked.items.shape[1]
        if keep_seen or (self._factors is not None and width < k):
            for part, ranked in super().topk_blocks(k, keep_seen=keep_seen):
                yield part, self._without_absent(ranked, owners_of(self.task, np.arange(part.start, part.stop)))
        else:
            ranked = self.topk(k)
            for part in self._blocks(k):
                yield part, Ranking(ranked.items[part], ranked.scores[part])

    def top_users(self, k: int) -> np.ndarray:
        self.check_users()
        if self._absent is None:
            return super().top_users(k)
        # users of whom nothing is known come last, and are taken off
        assert self._factors is not None
        users, items, _ = self._factors
        away = torch.from_numpy(np.where(self._absent, np.float32(-1e30), np.float32(0))).to(users.device)
        found = ranking.topk(items, users, min(k, self.task.n_users), seen=self.task.seen.transpose(), bias=away)
        lists = np.ascontiguousarray(as_array(found.items))
        return np.where((lists >= 0) & self._absent[np.maximum(lists, 0)], -1, lists).astype(np.int32)

    def stages(self) -> Sequence[Stage]:
        return (*self._stages, Stage(self.epoch, lambda: self))

    def factors(self) -> Factors | None:
        return self._factors

    # What it lacks

    def _vectors(self, what: str) -> Tensor:
        """The items' vectors."""
        if self._factors is not None:
            return self._factors.items
        if self._items is None:
            raise self._lacks(what)
        return self._items

    def _no_users(self, queries: Queries) -> Tensor:
        raise self._lacks("user vectors")

    def _lacks(self, what: str) -> MissingKnowledge:
        if self._items is not None:
            return MissingKnowledge(
                f"teacher {shown(self.name, 300)} holds item vectors alone; {what} were asked for",
                "let users be the mean of their items' vectors: kdrs teacher import --items-alone mean, items_alone= of "
                "kdrs.save_teacher; or use a method on representations, such as de",
            )
        return MissingKnowledge(
            f"teacher {shown(self.name, 300)} holds only a ranking; {what} were asked for",
            "export user and item vectors, or use a method that needs a ranking alone, such as rrd",
        )

    def _per_query(self, ranked: Ranking, by_query: bool = False) -> Ranking:
        """Lists of users [U, K] as lists of the task's queries [Q, K]: each query gets its user's."""
        owners = self.task.owners
        return ranked if owners is None or by_query else Ranking(ranked.items[owners], ranked.scores[owners])

    def _without_absent(self, ranked: Ranking, users: np.ndarray | slice) -> Ranking:
        """Lists of users, empty for those of whom nothing is known."""
        if self._absent is None:
            return ranked
        away = self._absent[users][:, None]
        return Ranking(np.where(away, np.int32(-1), ranked.items), np.where(away, np.float32(-np.inf), ranked.scores))

    # What is in the file

    def _version(self, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
        version = str(metadata.get("kdrs"))
        if version.startswith("student/"):
            raise ArtefactError(
                f"{shown(self.name, 300)} is an exported student, and no teacher file or run",
                "take the run that it was exported from, such as kdrs distill --teacher RUN; kdrs eval takes the file",
            )
        if version not in TENSORS:
            raise ArtefactError(
                f"{shown(self.name, 300)} is no kdrs teacher file: its metadata say kdrs = {shown(version)}",
                "write it with kdrs teacher import or kdrs.save_teacher; docs/teachers.md shows how",
            )
        allowed = [
            *TENSORS[version],
            *(() if version == "teacher/1" else (name for side in IDS.values() for name in side)),
        ]
        unknown = sorted(set(tensors) - set(allowed))
        if unknown:
            newer = "" if version == "teacher/2" else " in teacher/1"
            raise ArtefactError(
                f"{shown(self.name, 300)} holds {shown(unknown[0])}", nearest(unknown[0], allowed) + newer
            )
        for key, words in (("missing", MISSING), ("users", ALONE)):
            if metadata.get(key, words[0]) not in words:
                raise ArtefactError(
                    f"{shown(self.name, 300)}: its metadata say {key} = {shown(metadata[key])}",
                    f"allowed: {', '.join(words)}",
                )
        return version

    def _join(self, tensors: Mapping[str, Tensor], dataset: Dataset | None) -> None:
        needed = {side: [name for name, own in ROWS.items() if own == side and name in tensors] for side in IDS}
        needed["items"] += [name for name in LISTS if name in tensors]
        needed["users"] += [name for name in KEYS if name in tensors]
        sizes = {"users": self.task.n_users, "items": self.task.n_items}
        for side in IDS:
            names = names_in(self.name, side, tensors)
            if names is None and needed[side]:
                raise ArtefactError(
                    f"{shown(self.name, 300)} holds {needed[side][0]} without {IDS[side][0]}",
                    "write it with kdrs.save_teacher, which puts the ids inside",
                )
            if names is None:
                self.joined[side] = Joined.same(sizes[side])
                continue
            if dataset is None:
                raise ConfigError(
                    f"teacher {shown(self.name, 300)} has its ids inside, and the data set to join them with is not given",
                    "give it: FileTeacher(path, task, dataset=data)",
                )
            self.joined[side] = Joined.of(getattr(dataset, side), names)
            strict, lists = any(name in tensors for name in COMPLETE[side]), side == "users" and "topk" in tensors
            missing = self.missing if strict else None
            check_matched(self.name, side, self.joined[side], missing, vectors=side in tensors, lists=lists)

    def _check_digests(self, metadata: Mapping[str, str], digests: dict[str, str] | None) -> None:
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
                    f"export it with its {kind} in the data set's order and the digest of `kdrs data describe`; or with "
                    "its ids inside, which are joined: kdrs.save_teacher",
                )

    def _check_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Shapes, types and finite values, as they lie in the file."""
        rows = {side: joined.places.size for side, joined in self.joined.items()}
        present = [name for name in ("users", "items", "item_bias") if name in tensors]
        alone_ok = present in (["items"], ["items", "item_bias"]) and self.version != "teacher/1"
        if present and not alone_ok and not {"users", "items"} <= set(present):
            raise ArtefactError(
                f"{shown(self.name, 300)} holds {' and '.join(present)} alone", "users and items go together; save both"
            )
        for name in (*present, *(name for name in LISTS if name in tensors)):
            columns = "K" if name in LISTS else None if name == "item_bias" else "D"
            n_rows = rows[ROWS[name]] if name in ROWS else len(tensors[name])
            check_tensor(self.name, name, tensors[name], n_rows, columns, rows, ids=name in LISTS)
        for name in LISTS:
            check_beside(self.name, tensors, name)
        for name in KEYS:
            if name in tensors:
                if not {*KEYS, LISTS[1]} <= tensors.keys():
                    raise ArtefactError(
                        f"{shown(self.name, 300)} holds {name} alone", f"save {LISTS[1]} and {' and '.join(KEYS)}"
                    )
                check_tensor(self.name, name, tensors[name], len(tensors[LISTS[1]]), None, rows, ids=True)
        if not present and not tensors.keys() & set(LISTS):
            raise ArtefactError(f"{shown(self.name, 300)} holds neither items nor topk", "export one of them")

    def _read_factors(self, tensors: Mapping[str, Tensor]) -> Factors | None:
        if "items" not in tensors:
            return None
        raw_users, raw_items = tensors.get("users"), tensors["items"]
        dims = raw_items.shape[1]
        if not dims or (raw_users is not None and raw_users.shape[1] != dims):
            users_have = "" if raw_users is None else f"users have {raw_users.shape[1]} dimensions, "
            raise ArtefactError(
                f"{shown(self.name, 300)}: {users_have}items {dims}",
                "allowed: equally many, one or more; their dot product is the score",
            )
        missing, joined = self.missing, self.joined
        items = arranged(raw_items.float(), joined["items"], missing)
        bias = arranged(tensors["item_bias"].float(), joined["items"], missing) if "item_bias" in tensors else None
        known = joined["items"].rows >= 0 if missing == "drop" and joined["items"].n_missing else None
        outline, device = is_outline(self.task), self.task.device
        if raw_users is None and self.items_alone == "none":
            self._items = items.to(device).contiguous()
            return None
        if outline:
            users = torch.empty((self.task.n_users, dims), device=device)
        elif raw_users is None:
            users, nothing = means_of_items(items, self.task.seen, known)
            self._absent = nothing.numpy() if nothing.any() else None
        else:
            users = arranged(raw_users.float(), joined["users"], missing)
            if missing == "drop" and joined["users"].n_missing:
                self._absent = joined["users"].rows < 0
        if not outline:
            self._check_range(users, items)
            if known is not None:
                present = np.ones(len(users), bool) if self._absent is None else ~self._absent
                bias = bias_of_the_last(users, items, bias, present, known)
        bias = None if bias is None else bias.to(device)
        return Factors(users.to(device).contiguous(), items.to(device).contiguous(), bias)

    def _check_range(self, users: Tensor, items: Tensor) -> None:
        largest = float(users.abs().max()) * float(items.abs().max()) * users.shape[1]
        if largest > torch.finfo(torch.float32).max:
            raise ArtefactError(
                f"{shown(self.name, 300)}: products of its users and items may be past the float32 range",
                "scale the vectors down",
            )

    def _listed(self, tensors: Mapping[str, Tensor]) -> int | None:
        if "instance_topk" in tensors and isinstance(self.task, SequenceTask):
            return int(tensors["instance_topk"].shape[1])
        return int(tensors["topk"].shape[1]) if "topk" in tensors else None

    def _read_lists(self, tensors: Mapping[str, Tensor]) -> tuple[Lists | None, bool]:
        """The lists, and whether they are one a query instead of one a user."""
        task, (users, items) = self.task, (self.joined["users"], self.joined["items"])
        by_query = "instance_topk" in tensors and isinstance(task, SequenceTask)
        if "instance_topk" in tensors and not by_query and not tensors.keys() & {"topk", "items"}:
            raise MissingKnowledge(
                f"teacher {shown(self.name, 300)} holds lists for the training instances of a sequence model, and the student "
                "is none",
                "use caser or sasrec as student, or save lists of users (topk)",
            )
        if is_outline(task) or not (by_query or "topk" in tensors):
            return None, False
        read = partial(arranged_lists, self.name, tensors=tensors, items=items, seen=task.seen)
        own = read("topk", rows=users.rows) if "topk" in tensors else None
        if not isinstance(task, SequenceTask) or not by_query:
            return own, False
        rows = instance_rows(self.name, tensors, users, task, self.missing)
        assert task.owners is not None
        return stacked(own, read("instance_topk", rows=rows, owners=task.owners[task.n_users :]), task.n_users), True


def trajectory_files(folder: str | Path) -> list[Path]:
    """The teacher files in a folder that is no run, the latest last; none if it is something else."""
    folder = Path(folder)
    if not folder.is_dir() or any((folder / name).is_file() for name in ("config.toml", "data.json", "STATUS.json")):
        return []
    files = sorted(folder.glob("*.safetensors"))
    numbered = all(path.stem.isdecimal() for path in files)
    return sorted(files, key=lambda path: int(path.stem)) if numbered else files

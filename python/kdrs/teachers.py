"""Where knowledge comes from: a trained model, a peer in training, or a file that another library wrote."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from kdrs import ranking
from kdrs.data.interactions import Interactions
from kdrs.errors import ArtefactError, ConfigError, MissingKnowledge, shown
from kdrs.ranking import Ranking
from kdrs.tasks import Queries, SequenceTask, Task, translated
from kdrs.view import DetachedView, DotView, Factors, FrozenView, View, frozen

BLOCK_BYTES = 64 << 20
"""Score blocks of models without factors hold at most this much."""
ENCODED = 4096
"""Queries of sequential models that are encoded at a time."""


class Stage(NamedTuple):
    """A point of a training trajectory."""

    epoch: int
    """Counted from 0; -1 where it is not known."""
    load: Callable[[], Teacher]
    """The teacher as it was then. Earlier ones are built anew on every call: keep what is needed and let go of the rest."""


class Teacher(Protocol):
    """What may be asked of knowledge. Never a submodule of a distiller, never with a gradient."""

    name: str
    asked: Task
    """The task whose queries it answers."""

    @property
    def dim(self) -> int:
        """Size of the representations; ``MissingKnowledge`` if there are none."""

    def view(self, queries: Queries) -> View:
        """A view without gradients, read in evaluation mode."""

    def topk(self, k: int) -> Ranking:
        """Best ``k`` unseen items of every query: int32 [Q, k] and float32 [Q, k], NumPy, padded with -1."""

    def topk_blocks(self, k: int, *, keep_seen: bool = False) -> Iterator[tuple[slice, Ranking]]:
        """The same a block of queries at a time, for what need not be held at once; ``keep_seen`` leaves in what the query
        has seen. Blocks depend on the sizes alone, never on the machine."""

    def top_users(self, k: int) -> np.ndarray:
        """Best ``k`` users of every item, without those who have seen it: int32 [I, k], NumPy, padded with -1."""

    def factors(self) -> Factors | None:
        """The whole of it as dot-product factors, or None if its score is no dot product."""

    def score_block(self, rows: Any) -> Tensor:
        """float32 [b, I]: scores of all items for int query rows [b]."""

    def stages(self) -> Sequence[Stage]:
        """Saved earlier selves, oldest first, itself last."""


class Scored:
    """Lists of whatever answers ``view`` and perhaps ``factors``, for the queries of the task ``asked``.

    ``factors``, ``score_block`` and ``top_users`` speak of the users as of now.
    """

    asked: Task
    """The student's task."""

    def factors(self) -> Factors | None:
        raise NotImplementedError

    def view(self, queries: Queries) -> View:
        raise NotImplementedError

    def score_block(self, rows: Any) -> Tensor:
        """float32 [b, I]: scores of all items for int query rows [b]."""
        return self.view(self._queries(rows)).all_scores()

    def score_pairs(self, rows: Any, ids: Any) -> Tensor:
        """float32 [b, C]: scores of each row's own items, int [b, C]."""
        return self.view(self._queries(rows)).scores(torch.as_tensor(ids, device=self.asked.device).long())

    @property
    def _ranks_users(self) -> bool:
        """Whether all queries of a user are answered alike: this knowledge, or the student's task, knows no moments."""
        return True

    def _blocks(self, k: int, lists_only: bool = True) -> Iterator[slice]:
        """Queries whose lists (int32 and float32), or rows of scores, take ``BLOCK_BYTES``."""
        size = max(1, BLOCK_BYTES // (8 * k if lists_only else 4 * self.asked.n_items))
        if not self._ranks_users:  # each query is encoded, which takes more than its list
            size = min(size, ENCODED)
        for start in range(0, self.asked.n_queries, size):
            yield slice(start, min(start + size, self.asked.n_queries))

    def _queries(self, rows: Any) -> Queries:
        return self.asked.queries(torch.as_tensor(rows, device=self.asked.device).long())

    def topk_blocks(self, k: int, *, keep_seen: bool = False) -> Iterator[tuple[slice, Ranking]]:
        task, k = self.asked, min(k, self.asked.n_items)
        seen, factors = None if keep_seen else task.seen, self.factors()
        for part in self._blocks(k, factors is not None):
            rows = np.arange(part.start, part.stop)
            users = owners_of(task, rows)
            places = None
            if task.owners is not None and self._ranks_users:  # each user once, though it has many queries
                users, places = np.unique(users, return_inverse=True)
                rows = users
            if factors is None:
                ranked = ranking.topk_scores(self.score_block(rows), k, seen=seen, rows=users)
            else:
                queries, items, bias = factors
                asked = queries[users] if self._ranks_users else self.view(self._queries(rows)).queries
                ranked = ranking.topk(asked, items, k, seen=seen, rows=users, bias=bias)
            lists = Ranking(_array(ranked.items), _array(ranked.scores))
            yield part, lists if places is None else Ranking(lists.items[places], lists.scores[places])

    def top_users(self, k: int) -> np.ndarray:
        task, k = self.asked, min(k, self.asked.n_users)
        factors = self.factors()
        if factors is not None:  # an item's bias is the same for all its users
            users = factors.queries[: task.n_users]
            ranked = ranking.topk(factors.items, users, k, seen=task.seen.transpose())
            return np.ascontiguousarray(_array(ranked.items))
        best = Ranking(np.zeros((task.n_items, 0), np.int32), np.zeros((task.n_items, 0), np.float32))
        for rows in row_blocks(task.n_users, task.n_items):
            scores = without_seen(_array(self.score_block(rows)), rows, task.seen).T  # [I, b]
            ids = np.concatenate([best.items, np.tile(rows.astype(np.int32), (task.n_items, 1))], axis=1)
            joined = np.ascontiguousarray(np.concatenate([best.scores, scores], axis=1))
            # users of former blocks come first and have the lower ids, so ties still go to the lower id
            places, kept = ranking.topk_scores(joined, min(k, joined.shape[1]))
            best = Ranking(np.take_along_axis(ids, places.astype(np.int64), axis=1), kept)
        return np.where(best.scores == -np.inf, -1, best.items).astype(np.int32)


def row_blocks(n_rows: int, n_columns: int) -> Iterator[np.ndarray]:
    """The rows from 0 on, int64 [b], so many at a time that their scores, float32 [b, n_columns], take ``BLOCK_BYTES``."""
    size = max(1, BLOCK_BYTES // (4 * n_columns))
    return (np.arange(start, min(start + size, n_rows)) for start in range(0, n_rows, size))


def best_items(teacher: Teacher, k: int, *, keep_seen: bool) -> np.ndarray:
    """The items of ``teacher.topk(k)``, int32 [Q, k], contiguous; ``keep_seen`` leaves in what the query has seen."""
    if not keep_seen:
        return np.ascontiguousarray(teacher.topk(k).items)
    return np.concatenate([ranked.items for _, ranked in teacher.topk_blocks(k, keep_seen=True)])


def without_seen(scores: np.ndarray, rows: np.ndarray, seen: Interactions) -> np.ndarray:
    """A copy of scores float32 [b, N], -inf where the rows [b] of ``seen`` [rows, N] have a pair."""
    masked = np.array(scores, np.float32)
    masked[seen.pairs_of(rows)] = -np.inf
    return masked


def owners_of(task: Task, rows: np.ndarray) -> np.ndarray:
    """The rows of ``task.seen`` that belong to query rows: themselves, unless the task has several queries a user."""
    owners = getattr(task, "owners", None)
    return rows if owners is None else owners[rows]


class ModelTeacher(Scored):
    """A model as teacher, or as the student's own knowledge of itself.

    ``task`` is the model's own; ``asked`` the student's, where that is another: queries are then taken as
    `kdrs.tasks.translated` says, and lists are those of the student's queries, less what their users have seen.

    A teacher at rest is put into evaluation mode.

    ``live=True`` for a model that is still in training: nothing is cached, and between ``look`` and the end of a step it
    answers the step's own queries out of the forward pass it is trained by (dropout and all), detached. Also what the
    evaluator scores: ``factors`` of the users as of now, ``score_block`` and ``score_pairs``.
    """

    def __init__(
        self,
        model: nn.Module,
        task: Task,
        *,
        asked: Task | None = None,
        name: str = "model",
        live: bool = False,
        stages: Sequence[Stage] = (),
        epoch: int = -1,
    ):
        self.model, self.task, self.name, self.live = model, task, name, live
        if not live:
            model.eval()  # for good: draws for the next epoch ask it in another thread
        self.asked = task if asked is None else asked
        theirs, own = self.asked.seen.shape, task.seen.shape
        if theirs != own:
            raise ConfigError(
                f"teacher {shown(name)} knows {own[0]} users and {own[1]} items, the student's task has {theirs[0]} and "
                f"{theirs[1]}",
                "make both tasks of one data set",
            )
        self._stages, self.epoch = stages, epoch
        self._topk: Ranking | None = None
        self._state: FrozenView | None = None
        self._pass: tuple[Queries, View, Callable[[Tensor], Tensor] | None] | None = None

    @property
    def dim(self) -> int:
        return self.model.dim  # type: ignore[return-value]

    @property
    def averages(self) -> bool:
        """Whether the model's own loss is a mean over the batch (`Recommender.averages`)."""
        return bool(getattr(self.model, "averages", False))

    def look(self, queries: Queries, view: View, scores: Callable[[Tensor], Tensor] | None = None) -> None:
        """Takes note of the forward pass of a step in training; ``scores`` of it come from there, if given."""
        self._pass = queries, view, scores

    def look_away(self) -> None:
        """Ends the step."""
        self._pass = None

    def looked_at(self, queries: Queries) -> View | None:
        """The forward pass of these very queries, with its gradient, while a step lasts."""
        return self._pass[1] if self._pass is not None and self._pass[0] is queries else None

    def view(self, queries: Queries) -> View:
        if (current := self.looked_at(queries)) is not None and self._pass is not None:
            return DetachedView(current, self._pass[2])
        if self._state is not None:  # a teacher at rest: one forward pass serves for good
            return self._state.at(queries)
        with frozen(self.model):
            view = FrozenView(self.model(self._understood(queries)), self.model, self._understood)
        if not self.live:
            self._state = view
        return view

    def _understood(self, queries: Queries) -> Queries:
        return translated(queries, self.asked, self.task)

    def topk(self, k: int) -> Ranking:
        k = min(k, self.task.n_items)
        if self.live or self._topk is None or self._topk.items.shape[1] < k:
            self._topk = self._rank(k)
        ranked = self._topk
        if self.live:
            self._topk = None
        return Ranking(ranked.items[:, :k], ranked.scores[:, :k])

    def stages(self) -> Sequence[Stage]:
        return (*self._stages, Stage(self.epoch, lambda: self))

    def factors(self) -> Factors | None:
        of_task = getattr(self.model, "factors_of", None)
        with frozen(self.model):
            return self.model.factors() if of_task is None else of_task(self.task)  # type: ignore[operator]

    def after(self, pairs: Interactions) -> ModelTeacher:
        """A model of sequences asked when users have these items too, [U, I], one each at most; any other as it is."""
        if not isinstance(self.task, SequenceTask) or not hasattr(self.model, "factors_of"):
            return self
        return ModelTeacher(self.model, self.task.after(pairs), name=self.name, live=self.live)

    @property
    def _ranks_users(self) -> bool:
        return self.asked.owners is None or self.task.owners is None

    def _rank(self, k: int) -> Ranking:
        blocks = [ranked for _, ranked in self.topk_blocks(k)]
        return Ranking(*(np.concatenate([getattr(block, part) for block in blocks]) for part in ("items", "scores")))


class FileTeacher(Scored):
    """A teacher that any library can write: one safetensors file, ``kdrs = "teacher/1"`` in its metadata.

    It holds any of ``users`` float [U, D] and ``items`` float [I, D] (score = dot product), ``item_bias`` float [I],
    ``topk`` int [U, K] best first (-1 pads), ``topk_scores`` float [U, K]; and, in the metadata, ``users_digest`` and
    ``items_digest`` of the id lists (``kdrs.data.Ids.digest``), so that a teacher of other ids is refused and not
    averaged in. Pickles are never loaded.

    ``stages`` are earlier selves, ``epoch`` is this one's; `FileTeacher.trajectory` reads them from a folder.

    Raises ``ArtefactError`` for files that are no such thing, for shapes, values and ids that do not fit the task.
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
        tensors, metadata = read_safetensors(self.path)
        if metadata.get("kdrs") != "teacher/1":
            raise ArtefactError(
                f"{shown(self.name)} is no kdrs teacher file: its metadata say kdrs = {shown(str(metadata.get('kdrs')))}",
                'write it with safetensors and metadata {"kdrs": "teacher/1"}; the README shows how',
            )
        unknown = sorted(set(tensors) - {"users", "items", "item_bias", "topk", "topk_scores"})
        if unknown:
            raise ArtefactError(
                f"{shown(self.name)} holds {shown(unknown[0])}", "allowed: users, items, item_bias, topk, topk_scores"
            )
        self._check_ids(metadata, digests)
        self._factors = self._read_factors(tensors)
        self._lists = self._read_lists(tensors)
        self._ranked: Ranking | None = None
        if self._factors is None and self._lists is None:
            raise ArtefactError(f"{shown(self.name)} holds neither users and items nor topk", "export one of them")

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
        if self._factors is None:
            assert self._lists is not None
            raise MissingKnowledge(
                f"teacher {shown(self.name)} lists {self._lists.items.shape[1]} items a query; {k} were asked for",
                "export longer lists, or lower the method's pool",
            )
        if self._ranked is None or self._ranked.items.shape[1] < k:
            users, items, bias = self._factors
            ranked = ranking.topk(users, items, k, seen=self.task.seen, bias=bias)
            self._ranked = Ranking(_array(ranked.items), _array(ranked.scores))
        return per_query(Ranking(self._ranked.items[:, :k], self._ranked.scores[:, :k]), self.task)

    def topk_blocks(self, k: int, *, keep_seen: bool = False) -> Iterator[tuple[slice, Ranking]]:
        k = min(k, self.task.n_items)
        if keep_seen:
            self._vectors("lists that keep what was seen")
        if keep_seen or (self._factors is not None and (self._lists is None or self._lists.items.shape[1] < k)):
            yield from super().topk_blocks(k, keep_seen=keep_seen)
        else:
            ranked = self.topk(k)
            for part in self._blocks(k):
                yield part, Ranking(ranked.items[part], ranked.scores[part])

    def top_users(self, k: int) -> np.ndarray:
        self._vectors("the users of each item")
        return super().top_users(k)

    def stages(self) -> Sequence[Stage]:
        return (*self._stages, Stage(self.epoch, lambda: self))

    def factors(self) -> Factors | None:
        return self._factors

    def _vectors(self, what: str) -> Factors:
        if self._factors is None:
            raise MissingKnowledge(
                f"teacher {shown(self.name)} holds only a ranking; {what} were asked for",
                "export user and item vectors, or use a method that needs a ranking alone, such as rrd",
            )
        return self._factors

    def _check_ids(self, metadata: dict[str, str], digests: dict[str, str] | None) -> None:
        stated = {kind: metadata.get(f"{kind}_digest") for kind in ("users", "items")}
        for kind, digest in (digests or {}).items():
            if stated[kind] is None:
                warnings.warn(
                    f"teacher {shown(self.name)} states no {kind}_digest: that its {kind} are in the data set's order is "
                    "taken on trust; look at the teacher's own metrics",
                    stacklevel=4,
                )
            elif stated[kind] != digest:
                raise ArtefactError(
                    f"teacher {shown(self.name)} was made for other {kind} (digest {shown(str(stated[kind]), 12)}, the data "
                    f"set's is {digest[:12]})",
                    f"export it with its {kind} in the data set's order and the digest of `kdrs data describe`",
                )

    def _read_factors(self, tensors: dict[str, Tensor]) -> Factors | None:
        present = [name for name in ("users", "items", "item_bias") if name in tensors]
        if not present:
            return None
        if "users" not in present or "items" not in present:
            raise ArtefactError(
                f"{shown(self.name)} holds {' and '.join(present)} alone", "users and items go together"
            )
        wanted = {"users": self.task.n_users, "items": self.task.n_items, "item_bias": self.task.n_items}
        for name in present:
            tensor = tensors[name]
            if tensor.ndim != (1 if name == "item_bias" else 2) or not tensor.is_floating_point():
                raise ArtefactError(f"{shown(self.name)}: {name} is {tensor.dtype} of shape {list(tensor.shape)}")
            if tensor.shape[0] != wanted[name]:
                hint = ""
                if tensor.shape[0] == wanted[name] + 1:
                    hint = "one row too many: is row 0 a padding row, as RecBole writes it? leave it out"
                elif tensor.ndim == 2 and tensor.shape[0] in (wanted["users"], wanted["items"]):
                    hint = "are users and items exchanged?"
                raise ArtefactError(
                    f"{shown(self.name)}: {name} has {tensor.shape[0]} rows; the data set has {wanted[name]}",
                    hint or None,
                )
            finite = torch.isfinite(tensor.float())
            if not finite.all():
                row = int((~finite).nonzero()[0, 0])
                raise ArtefactError(f"{shown(self.name)}: {name} row {row} is not finite", "export it again")
        users, items = tensors["users"], tensors["items"]
        if users.shape[1] != items.shape[1]:
            raise ArtefactError(f"{shown(self.name)}: users have {users.shape[1]} dimensions, items {items.shape[1]}")
        device = self.task.device
        bias = tensors["item_bias"].float().to(device) if "item_bias" in tensors else None
        return Factors(users.float().to(device).contiguous(), items.float().to(device).contiguous(), bias)

    def _read_lists(self, tensors: dict[str, Tensor]) -> Ranking | None:
        if "topk" not in tensors:
            return None
        items = tensors["topk"]
        if items.ndim != 2 or items.is_floating_point() or items.shape[0] != self.task.n_users:
            raise ArtefactError(
                f"{shown(self.name)}: topk is {items.dtype} of shape {list(items.shape)}",
                f"allowed: integers of shape [{self.task.n_users}, K]",
            )
        lists = items.numpy().astype(np.int64)
        bad = (lists < -1) | (lists >= self.task.n_items)
        ordered = np.sort(lists, axis=1)
        repeated = ((ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)).any(axis=1)
        for rows, what in ((bad.any(axis=1), "an id outside the catalogue"), (repeated, "an item twice")):
            if rows.any():
                raise ArtefactError(
                    f"{shown(self.name)}: topk row {int(rows.argmax())} holds {what}", "export it again"
                )
        if "topk_scores" in tensors:
            scores = tensors["topk_scores"].float().numpy()
            if scores.shape != lists.shape or not np.isfinite(scores[lists >= 0]).all():
                raise ArtefactError(f"{shown(self.name)}: topk_scores must be finite, of shape {list(lists.shape)}")
        else:
            scores = np.full(lists.shape, np.nan, np.float32)
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
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise ArtefactError(f"no file {shown(str(path))}", "check the path")
    with path.open("rb") as file:
        head = file.read(9)
    # a safetensors header is JSON behind its length in 8 bytes, whose lowest may be anything
    if head[8:] != b"{" and (head[:2] == b"PK" or head[:1] == b"\x80"):
        raise ArtefactError(
            f"{shown(str(path))} is a pickle or a torch archive, which can run code when loaded: kdrs never loads one",
            "load it in its own program and save its vectors with safetensors; the README shows how",
        )
    try:
        with safe_open(str(path), framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise ArtefactError(
            f"{shown(str(path))} is no readable safetensors file: {shown(str(error))}", "export it again"
        ) from None


def _array(values: Any) -> np.ndarray:
    return values.cpu().numpy() if isinstance(values, Tensor) else values

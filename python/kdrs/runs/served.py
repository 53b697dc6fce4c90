"""An exported student measured: joined with a data set by id, as a teacher file is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kdrs.compact.encoders import asked
from kdrs.compact.parts import NETWORKS
from kdrs.core.codes import Codes
from kdrs.core.names import Names
from kdrs.data import Dataset, Histories, Ids, Interactions
from kdrs.errors import ArtefactError, MissingKnowledge, shown
from kdrs.evaluation.protocols import PROTOCOLS
from kdrs.models.stored import Side, StoredModel
from kdrs.runs.records import PATH
from kdrs.runs.results import held_out
from kdrs.student import Student, file
from kdrs.teachers.arranging import check_matched
from kdrs.teachers.audit import teacher_doubts
from kdrs.teachers.ids import Joined
from kdrs.teachers.model import ModelTeacher
from kdrs.training.rows import UserTask

SERVED_EARLIER = (
    "its users are as of the end of their training items; its run is shown the validation item too before it is measured on "
    "test, and may be better there"
)


class _Answers(StoredModel):
    """Items in the data set's order, and what its users ask with."""

    def __init__(self, items: Side, queries: Side, bias: Tensor | None, task: UserTask):
        super().__init__(items, users=queries, bias=bias, task=task)
        self.user_side = queries  # of encoded users no table, so its scales are not cut as those of files are


class ServedStudent(ModelTeacher):
    """A student file as it answers for the users of a data set, with rows in the data set's order.

    Users of a table are joined by id. Encoded users are made of the data set's training items, whatever the file keeps as
    seen: what is measured is what was trained, and no held-out item is known. Raises ``ArtefactError`` where the file lacks
    users or items of the data set, ``MissingKnowledge`` where its encoder reads an order that the data set lacks.
    """

    def __init__(self, student: Student, dataset: Dataset, name: str, later: Interactions | None = None):
        self.student, self.dataset = student, dataset
        tables = student.tables
        items = _joined(name, "items", dataset.items, student.items, student.card)
        if tables.users is None:
            queries = asked(tables.encoder, self._histories(items.rows, name, later), tables.items)  # type: ignore[arg-type]
        else:
            assert student.users is not None
            queries = tables.users[_joined(name, "users", dataset.users, student.users, student.card).rows]
        bias = None if tables.bias is None else torch.from_numpy(tables.bias[items.rows])
        task = UserTask(dataset.train)
        super().__init__(_Answers(_side(tables.items[items.rows]), _side(queries), bias, task), task, name=name)

    @classmethod
    def load(cls, path: str | Path, dataset: Dataset) -> ServedStudent:
        """Of a file. Raises ``ArtefactError`` for one that is damaged too."""
        return cls(Student.load(path), dataset, str(path))

    def _histories(self, rows: np.ndarray, name: str, later: Interactions | None) -> Interactions:
        """The users' training items [U, I of the file], and after them those of ``later``, one a user at most."""
        data, encoder = self.dataset, self.student.tables.encoder
        users, items = data.train.row_of_pair, data.train.indices
        shape = data.n_users, len(self.student.items)
        if encoder is None or not encoder.ordered:
            return Interactions.from_pairs(users, rows[items], *shape)
        if data.order is None:
            raise MissingKnowledge(
                f"{shown(name, PATH)} reads items in their order, and the data set {shown(data.name)} has none",
                "give one whose rows have times, with --data; or the data set that it was made of",
            )
        items = data.order
        if later is not None:
            users, items = np.append(users, later.row_of_pair), np.append(items, later.indices)
        return Histories.from_pairs(users, rows[items], *shape)

    def after(self, pairs: Interactions) -> ServedStudent:
        """A model of sequences asked when users have these items too, [U, I], one each at most; any other as it is."""
        encoder, users = self.student.tables.encoder, self.student.tables.users
        if users is not None or encoder is None or not encoder.ordered:
            return self
        return ServedStudent(self.student, self.dataset, self.name, pairs)

    @property
    def size(self) -> tuple[int, int, float]:
        """Numbers; bytes of all tables, ids left out; bytes of a row of the larger table. A fitted encoder of new users beside
        a table is no part of the model."""
        tables = self.student.tables
        if tables.users is not None and tables.encoder is not None and tables.encoder.kind not in NETWORKS:
            tables = tables._replace(encoder=None)
        return tables.n_numbers, tables.nbytes, tables.row_bytes

    @property
    def teachers(self) -> tuple[str, ...]:
        """The names of its run's teachers, by its card; ``seed-N`` names none: there may be many."""
        told = self.student.card.get("teachers")
        names = told if isinstance(told, list) else []
        return tuple(name for name in names if isinstance(name, str) and not name.startswith("seed-"))

    @property
    def role(self) -> str:
        """``alone`` for a run without a teacher, by its card; else ``student``."""
        card = self.student.card
        return "alone" if "model" in card and not (card.get("methods") or card.get("teachers")) else "student"

    def doubts(self) -> tuple[str, ...]:
        """What speaks against its figures: the warnings of its card. Of a run on this very data set the card vouches; of others
        their scores are looked at, as those of teacher files."""
        found = []
        card, tables = self.student.card, self.student.tables
        made_of = _told(card)
        if made_of.get("fingerprint") != self.dataset.fingerprint:
            found.append(
                f"it was made of another data set or split ({shown(str(made_of.get('name', 'unnamed')))}): what is held out "
                "here may be what it was trained on"
            )
        if found or "model" not in card:
            found += teacher_doubts(self, {"train": self.dataset.train, **held_out(self.dataset)})
        warned = card.get("warnings")
        found += [str(told) for told in warned] if isinstance(warned, list) else []
        ordered = tables.encoder is not None and tables.encoder.ordered
        if tables.users is not None and ordered and self.dataset.test_follows_valid:
            found.append(SERVED_EARLIER)
        return tuple(found)


def is_student(path: Path) -> bool:
    return path.is_file() and file.is_one(path)


def protocol_of(path: Path) -> str:
    """The protocol that a student file's run was measured with, by its card; ``auto`` where it does not say."""
    told = Student.load(path, verify=False).card.get("protocol")
    return told if isinstance(told, str) and told in PROTOCOLS else "auto"


def _told(card: dict[str, Any]) -> dict[str, Any]:
    """What a card says of the data."""
    told = card.get("data")
    return told if isinstance(told, dict) else {}


def _joined(name: str, side: str, ours: Ids, theirs: Names, card: dict[str, Any]) -> Joined:
    """The file's row of each of the data set's ids. Raises ``ArtefactError`` where there is none."""
    joined = Joined.of(ours, theirs)
    check_matched(name, side, joined, None)
    if joined.n_missing:
        made_of = shown(str(_told(card).get("name", "the one of its run")))
        raise ArtefactError(
            f"{shown(name, PATH)} lacks {joined.n_missing:,} of the data set's {joined.rows.size:,} {side}, first "
            f"{', '.join(shown(one, 30) for one in joined.missing)}",
            f"measure it on the data set that it was made of, which is called {made_of}: --data; or export a run of this one",
        )
    return joined


def _side(side: Any) -> Side:
    return side if isinstance(side, Codes) else torch.from_numpy(np.ascontiguousarray(side, np.float32))

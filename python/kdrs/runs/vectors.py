"""What a student file holds of a run or a teacher file: tables of vectors."""

from __future__ import annotations

from typing import Any

import numpy as np

from kdrs.compact.tables import Tables, short
from kdrs.core.codes import Codes
from kdrs.errors import MissingKnowledge, quoted, shown
from kdrs.models.stored import StoredModel
from kdrs.runs.opened import LoadedRun
from kdrs.runs.records import PATH
from kdrs.runs.source import Source, distil_lists
from kdrs.teachers.file import FileTeacher


def tables_of(given: Source, run: LoadedRun | None) -> Tables:
    if run is not None and isinstance(run.model, StoredModel):
        return run.model.tables()
    assert given.teacher is not None
    if given.teacher.factors() is None:
        raise _no_vectors(given)
    users, items, bias = given.vectors(None)
    return whole(users, items, bias)


def _no_vectors(given: Source) -> MissingKnowledge:
    """Of a teacher file what it lacks; of others that their scores are no products."""
    if not isinstance(given.teacher, FileTeacher):
        return no_product(given.name)
    if "users" not in given.teacher.sides:
        given.teacher.check_scores()  # says what it lacks
    return MissingKnowledge(
        f"{shown(given.name, PATH)} holds lists alone, and a student file holds vectors",
        f"distil a student from its lists: {distil_lists(given.teacher, given.path)}; then export STUDENT",
    )


def no_product(name: str) -> MissingKnowledge:
    return MissingKnowledge(
        f"the scores of {shown(name, PATH)} are no products of vectors, and a student file holds vectors",
        f"approximate them first: kdrs compress {quoted(name)} --dim 64 --bits 32 --out SMALL; then export SMALL",
    )


def whole(users: Any, items: Any, bias: Any) -> Tables:
    sides = [short(side) if isinstance(side, Codes) else _array(side) for side in (items, users)]
    return Tables(sides[0], sides[1], None, None if bias is None else _array(bias))


def _array(values: Any) -> np.ndarray:
    return np.ascontiguousarray(values.detach().cpu().numpy() if hasattr(values, "detach") else values, np.float32)

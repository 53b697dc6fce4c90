"""What a compact run ends with: tables of codes or vectors, an encoder in place of users, a bias. It is not trained."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from kdrs.compact.encoders import Encoder, asked
from kdrs.compact.tables import Tables, short
from kdrs.core.codes import Codes
from kdrs.data.interactions import Interactions, as_interactions
from kdrs.errors import ArtefactError, DataError, shown
from kdrs.training.queries import Queries, Task
from kdrs.training.view import DotView, Factors

Side = Codes | Tensor
"""A table: codes, or vectors float32 [N, D]."""


class StoredModel(nn.Module):
    """A ranking by products of stored vectors: ``items``, and ``users`` or an ``encoder`` of their histories, which are the
    training items of ``task.seen``. Whatever is coded is used as codes by `factors`, and decoded row by row by views.

    ``state_dict`` and `from_tensors` are its file: what is in it is what is counted as its bytes.
    """

    def __init__(
        self,
        items: Side,
        *,
        task: Task,
        users: Side | None = None,
        encoder: Encoder | None = None,
        bias: Tensor | None = None,
    ):
        super().__init__()
        if (users is None) == (encoder is None):
            raise DataError("a stored model has users or an encoder of them", "give one of the two")
        self.item_side, self.user_side = _short(items), None if users is None else _short(users)
        self.user_encoder, self.task = encoder, task
        self.dim = int(items.shape[1])
        self.bias = bias
        self._asking: Side | None = None

    def tables(self) -> Tables:
        """The same as NumPy arrays."""
        items, users = map(_array_side, self._sides())
        assert items is not None
        return Tables(items, users, self.user_encoder, None if self.bias is None else self.bias.cpu().numpy())

    def _sides(self) -> tuple[Side, Side | None]:
        return self.item_side, self.user_side

    def state_dict(self, *_: Any, **__: Any) -> dict[str, Tensor]:  # type: ignore[override]
        """The tensors of its file."""
        return {name: as_tensor(value) for name, value in self.tables().tensors().items()}

    @property
    def n_parameters(self) -> int:
        """Numbers that are stored."""
        return self.tables().n_numbers

    @property
    def nbytes(self) -> int:
        return self.tables().nbytes

    @property
    def row_bytes(self) -> float:
        """Bytes of a row of the larger table, its scale and bias included."""
        return self.tables().row_bytes

    def description(self) -> dict[str, Any]:
        """What a file says of its tensors."""
        return self.tables().description()

    @classmethod
    def from_tensors(
        cls, tensors: Mapping[str, Tensor], description: Mapping[str, Any], task: Task, where: str
    ) -> StoredModel:
        """Raises ``ArtefactError`` where tensors and description do not fit each other or the task's users and items."""
        arrays = {name: as_array(tensor) for name, tensor in tensors.items()}
        try:
            found = Tables.from_tensors(arrays, description, task.n_users, task.n_items)
            items, users = (
                side if side is None or isinstance(side, Codes) else torch.from_numpy(side)
                for side in (found.items, found.users)
            )
            assert items is not None
            bias = None if found.bias is None else torch.from_numpy(found.bias)
            return cls(items, task=task, users=users, encoder=found.encoder, bias=bias)
        except DataError as error:
            raise ArtefactError(
                f"the tables in {where} do not fit their description: {shown(error.cause, 300)}",
                "restore the run's files from a copy",
            ) from None

    # --- answering ----------------------------------------------------------------------------------------------------

    def factors(self) -> Factors:
        """Users, or what encoded users ask with, items and bias; codes where they are coded."""
        return Factors(self._queries(), self.item_side, self.bias)  # type: ignore[arg-type]

    def encode(self, histories: Interactions) -> Side:
        """What users with these items [Q, I] ask with, known or new: `Interactions` or a SciPy sparse matrix. Raises
        ``DataError`` for anything else, for another catalogue, and where users have a table."""
        if self.user_encoder is None:
            raise DataError(
                "the users of this model have a table, and it knows no others", "compress it with users encoded"
            )
        histories = as_interactions(histories, "histories")
        items = self.item_side if isinstance(self.item_side, Codes) else self.item_side.cpu().numpy()
        found = asked(self.user_encoder, histories, items)
        return found if isinstance(found, Codes) else torch.from_numpy(found)

    def _queries(self) -> Side:
        if self.user_side is not None:
            return self.user_side
        if self._asking is None:
            self._asking = self.encode(self.task.seen)
        return self._asking

    def forward(self, queries: Queries) -> DotView:
        device = queries.users.device
        return DotView(
            queries,
            lambda asked: rows_of(self._queries(), asked.users),
            lambda ids: rows_of(self.item_side, ids),
            lambda: rows_of(self.item_side, torch.arange(len(self.item_side), device=device)),
            self.bias,
        )


def _array_side(side: Side | None) -> Codes | np.ndarray | None:
    return side if side is None or isinstance(side, Codes) else side.cpu().numpy()


def _short(side: Side) -> Side:
    return short(side) if isinstance(side, Codes) else side


def as_array(tensor: Tensor) -> np.ndarray:
    """NumPy's, bfloat16 as uint16."""
    return (tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor).numpy()


def as_tensor(array: np.ndarray) -> Tensor:
    """torch's own copy, uint16 as bfloat16."""
    tensor = torch.from_numpy(np.array(array))
    return tensor.view(torch.bfloat16) if tensor.dtype == torch.uint16 else tensor


def rows_of(side: Side, ids: Tensor) -> Tensor:
    """float32 [..., D] of rows int64 [...], on the ids' device; those of codes in their turned directions."""
    if isinstance(side, Codes):
        found = torch.from_numpy(side.take(ids.reshape(-1).cpu().numpy()).turned()).to(ids.device)
        return found.view(*ids.shape, side.shape[1])
    return side.to(ids.device)[ids]


def encoder_of(model: nn.Module) -> str | None:
    """The kind of a stored model's encoder: ``sum``, as it is trained, or ``ridge``; None of all other models."""
    encoder = model.user_encoder if isinstance(model, StoredModel) else None
    return None if encoder is None else encoder.kind

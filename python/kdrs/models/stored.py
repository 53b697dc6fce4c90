"""What a compact run ends with: tables of codes or vectors, an encoder in place of users, a bias. It is not trained."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor, nn

from kdrs.compact.encoders import Encoder, asked, encoder_of, parts_of
from kdrs.core.codes import MAX_DIM, Codes
from kdrs.data.interactions import Interactions
from kdrs.errors import ArtefactError, ConfigError, DataError, KdrsError, shown
from kdrs.evaluation.scorers import as_interactions
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

    def state_dict(self, *_: Any, **__: Any) -> dict[str, Tensor]:  # type: ignore[override]
        """The tensors of its file."""
        found = {} if self.bias is None else {"bias": self.bias}
        for name, side in (("items", self.item_side), ("users", self.user_side)):
            found |= {f"{name}_{part}": value for part, value in _parts(side).items()}
        encoder = {} if self.user_encoder is None else parts_of(self.user_encoder)
        return found | {f"encoder_{name}": torch.from_numpy(np.array(value)) for name, value in encoder.items()}

    @property
    def n_parameters(self) -> int:
        """Numbers that are stored."""
        sides = [side for side in (self.item_side, self.user_side) if side is not None]
        numbers = sum(int(np.prod(side.shape)) + (len(side) if isinstance(side, Codes) else 0) for side in sides)
        others = [tensor for name, tensor in self.state_dict().items() if not name.startswith(("items_", "users_"))]
        return numbers + sum(tensor.numel() for tensor in others)

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.state_dict().values())

    @property
    def row_bytes(self) -> float:
        """Bytes of a row of the larger table, its scale and bias included."""
        sides = [side for side in (self.item_side, self.user_side) if side is not None]
        rows = [sum(part.nbytes for part in _parts(side).values()) / max(len(side), 1) for side in sides]
        rows[0] += 0 if self.bias is None else 4
        return max(rows)

    def description(self) -> dict[str, Any]:
        """What a file says of its tensors."""
        found: dict[str, Any] = {"dim": self.dim}
        for name, side in (("items", self.item_side), ("users", self.user_side)):
            if side is not None:
                found[name] = {"bits": side.bits, "seed": side.seed} if isinstance(side, Codes) else {"bits": 32}
        if self.user_encoder is not None:
            found["encoder"] = self.user_encoder.kind
        return found

    @classmethod
    def from_tensors(
        cls, tensors: Mapping[str, Tensor], description: Mapping[str, Any], task: Task, where: str
    ) -> StoredModel:
        """Raises ``ArtefactError`` where tensors and description do not fit each other or the task's users and items."""
        left = dict(tensors)
        try:
            told = _Described.model_validate(dict(description))
            dim, own_side = told.dim, told.users
            items = _side(left, "items", told.items, task.n_items, dim)
            users = None if own_side is None else _side(left, "users", own_side, task.n_users, dim)
            if own_side is not None and own_side.way != told.items.way:
                raise DataError("users and items are no tables that go together")
            encoder = None
            if told.encoder is not None:
                names = [name for name in left if name.startswith("encoder_")]
                own = {name.removeprefix("encoder_"): left.pop(name).numpy() for name in names}
                encoder = encoder_of(told.encoder, own, dim)
            bias = left.pop("bias", None)
            if bias is not None:
                if (bias.shape, bias.dtype) != ((task.n_items,), torch.float32):
                    raise DataError(f"bias is {bias.dtype} {tuple(bias.shape)}")
                if not torch.isfinite(bias).all():
                    raise DataError("the bias is not finite")
            if left:
                raise DataError(f"nothing is known of the tensor {shown(sorted(left)[0])}")
            return cls(items, task=task, users=users, encoder=encoder, bias=bias)
        except (KeyError, TypeError, ValueError, ConfigError, DataError) as error:
            if isinstance(error, ValidationError):
                wrong = error.errors()[0]
                cause = f"{'.'.join(map(str, wrong['loc'])) or 'the description'}: {wrong['msg']}"
            elif isinstance(error, KdrsError):
                cause = error.cause
            else:
                cause = f"{error.args[0]!r} is missing" if isinstance(error, KeyError) else str(error)
            raise ArtefactError(
                f"the tables in {where} do not fit their description: {shown(cause, 300)}",
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


def _short(side: Side) -> Side:
    """Codes whose scales are bfloat16 numbers, as files hold them: two bytes, a relative error of 2^-9 at most."""
    if not isinstance(side, Codes):
        return side
    scales = torch.from_numpy(np.array(side.scales)).to(torch.bfloat16).float().numpy()
    if np.array_equal(scales, side.scales):
        return side
    return Codes.from_parts(side.data, scales, side.bits, side.shape[1], seed=side.seed)


def rows_of(side: Side, ids: Tensor) -> Tensor:
    """float32 [..., D] of rows int64 [...], on the ids' device; those of codes in their turned directions."""
    if isinstance(side, Codes):
        found = torch.from_numpy(side.take(ids.reshape(-1).cpu().numpy()).turned()).to(ids.device)
        return found.view(*ids.shape, side.shape[1])
    return side.to(ids.device)[ids]


def _parts(side: Side | None) -> dict[str, Tensor]:
    if side is None:
        return {}
    if isinstance(side, Codes):
        codes, scales = (torch.from_numpy(np.array(part)) for part in (side.data, side.scales))
        return {"codes": codes, "scales": scales.to(torch.bfloat16)}
    return {"vectors": side}


class _Table(BaseModel):
    """What a file says of a table."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    bits: Literal[1, 2, 3, 4, 8, 32]
    seed: Annotated[int, Field(ge=0, lt=2**64)] | None = None

    @property
    def way(self) -> tuple[bool, int | None]:
        """What must be the same on both sides of a product."""
        return self.bits == 32, self.seed


class _Described(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    dim: Annotated[int, Field(ge=1, le=MAX_DIM)]
    items: _Table
    users: _Table | None = None
    encoder: str | None = None


def _side(left: dict[str, Tensor], name: str, told: _Table, n: int, dim: int) -> Side:
    if told.bits != 32:
        data, scales = left.pop(f"{name}_codes"), left.pop(f"{name}_scales")
        if scales.dtype != torch.bfloat16:
            raise DataError(f"the scales of {name} are {scales.dtype}")
        if told.seed is None:
            raise DataError(f"the codes of {name} have no seed")
        side: Side = Codes.from_parts(data.numpy(), scales.float().numpy(), told.bits, dim, seed=told.seed)
    else:
        side = left.pop(f"{name}_vectors")
        if side.dtype != torch.float32 or not torch.isfinite(side).all():
            raise DataError(f"the vectors of {name} are {side.dtype}, or not finite")
    if tuple(side.shape) != (n, dim):
        raise DataError(f"the table of {name} is {tuple(side.shape)}, the data have {n}, the model {dim} dimensions")
    return side

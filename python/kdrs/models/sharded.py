"""Models of which each process holds some columns (`kdrs.training.columns`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from kdrs.errors import ConfigError
from kdrs.models.base import ModelConfig, Recommender
from kdrs.models.compact import is_compact
from kdrs.training.columns import Columns, ColumnView, Spread, Tiles, spread
from kdrs.training.queries import Queries, Task
from kdrs.training.view import DotView, View


class Sharded(Recommender):
    """What a model of columns is beside itself: put before a model's class (`sharded_class`).

    Its tables are those of the model with as many dimensions as the process holds, and begin with these columns of what one
    process would begin with. Its view brings coordinates together; ``dim`` counts all of them. ``factors`` are None: no process
    has them.
    """

    held: ClassVar[Columns]
    collective = True

    def __init__(self, config: ModelConfig, task: Task):
        with self.held.drawing():
            super().__init__(config.model_copy(update={"dim": self.held.width}), task)
        self.dim = self.held.dim

    def forward(self, queries: Queries) -> View:
        view = super().forward(queries)  # of the model's own class
        assert isinstance(view, DotView)
        return ColumnView(view, queries, self.held)

    @property
    def scores_are_products(self) -> bool:
        return False

    def factors(self) -> None:
        return None

    def tiles(self) -> Tiles:
        """What brings the factors together, a few at a time."""
        own = super().factors()  # of the model's own class
        assert own is not None
        return Tiles(own, self.held)

    def begin_with(self, users: Tensor, items: Tensor) -> None:
        super().begin_with(users[:, self.held.own], items[:, self.held.own])

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Takes whole tables too, their own columns of them."""
        own = {
            name: tensor[:, self.held.own] if tensor.ndim == 2 and tensor.shape[1] == self.held.dim else tensor
            for name, tensor in state_dict.items()
        }
        return super().load_state_dict(own, *args, **kwargs)

    def whole(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor | Spread]:
        return spread(weights, self.spread, self.held)

    @property
    def spread(self) -> tuple[str, ...]:
        """Names of the tables."""
        return tuple(name for name, parameter in self.named_parameters() if parameter.ndim == 2)

    @property
    def n_parameters(self) -> int:
        """Of all processes."""
        return sum(parameter.shape[0] * self.held.dim for parameter in self.parameters())


def sharded_class(cls: Any, columns: Columns) -> type[Recommender]:
    """The class of a model of columns: `Sharded` before the model's own, whose loss of scores it keeps."""
    kept = {name: vars(cls)[name] for name in ("score_loss",) if name in vars(cls)}
    return type(f"Sharded{cls.__name__}", (Sharded, cls), {"__doc__": cls.__doc__, "held": columns, **kept})


def check_sharded(name: str, cls: type[Recommender], config: ModelConfig) -> None:
    """Raises ``ConfigError`` for a model that cannot be divided by columns."""
    if not ("shards" in vars(cls) and cls.shards):
        raise ConfigError(
            f'train.shard is "columns", and {name} mixes the coordinates of its vectors',
            "take bpr or lightgcn; or leave train.shard out: every process then holds the whole model, and batches are divided",
        )
    if is_compact(config):
        raise ConfigError(
            'train.shard is "columns", and a model of few bits or encoded users rounds or multiplies whole vectors',
            'set model.bits = 32 and model.users = "table", and make it small afterwards: kdrs compress',
        )

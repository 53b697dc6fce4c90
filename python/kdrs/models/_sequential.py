"""What models of sequences share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from kdrs.core.sampling import stream
from kdrs.data.interactions import Interactions
from kdrs.errors import ConfigError
from kdrs.models._dropout import Dropout
from kdrs.models.base import ModelConfig, Recommender
from kdrs.training.lazy import Lazy
from kdrs.training.queries import Epoch, Queries, Task
from kdrs.training.sequences import SequenceTask
from kdrs.training.view import DotView, Factors

BLOCK = 1024
"""Users encoded at a time when all of them are asked for."""


class SequentialRecommender(Recommender):
    """A model whose query vector is computed from `Queries.history`, and whose score is a dot product.

    ``factors`` answers for the users as of now. That encodes every user anew, block by block; nothing is kept.
    """

    def __init__(self, config: ModelConfig, task: Task, length: int):
        super().__init__(config, task)
        if not isinstance(task, SequenceTask) or task.length != length:
            got = f"of length {task.length}" if isinstance(task, SequenceTask) else f"a {type(task).__name__}"
            raise ConfigError(
                f"{type(self).__name__} reads sequences of {length} items, the task is {got}",
                f"make it with {type(self).__name__}.make_task, or a SequenceTask of length {length}",
            )
        self.task = task
        self.n_items = task.n_items
        self._noise_seed: int | None = None
        self._asker = ""
        self._asked: dict[str, int] = {}

    @classmethod
    def make_sequences(
        cls, train: Interactions, order: NDArray[np.int32] | None, options: dict[str, Any], **form: Any
    ) -> SequenceTask:
        """A `SequenceTask` of the options of `PairTask`. ``layout`` has no meaning there: an instance is encoded once, and
        keeps all its negatives."""
        for option, name in (("never", "train.leak_held_out"), ("draws", "train.draws")):
            if option in options:
                raise ConfigError(
                    f"{name} is set with {cls.__name__}", "leave it out: no published code of sequences has it"
                )
        return SequenceTask(train, order, **{key: value for key, value in options.items() if key != "layout"}, **form)

    def encode(self, queries: Queries) -> Tensor:
        """float32 [B, D]: the vectors of queries."""
        raise NotImplementedError

    def on_epoch_start(self, epoch: Epoch) -> None:
        self._noise_seed, self._asked = epoch.stream("dropout of other queries"), {}

    def on_term(self, name: str) -> None:
        self._asker = name

    def apart(self, encode: Callable[[Queries], Tensor], own: Queries) -> Callable[[Queries], Tensor]:
        """``encode``, with the dropout of a stream of the asking term's own for queries other than a step's ``own``: the noise
        of the step, which is torch's, and that of other terms stay as they were."""

        def encoded(asked: Queries) -> Tensor:
            if asked is own or not self.training or self._noise_seed is None:
                return encode(asked)
            asker = self._asker
            count = self._asked[asker] = self._asked.get(asker, 0) + 1
            noise = torch.Generator(asked.rows.device).manual_seed(stream(self._noise_seed, asker, count))
            layers = [module for module in self.modules() if isinstance(module, Dropout)]
            for layer in layers:
                layer.noise = noise
            try:
                return encode(asked)
            finally:
                for layer in layers:
                    layer.noise = None

        return encoded

    def item_vectors(self) -> tuple[Tensor, Tensor | None]:
        """float32 [I, D] and biases [I] or None."""
        raise NotImplementedError

    def history(self, queries: Queries) -> Tensor:
        """int64 [B, S]. Raises ``ConfigError`` for queries that carry none, or one of another length."""
        if queries.history is None or queries.history.shape[1] != self.task.length:
            got = "no history" if queries.history is None else f"a history of {queries.history.shape[1]} items"
            raise ConfigError(
                f"{type(self).__name__} was asked with {got}; it reads {self.task.length} items",
                "take queries from its own task; as a teacher it is ModelTeacher(model, own task, asked=student's task)",
            )
        return queries.history

    def factors(self) -> Factors:
        return self.factors_of(self.task)

    def factors_of(self, task: SequenceTask) -> Factors:
        """``factors`` with the users' histories of another task of the same users, items and length."""
        with torch.no_grad():
            everyone = torch.arange(task.n_users, device=task.device)
            vectors = [self.encode(task.queries(rows)) for rows in everyone.split(BLOCK)]
        items, bias = self.item_vectors()
        return Factors(torch.cat(vectors), items.detach(), None if bias is None else bias.detach())


class PaddedView(DotView):
    """A view whose item table ends with the padding's row, which is never scored."""

    def factored(self) -> Factors:
        own, items, bias = super().factored()
        return Factors(own, items[:-1], None if bias is None else bias[:-1])

    def at(self, queries: Queries) -> PaddedView:
        return PaddedView(queries, self._encode, self._item_rows, self._item_table, self._bias, self._represent)


class StatesView(PaddedView):
    """A view whose model gives a state after every place of the history; the last is the query's vector."""

    def __init__(
        self,
        queries: Queries,
        states: Callable[[Queries], Tensor],
        item_rows: Callable[[Tensor], Tensor],
        item_table: Callable[[], Tensor] | nn.Embedding,
    ):
        own = Lazy(lambda: states(queries))
        self._states_of, self._states = states, own
        self._source = item_table
        super().__init__(queries, lambda _: own()[:, -1], item_rows, item_table)

    @property
    def states(self) -> Tensor:
        """float32 [B, S, D]"""
        return self._states()

    def at(self, queries: Queries) -> StatesView:
        return StatesView(queries, self._states_of, self._item_rows, self._source)

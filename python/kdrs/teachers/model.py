"""A model as teacher, or as the student's own knowledge of itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from torch import Tensor, nn

from kdrs.core.ranking import Ranking
from kdrs.data.interactions import Interactions
from kdrs.errors import ConfigError, shown
from kdrs.teachers.base import Scored, Stage
from kdrs.training.hooks import hook, trait
from kdrs.training.outline import is_outline
from kdrs.training.queries import Queries, Task
from kdrs.training.sequences import SequenceTask, translated
from kdrs.training.view import DetachedView, Factors, FrozenView, View, frozen


class ModelTeacher(Scored):
    """A model as teacher, or as the student's own knowledge of itself.

    ``task`` is the model's own; ``asked`` the student's, where that is another: queries are then taken as
    `kdrs.training.sequences.translated` says, and lists are those of the student's queries, less what their users have seen.

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
        theirs, own = ((one.n_users, one.n_items) for one in (self.asked, task))
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
        return bool(trait(self.model, "averages"))

    @property
    def collective(self) -> bool:
        """Whether all processes must ask it together (`Hooks.collective`)."""
        return bool(trait(self.model, "collective"))

    def tiles(self) -> Any:
        """Its factors, a few at a time, where no process has all of them; else None."""
        found = hook(self.model, "tiles")
        if found is None:
            return None
        with frozen(self.model):
            return found()

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

    def check_scores(self) -> None:
        if not is_outline(self.task):
            super().check_scores()

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

    @property
    def scores_are_products(self) -> bool:
        if is_outline(self.task):
            return bool(getattr(self.model, "scores_are_products", True))  # a model of one's own need not say
        return self.factors() is not None

    def factors(self) -> Factors | None:
        of_task = hook(self.model, "factors_of")
        with frozen(self.model):
            return self.model.factors() if of_task is None else of_task(self.task)  # type: ignore[operator]

    def after(self, pairs: Interactions) -> ModelTeacher:
        """A model of sequences asked when users have these items too, [U, I], one each at most; any other as it is."""
        if not isinstance(self.task, SequenceTask) or hook(self.model, "factors_of") is None:
            return self
        return ModelTeacher(self.model, self.task.after(pairs), name=self.name, live=self.live)

    @property
    def _ranks_users(self) -> bool:
        return self.asked.owners is None or self.task.owners is None

    def _rank(self, k: int) -> Ranking:
        blocks = [ranked for _, ranked in self.topk_blocks(k)]
        return Ranking(*(np.concatenate([getattr(block, part) for block in blocks]) for part in ("items", "scores")))

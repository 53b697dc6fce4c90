"""What every base model offers."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn

from kdrs.data.interactions import Interactions
from kdrs.errors import ConfigError
from kdrs.settings import Settings
from kdrs.training.hooks import Hooks
from kdrs.training.pairs import PairTask
from kdrs.training.queries import Batch, Queries, Task
from kdrs.training.view import Factors, View


class ModelConfig(Settings):
    """Options that every model has."""

    dim: int = Field(64, ge=1)
    """Size of the representations h(u) and h(i)."""
    bits: Literal[1, 2, 3, 4, 8, 32] = 32
    """Bits of a coordinate. Below 32 the model is trained through the rounding, and its run keeps codes (`kdrs.Codes`)."""
    users: Literal["table", "encoded"] = "table"
    """``encoded``: no table of users; a user's vector is a matrix times the sum of her items' vectors, for new users too."""
    encoder: Literal["best", "trained", "ridge-0.3", "ridge-1", "ridge-3"] = "best"
    """Of encoded users, once training has ended: ``trained`` keeps the matrix, ``best`` that or ridge regression on the same
    items, by validation; ``ridge-1`` and the like that regression, with so much regularisation."""
    history_dropout: float = Field(0.0, ge=0, lt=1)
    """Of encoded users: the share of their items that a step of training does not see, drawn anew in each."""


class PairwiseConfig(ModelConfig):
    """Options of models that compare a positive with its negatives."""

    negative_reduction: Literal["sum", "mean"] = "sum"
    """How the negatives of one row count, where ``train.layout = "rows"`` gives it several: each as a triple, or, as in the KDs
    benchmark, by their mean. An explicit L2 term counts every one."""

    @property
    def average(self) -> bool:
        return self.negative_reduction == "mean"


class Recommender(Hooks, nn.Module):
    """A module that answers queries with a view.

    A model of your own need not inherit from this class: any ``nn.Module`` with ``dim``, ``__call__(queries)``,
    ``factors()`` and ``loss(view, batch)`` is trained, distilled and evaluated alike. What is optional stands in
    `kdrs.training.hooks.Hooks`.

    A model whose only parameters are two tables (`RowTable`), ``score_tables``, whose rows' dot products are the scores of
    ``queries.users``, may give its loss as one of scores, ``score_loss(batch)`` (`kdrs.training.losses.ScoreLoss`): where
    nothing but such losses trains it, with Adam, in float32 on the CPU, its steps do without autograd.
    ``is_plain_bpr`` says that this loss is BPR's and nothing else, for which there is a step in one pass. Both count only where
    the model's very class defines them.
    """

    Config: ClassVar[type[ModelConfig]] = ModelConfig
    reference: ClassVar[str] = ""
    """Where the model was published."""
    compactable: ClassVar[tuple[str, ...]] = ()
    """Which of ``bits`` and ``users`` it may be trained with (`kdrs.models.compact`): its view must be a `DotView`, and its
    loss one of the view."""
    why_not_compact: ClassVar[str] = "has no vectors whose products are its scores"
    begins: ClassVar[bool] = False
    """Whether it may start from a teacher's vectors (``begin_with``)."""
    shards: ClassVar[bool] = False
    """Whether a coordinate of its vectors comes from the same coordinate of its tables alone, and its scores are products of
    vectors: processes may then hold some columns each (`kdrs.models.sharded`). Counts only where the very class says so."""
    user_table: ClassVar[str | None] = None
    """The attribute that holds nothing but the users' vectors, which a model of encoded users does without."""
    dim: int

    def __init__(self, config: ModelConfig, task: Task):
        super().__init__()
        self.config, self.dim = config, self.size_of(config)

    @classmethod
    def size_of(cls, config: Any) -> int:
        """Size of h(u) and h(i) in a model of these options: ``dim``, unless a model's representations are of another."""
        return int(config.dim)

    @property
    def averages(self) -> bool:
        """Whether the model's loss is a mean over the batch, which terms beside it may follow."""
        return getattr(self.config, "reduction", "sum") == "mean"

    @classmethod
    def train_defaults(cls, config: Any) -> dict[str, Any]:
        """Training settings of the model's paper, where they differ from the common defaults."""
        return {}

    @classmethod
    def make_task(
        cls, config: Any, train: Interactions, *, order: NDArray[np.int32] | None = None, **options: Any
    ) -> Task:
        """The training data in the form that this kind of model learns from; ``options`` are those of `PairTask`.

        ``order`` is `Dataset.order`, which only models of sequences need. Pairs unless a model overrides it: models of whole
        users, of items or of sequences do.
        """
        count, layout = options.get("n_negatives", 1), options.get("layout", "triples")
        if isinstance(config, PairwiseConfig) and config.average and count > 1 and layout != "rows":
            raise ConfigError(
                f"train.layout is {layout!r} with {count} negatives, of which negative_reduction takes the mean",
                'set train.layout = "rows", or negative_reduction = "sum"',
            )
        return PairTask(train, **options)

    @classmethod
    def _row_options(cls, options: dict[str, Any], *names: str) -> dict[str, Any]:
        """Those of `PairTask`'s options that a task of whole users or items takes; ``ConfigError`` if negatives of pairs are
        asked for."""
        if "draws" in options:
            raise ConfigError(
                f"train.draws is {options['draws']!r} with {cls.__name__}, which does not learn from pairs",
                "leave it out",
            )
        if options.get("n_negatives", 1) != 1 or options.get("layout", "triples") != "triples":
            raise ConfigError(
                f"train.negatives is {options.get('n_negatives', 1)} and train.layout {options.get('layout', 'triples')!r}, "
                f"which are about training pairs; {cls.__name__} learns from whole rows",
                "leave both out; what a row draws is an option of the model",
            )
        if "never" not in names:
            cls._refuse_never(options)
        return {name: options[name] for name in names if name in options}

    @classmethod
    def _refuse_never(cls, options: dict[str, Any]) -> None:
        if "never" in options:
            raise ConfigError(
                f"train.leak_held_out is true, and {cls.__name__} draws no negatives that it could change",
                "leave it out",
            )

    def forward(self, queries: Queries) -> View:
        raise NotImplementedError

    @property
    def scores_are_products(self) -> bool:
        """Whether ``factors`` gives any; an outline says it too, which cannot compute them."""
        return type(self).factors is not Recommender.factors

    def factors(self) -> Factors | None:
        """The whole model as dot-product factors (float32 [Q, D], [I, D], [I] or None), the fast path of ranking; None
        if its score is no dot product."""
        return None

    def begin_with(self, users: Tensor, items: Tensor) -> None:
        """Takes vectors, float32 [U, D] and [I, D], as its first weights, where it ``begins`` with such."""
        raise NotImplementedError

    def loss(self, view: View, batch: Batch) -> Tensor:
        """The model's own training loss on a batch, a scalar, summed over rows unless an option says otherwise."""
        raise NotImplementedError

"""What a model may offer besides what every model must: each with what is taken where it is not offered."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor, nn

if TYPE_CHECKING:
    from kdrs.compact.encoders import Encoder
    from kdrs.training.queries import Epoch
    from kdrs.training.view import Factors


class Hooks:
    """The optional part of a model. A module need not inherit from this class: what it lacks counts as below."""

    score_tables: ClassVar[tuple[str, str] | None] = None
    """Names of the two tables of which scores are products, see `kdrs.models.base.Recommender`."""
    splits: bool = False
    """Whether the loss of a batch of pairs is the sum of its rows' losses, or their mean where it ``averages``: processes may
    then take some rows each. Counts only where the model's very class says so."""
    collective: bool = False
    """Whether each process holds a part of the model alone, so that all of them must ask it together."""
    is_plain_bpr: bool = False
    """Whether ``score_loss`` is BPR's and nothing else."""

    @property
    def averages(self) -> bool:
        """Whether the model's loss is a mean over the batch, which terms beside it may follow."""
        return False

    def on_epoch_start(self, epoch: Epoch) -> None:
        """Called before an epoch's first batch."""

    def on_term(self, name: str) -> None:
        """Called before the loss of a term of that name is worked out."""

    def after_step(self) -> None:
        """Called after every optimizer step, for constraints on the parameters."""

    def tiles(self) -> Any:
        """Of a ``collective`` model, what brings its factors together (`kdrs.training.columns.Tiles`)."""
        return None

    def whole(self, weights: Mapping[str, Tensor]) -> Mapping[str, Any]:
        """The model's weights as they are stored: of tables of which this process has a part, what brings them together."""
        return weights

    def factors_of(self, task: Any) -> Factors | None:
        """``factors`` of a model of sequences for the users of another task than its own."""

    def history_encoder(self) -> Encoder | None:
        """The network that computes users' vectors from their items, without torch; what it gives times the rows and biases
        of ``factors`` are the scores. None where the model has none: a student of it gets one that is fitted."""
        return None

    encodes_known: bool = True
    """Whether ``history_encoder`` gives known users' vectors as ``factors`` does. Without it they have vectors of their own
    too, which new users lack."""


def hook(model: nn.Module, name: str) -> Callable[..., Any] | None:
    """The model's own method of that name in `Hooks`; None where it has none."""
    theirs = getattr(type(model), name, None)
    return None if theirs is None or theirs is getattr(Hooks, name) else getattr(model, name)


def trait(model: nn.Module, name: str) -> Any:
    """The model's attribute of that name in `Hooks`, or its default."""
    return getattr(model, name, False if name == "averages" else getattr(Hooks, name))


def stored(model: nn.Module, weights: Mapping[str, Tensor]) -> Mapping[str, Any]:
    """A model's weights as they are stored (`Hooks.whole`)."""
    whole = hook(model, "whole")
    return weights if whole is None else dict(whole(weights))

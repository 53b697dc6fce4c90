"""Where a model's first weights come from, if not from chance: a run of its kind, or a teacher's vectors."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from kdrs.compact.reduce import of_scores, singular, with_bias
from kdrs.core.codes import Codes
from kdrs.core.sampling import stream
from kdrs.data import Dataset
from kdrs.errors import ArtefactError, ConfigError, shown
from kdrs.models.base import Recommender
from kdrs.models.compact import Compact
from kdrs.runs.config import RunConfig, config_of
from kdrs.runs.directory import Run
from kdrs.runs.opened import LoadedRun, check_same_data, load_weights
from kdrs.runs.values import FROM_TEACHER
from kdrs.teachers.base import Teacher
from kdrs.training.outline import is_outline
from kdrs.training.queries import Task
from kdrs.training.view import Factors

if TYPE_CHECKING:
    from kdrs.runs.learners import Planned

FILL = 0.01
"""Standard deviation of coordinates that a teacher of fewer dimensions does not fill, as a share of its own: zeros on both
sides would never get a gradient."""


def start_model(
    model: nn.Module,
    config: RunConfig,
    dataset: Dataset,
    task: Task,
    teachers: Mapping[str, Teacher],
    planned: Mapping[str, Planned] | None = None,
) -> None:
    """Gives a model the first weights that ``config.start`` names.

    Of an outline it says what it would refuse. Raises ``ArtefactError`` for a run of another model, or of other data,
    ``ConfigError`` for a model whose vectors are not its weights.
    """
    assert config.start is not None
    outline = is_outline(task)
    if config.start == FROM_TEACHER:
        teacher = teachers[config.distill[0].teacher[0]]
        check_begins(model)
        if outline:
            return
        begin(model, *vectors_of(teacher, model.dim), seed=config.train.seed)  # type: ignore[arg-type]
        return
    first = planned.get(config.start) if planned else None
    if first is not None:
        theirs = first.config.model
    else:
        run = Run.open(config.start)
        check_same_data(run, dataset)
        theirs = config_of(run).model
    for key in ("name", "dim"):
        if theirs[key] != config.model[key]:
            raise ArtefactError(
                f"start {shown(config.start)} is {theirs['name']} of {theirs['dim']} dimensions; the model is "
                f"{config.model['name']} of {config.model['dim']}",
                f"give the model --model {theirs['name']} --dim {theirs['dim']}, start from a run of its own model and size, "
                f"or from its teacher's vectors: --start {FROM_TEACHER}",
            )
    if isinstance(model, Compact) or any(theirs[key] != config.model[key] for key in ("bits", "users")):
        check_begins(model)
        if first is not None or outline:
            return  # its vectors are still to be trained, or not asked for
        opened = LoadedRun.open(config.start, dataset)
        begin(model, *vectors_of(opened.teacher(), model.dim), seed=config.train.seed)  # type: ignore[arg-type]
        return
    weights = run.load_model(head=outline)[0] if first is None else first.model.state_dict()
    load_weights(model, weights, Path(config.start))


def check_begins(model: nn.Module) -> None:
    """Raises ``ConfigError`` for a model whose vectors are not its weights."""
    if not getattr(model, "begins", False):
        raise ConfigError(
            f"{type(model).__name__.removeprefix('Compact')} cannot start from a teacher's vectors: its own are computed",
            "take bpr, lightgcn, lightgcn-ssm or sgl, or leave start out",
        )


def begin(model: Recommender, users: np.ndarray, items: np.ndarray, *, seed: int) -> None:
    """Gives a model vectors float32 [U, d] and [I, d]; further coordinates are small noise."""
    missing = model.dim - users.shape[1]
    if missing > 0:
        noise = np.random.default_rng(stream(seed, "start"))
        users, items = (
            np.hstack([side, FILL * float(side.std()) * noise.standard_normal((len(side), missing))])
            for side in (users, items)
        )
    device = next(model.parameters()).device
    model.begin_with(*(torch.from_numpy(np.ascontiguousarray(side, np.float32)).to(device) for side in (users, items)))


def vectors_of(teacher: Teacher, dim: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """A teacher's users and items as float32 [U, d] and [I, d] whose products are its scores: its own vectors, or, where it has
    more than ``dim``, the best ``dim`` directions. Biases are a coordinate. Scores that are no products are taken block by
    block; then d is ``dim``, which must be given."""
    factors = teacher.factors()
    if factors is None:
        if dim is None:
            raise ConfigError(
                f"the scores of {shown(teacher.name)} are no products of vectors",
                "say how many dimensions to take: --dim",
            )
        task = teacher.asked

        def block(rows: np.ndarray) -> Tensor:
            return teacher.score_block(rows).cpu()

        return of_scores(block, task.n_users, task.n_items, dim)
    users, items, bias = plain_factors(factors)
    users = users[: teacher.asked.n_users]
    if bias is not None:
        users, items = with_bias(users, items, bias)
    return singular(users, items, dim) if dim is not None and dim < users.shape[1] else (users, items)


def plain_factors(factors: Factors) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Factors as float32 arrays; codes decoded and turned back, so that rounding them anew gives nearly the same codes."""

    def array(side: Codes | Tensor) -> np.ndarray:
        return side.vectors() if isinstance(side, Codes) else side.detach().cpu().numpy()

    return (
        array(factors.queries),
        array(factors.items),
        None if factors.bias is None else factors.bias.detach().cpu().numpy(),
    )

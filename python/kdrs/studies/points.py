"""Which values a trial has: the file's own first, then random ones or those that Optuna's estimator expects to be good."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from kdrs.core.sampling import stream
from kdrs.errors import MachineError
from kdrs.studies.plan import Arm, SweepSettings
from kdrs.studies.space import Choices, Range, draw, same

REMEDY = 'pip install "kdrs[optuna]", or begin another study with --sampler random'


def has_optuna() -> bool:
    try:
        import optuna  # noqa: F401
    except ImportError:
        return False
    return True


def points(
    arm: Arm, settings: SweepSettings, first: int, last: int, known: Sequence[tuple[Mapping[str, Any], float | None]]
) -> list[dict[str, Any]]:
    """The points of trials ``first`` to ``last`` - 1 of an arm, a batch of a study.

    ``known`` are point and validation value (larger is better, None where training failed) of all trials before the batch. The
    result follows from the arguments alone.
    """
    if not arm.space:
        return [{} for _ in range(first, last)]
    if settings.sampler == "random":
        return [draw(arm.space, settings.seed, n) if n else arm.default() for n in range(first, last)]
    return _estimated(arm, settings, first, last, known)


def _estimated(
    arm: Arm, settings: SweepSettings, first: int, last: int, known: Sequence[tuple[Mapping[str, Any], float | None]]
) -> list[dict[str, Any]]:
    """By Optuna's tree of Parzen estimators (Bergstra et al., NeurIPS 2011). Random points of our own come first, as many as a
    batch has. Points of one batch keep off each other."""
    try:
        import optuna
    except ImportError:
        raise MachineError("the study's sampler is tpe, and Optuna is not installed", REMEDY) from None

    names = _names(arm.space)
    ranges = {key: _distribution(span, optuna, names[key]) for key, span in arm.space.items()}
    found: list[dict[str, Any]] = []
    with _quiet():
        sampler = optuna.samplers.TPESampler(
            seed=stream(settings.seed, "tpe", arm.name, first) % 2**32, n_startup_trials=0, constant_liar=True
        )
        study = optuna.create_study(direction="maximize", sampler=sampler)
        for point, value in known:
            if all(arm.space[key].holds(x) for key, x in point.items()) and set(point) == set(arm.space):
                study.add_trial(_trial(optuna, point, value, ranges, names))
        for number in range(first, last):
            if number == 0:
                found.append(arm.default())
            elif number < settings.batch or not study.get_trials(states=[optuna.trial.TrialState.COMPLETE]):
                found.append(draw(arm.space, settings.seed, number))
            else:
                asked = study.ask(ranges)
                found.append({key: _value(span, asked.params[key], names[key]) for key, span in arm.space.items()})
    return found


def journal(path: str, name: str, arm: Arm, trials: Sequence[tuple[Mapping[str, Any], float | None]]) -> None:
    """Adds an arm's trials to an Optuna journal, for its dashboard and its plots, as a study called ``name``."""
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    names = _names(arm.space)
    ranges = {key: _distribution(span, optuna, names[key]) for key, span in arm.space.items()}
    with _quiet():
        study = optuna.create_study(
            study_name=name, direction="maximize", storage=JournalStorage(JournalFileBackend(path))
        )
        for point, value in trials:
            held = {key: x for key, x in point.items() if key in arm.space and arm.space[key].holds(x)}
            study.add_trial(_trial(optuna, held, value, ranges, names))


def _trial(
    optuna: Any, point: Mapping[str, Any], value: float | None, ranges: dict[str, Any], names: dict[str, Any]
) -> Any:
    params = {key: _name(names[key], x) for key, x in point.items()}
    state = optuna.trial.TrialState.FAIL if value is None else optuna.trial.TrialState.COMPLETE
    return optuna.trial.create_trial(
        params=params, distributions={key: ranges[key] for key in params}, value=value, state=state
    )


def _names(space: Mapping[str, Range]) -> dict[str, dict[str, Any] | None]:
    """Optuna's choices are plain; lists and tables go by their text."""
    return {
        key: {repr(value): value for value in span.values} if isinstance(span, Choices) else None
        for key, span in space.items()
    }


def _name(names: dict[str, Any] | None, value: Any) -> Any:
    return value if names is None else next(name for name, own in names.items() if same(own, value))


def _value(span: Range, value: Any, names: dict[str, Any] | None) -> Any:
    return value if names is None else names[value]


def _distribution(span: Range, optuna: Any, names: dict[str, Any] | None) -> Any:
    d = optuna.distributions
    if names is not None:
        return d.CategoricalDistribution(tuple(names))
    assert not isinstance(span, Choices)
    if span.whole:
        return d.IntDistribution(int(span.low), int(span.high), log=span.log, step=int(span.step or 1))
    return d.FloatDistribution(float(span.low), float(span.high), log=span.log, step=span.step)


class _quiet:
    """Optuna says what it does at each step; who runs kdrs is told what came of it."""

    def __enter__(self) -> None:
        self.logger = logging.getLogger("optuna")
        self.level = self.logger.level
        self.logger.setLevel(logging.ERROR)

    def __exit__(self, *_: object) -> None:
        self.logger.setLevel(self.level)

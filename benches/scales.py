"""How much of a coded student's ranking is left when the scales of its items have fewer steps.

    python benches/scales.py RUN [RUN ...]

Each run is a finished one of coded items. Steps are evenly spaced in the logarithm, between the smallest and the largest scale
of the table. Prints a table for docs/results/notes/frontier.md.
"""

from __future__ import annotations

import argparse

import numpy as np

import kdrs
from kdrs.models.stored import StoredModel
from kdrs.runs.build import build_evaluator
from kdrs.runs.opened import LoadedRun

STEPS = (256, 64, 16, 8)
METRIC = "ndcg@10"


def cut(scales: np.ndarray, steps: int) -> np.ndarray:
    """The nearest of so many scales; 0 stays 0."""
    positive = scales > 0
    logarithms = np.log(scales[positive])
    low, high = logarithms.min(), logarithms.max()
    places = np.rint((logarithms - low) / (high - low) * (steps - 1))
    found = np.zeros_like(scales)
    found[positive] = np.exp(low + places * (high - low) / (steps - 1))
    return found


def values_of(path: str) -> list[float]:
    """As it is stored, then with fewer steps."""
    opened = LoadedRun.open(path)
    model, evaluator = opened.model, build_evaluator(opened.config, opened.dataset)
    if not isinstance(model, StoredModel) or not isinstance(model.item_side, kdrs.Codes):
        raise SystemExit(f"{path} has no coded items")
    side, found = model.item_side, []
    for scales in (side.scales, *(cut(side.scales, steps) for steps in STEPS)):
        items = kdrs.Codes.from_parts(side.data, scales, side.bits, side.shape[1], seed=side.seed)
        other = StoredModel(items, users=model.user_side, encoder=model.user_encoder, bias=model.bias, task=model.task)
        found.append(evaluator(other.factors(), parts=["test"])["test"].mean(METRIC))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+")
    print(f"| run | stored | {' | '.join(map(str, STEPS))} |")
    print("|---|" + "---|" * (len(STEPS) + 1))
    for path in parser.parse_args().runs:
        print(f"| {path} | " + " | ".join(f"{value:.4f}" for value in values_of(path)) + " |", flush=True)


if __name__ == "__main__":
    main()

"""How far items are ranked by their frequency: a trained ELSA with other lengths of its items, on validation and test.

    python benches/popularity.py RUN DATASET [--powers 0,0.03,0.05,0.1,0.2]

``RUN`` is of `elsa`; ``popularity`` is the power of an item's frequency in train that is its length. Nothing is trained: items
are brought to each length, and users are encoded from them, as the run does. Prints a table.
"""

from __future__ import annotations

import argparse
import tomllib
from pathlib import Path
from typing import Any

import numpy as np

import kdrs
from kdrs.compact.encoders import asked
from kdrs.core.codes import Codes

METRICS = ("ndcg@10", "recall@20")


def longer(items: Any, times: np.ndarray) -> Any:
    """Items [I, D], codes or vectors, each as many times as long."""
    if isinstance(items, Codes):
        return Codes.from_levels(items.levels(), items.scales * times, items.bits, seed=items.seed)
    return (np.asarray(items) * times[:, None]).astype(np.float32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--powers", default="0,0.03,0.05,0.1,0.2")
    options = parser.parse_args()
    data = kdrs.Dataset.load(options.dataset)
    model = kdrs.load_run(options.run).model
    told = tomllib.loads((options.run / "config.toml").read_text("utf-8")).get("model", {})
    if "popularity" not in told:
        raise SystemExit(f"{options.run} is no trained run of elsa")
    counts = np.maximum(data.train.column_degrees, 1).astype(np.float32)
    evaluator = kdrs.Evaluator.of(data, kdrs.protocols.protocol("default"))
    parts = [part for part in ("valid", "test") if getattr(data, part).n_pairs]
    print("| popularity |", " | ".join(f"{part}, {metric}" for part in parts for metric in METRICS), "|")
    print("|---" * (1 + len(parts) * len(METRICS)) + "|")
    for power in map(float, options.powers.split(",")):
        ranked = longer(model.item_side, counts ** (power - told["popularity"]))
        reports = evaluator((asked(model.user_encoder, data.train, ranked), ranked, None))
        print(
            f"| {power:g} |", " | ".join(f"{reports[p].mean(m):.4f}".lstrip("0") for p in parts for m in METRICS), "|"
        )


if __name__ == "__main__":
    main()

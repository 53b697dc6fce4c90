"""How far items are ranked by their frequency: a trained ELSA with other lengths of its items, on validation and test.

    python benches/popularity.py RUN DATASET [--powers 0,0.03,0.05,0.1,0.2]

``RUN`` is of `elsa`; ``popularity`` is the power of an item's frequency in train that is its length. Nothing is trained: items
are brought to each length, users are encoded as the run encodes them. Prints a table.
"""

from __future__ import annotations

import argparse
import tomllib
from pathlib import Path

import numpy as np

import kdrs
from kdrs.core.codes import Codes

METRICS = ("ndcg@10", "recall@20")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--powers", default="0,0.03,0.05,0.1,0.2")
    options = parser.parse_args()
    data = kdrs.Dataset.load(options.dataset)
    model = kdrs.load_run(options.run).model
    own = tomllib.loads((options.run / "config.toml").read_text("utf-8"))["model"].get("popularity", 0.0)
    counts = np.maximum(data.train.column_degrees, 1).astype(np.float32)
    users, items = (
        side.vectors() if isinstance(side, Codes) else np.asarray(side)
        for side in (model.encode(data.train), model.item_side)
    )
    evaluator = kdrs.Evaluator.of(data, kdrs.protocols.protocol("default"))
    parts = [part for part in ("valid", "test") if getattr(data, part).n_pairs]
    print("| popularity |", " | ".join(f"{part}, {metric}" for part in parts for metric in METRICS), "|")
    print("|---" * (1 + len(parts) * len(METRICS)) + "|")
    for power in map(float, options.powers.split(",")):
        ranked = (items * (counts ** (power - own))[:, None]).astype(np.float32)
        reports = evaluator((users, ranked, None))
        print(
            f"| {power:g} |", " | ".join(f"{reports[p].mean(m):.4f}".lstrip("0") for p in parts for m in METRICS), "|"
        )


if __name__ == "__main__":
    main()

"""Scalar codes beside faiss's product quantiser at equal bytes: a trained teacher's items, users as sums of them.

    python benches/quantisers.py RUN [--json | --scales]

RUN is a finished run of products, such as the teacher of benches/frontier.py. For each number of bytes an item: scalar codes
of every number of bits with the most dimensions that fit (the best by validation is marked), and product codes of so many
bytes, of the whole vectors. Both have one matrix for users, fitted alike; books of product codes are float32 and counted.
Full ranking.

``--scales`` compares the scale that `kdrs.Codes.of` looks for with the fixed share of training, on validation.
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

import numpy as np
import torch

import kdrs
from kdrs.compact.encoders import SumEncoder, history_sums
from kdrs.core.codes import BITS
from kdrs.models.compact import codes_of, turned
from kdrs.runs.forms import Budget, forms_of
from kdrs.runs.start import vectors_of

ROWS = (8, 10, 16, 20, 32, 40, 54)
METRIC = "ndcg@10"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--scales", action="store_true")
    options = parser.parse_args()
    opened = kdrs.load_run(options.run)
    data, evaluator = opened.dataset, kdrs.Evaluator.of(opened.dataset, kdrs.protocols.protocol("default"))
    users, items = vectors_of(opened.teacher())
    if options.scales:
        for bits in BITS:
            searched = tuple(kdrs.Codes.of(side, bits) for side in (users, items))
            fixed = tuple(codes_of(turned(torch.from_numpy(side)), bits) for side in (users, items))
            values = (evaluator(codes, parts=["valid"])["valid"].mean(METRIC) for codes in (searched, fixed))
            print(f"{bits} bits", *(f"{value:.4f}" for value in values))
        return
    lines = []
    for row in ROWS:
        found = []
        for form in forms_of(Budget.parse(f"{row}B"), 0, items.shape[1], data.n_items):
            began = time.perf_counter()
            made = kdrs.compress(options.run, form.bits, form.dim, users="sum")
            found.append((f"{form.bits} bits x {form.dim}", made.n_bytes, made.reports, time.perf_counter() - began))
        best = max(range(len(found)), key=lambda at: found[at][2]["valid"].mean(METRIC))
        for at, (name, n_bytes, reports, seconds) in enumerate(found):
            lines.append(line(row, name + (" *" if at == best else ""), n_bytes, reports, seconds))
        if row <= items.shape[1] and items.shape[1] % row == 0:
            began = time.perf_counter()
            decoded, n_bytes = product_codes(items, row)
            matrix = SumEncoder.fit(users, history_sums(data.train, decoded)).rounded()
            reports = evaluator((matrix.encode(data.train, decoded), decoded))
            lines.append(line(row, "product codes", n_bytes + matrix.nbytes, reports, time.perf_counter() - began))
    if options.json:
        print(json.dumps(lines, indent=1))
        return
    for entry in lines:
        print("  ".join(f"{key} {value}" for key, value in entry.items()))


def product_codes(items: np.ndarray, row: int) -> tuple[np.ndarray, int]:
    """Items after ``row`` bytes each, and the bytes of codes and books."""
    import faiss

    quantiser = faiss.ProductQuantizer(items.shape[1], row, 8)
    quantiser.train(items)
    return quantiser.decode(quantiser.compute_codes(items)), len(items) * row + 4 * 256 * items.shape[1]


def line(row: int, name: str, n_bytes: int, reports: dict[str, Any], seconds: float) -> dict[str, Any]:
    qualities = {part: round(report.mean(METRIC), 4) for part, report in reports.items()}
    return {"B": row, "codes": name, "bytes": n_bytes, **qualities, "s": round(seconds, 1)}


if __name__ == "__main__":
    main()

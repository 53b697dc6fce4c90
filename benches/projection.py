"""Growth on paper: constants out of the records of docs/results, and what follows from them for more users than were ever run.

    python benches/projection.py [--record docs/results/projection.json]

Nothing is measured here. Every constant names the record and the row that it was taken from; what follows is in proportion.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from measure import machine

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "results"
DIM, ITEMS, PAIRS = 64, 1_000_000, 50
"""Dimensions, items, and training pairs a user, of what follows."""
TRAINED = "a row in training: vector and two moments of Adam"
USERS = {"10 million": 10**7, "100 million": 10**8, "1 billion": 10**9}


def cell(record: str, title: str, row: dict[str, str], column: str) -> float:
    """One figure of a record: the row is told by some of its cells."""
    found = json.loads((FOLDER / f"{record}.json").read_text("utf-8"))
    (figure,) = (one for one in found["figures"] if one["title"].startswith(title))
    rows = [dict(zip(figure["columns"], cells, strict=True)) for cells in figure["rows"]]
    (chosen,) = (own for own in rows if row.items() <= own.items())
    return float(chosen[column].replace(",", "").removesuffix(" MB"))


def constants() -> dict[str, tuple[float, str, str]]:
    """Name -> value, unit, where it comes from."""
    rows = 200_000  # of users and of items, 64 dimensions each
    float_file = cell("serving", "Loading", {"tables": "float32", "seen pairs": "none"}, "file, MB") * 1e6
    coded_file = cell("serving", "Loading", {"tables": "4 bits", "seen pairs": "none"}, "file, MB") * 1e6
    seen_file = cell("serving", "Loading", {"tables": "float32", "seen pairs": "20 a user"}, "file, MB") * 1e6
    lists = cell("serving", "`kdrs recommend`", {"tables": "float32", "into": ".parquet"}, "users a second")
    alone = cell("growth", "Times of the first column", {"method": "alone"}, "epoch s")
    found = {
        "a row of 64 float32, its id with it": (float_file / rows, "bytes", "serving, loading"),
        "a row of 64 codes of 4 bits, its id with it": (coded_file / rows, "bytes", "serving, loading"),
        "a seen pair in a student file": ((seen_file - float_file) / 2e6, "bytes", "serving, loading"),
        TRAINED: (12.0 * DIM, "bytes", "3 x 4 x 64"),
        "lists of 20 among 100,000 items, into Parquet": (lists * 3600, "an hour", "serving, kdrs recommend"),
        "a pair of plain BPR": (alone / 200_000 * 1e6, "µs", "growth, alone: 200,000 pairs, one thread"),
    }
    for method in ("cd", "rrd", "de"):
        step = cell("costs", "First epoch", {"case": method}, "step ms")
        found[f"a pair of BPR taught by {method}"] = (step / 1024 * 1e3, "µs", f"costs, {method}: 1,024 pairs a step")
    return found


def projected(known: dict[str, tuple[float, str, str]]) -> list[dict[str, str]]:
    value = {name: one[0] for name, one in known.items()}
    row, coded = value["a row of 64 float32, its id with it"], value["a row of 64 codes of 4 bits, its id with it"]
    items = ITEMS * row
    lists = value["lists of 20 among 100,000 items, into Parquet"] * 100_000 / ITEMS
    made = []
    for name, users in USERS.items():
        hours = {
            f"an epoch of {method}": users * PAIRS * value[constant] / 3.6e9
            for method, constant in (
                ("BPR", "a pair of plain BPR"), ("cd", "a pair of BPR taught by cd"), ("de", "a pair of BPR taught by de"),
            )
        }  # fmt: skip
        made.append(
            {
                "users": name,
                "training: tables and moments": size((users + ITEMS) * value[TRAINED]),
                "student, float32": size(users * row + items),
                "4 bits": size((users + ITEMS) * coded),
                "users encoded, 4 bits": size(ITEMS * coded),
                "seen pairs": size(users * PAIRS * value["a seen pair in a student file"]),
                **{f"{what}, hours": amount(taken) for what, taken in hours.items()},
                "lists of 20 of all, hours": amount(users / lists),
                "machines for lists within 8 hours": amount(max(1, -(-users / lists // 8))),
            }
        )
    return made


def size(count: float) -> str:
    for unit, scale in (("TB", 1e12), ("GB", 1e9)):
        if count >= scale:
            return f"{count / scale:.3g} {unit}"
    return f"{count / 1e6:.3g} MB"


def amount(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def record() -> dict[str, Any]:
    known = constants()
    rows = projected(known)
    largest = rows[-1]
    about = {
        "command": "`python benches/projection.py`",
        "machine": "none: nothing is measured",
        "commit": machine()["commit"],
    }
    return {
        "title": "Growth on paper",
        "question": "What would ten million, a hundred million and a billion users take?",
        "answer": [
            f"A billion users, {ITEMS:,} items and {DIM} dimensions train in {largest['training: tables and moments']} and are "
            f"served from {largest['4 bits']} of 4-bit tables, or {largest['users encoded, 4 bits']} if users are encoded.",
            f"Lists for all of them take {largest['lists of 20 of all, hours']} hours on one such machine, or "
            f"{largest['machines for lists within 8 hours']} machines for a night.",
        ],
        "figures": [
            {
                "title": "Constants",
                "reading": [
                    "Each is a cell of a record of this folder, or arithmetic.",
                    "Two processors, unless it says otherwise. Pairs are of 10 to 20 dimensions, as those records are.",
                ],
                "columns": ["what", "value", "unit", "from"],
                "rows": [[name, f"{value:.3g}", unit, source] for name, (value, unit, source) in known.items()],
                **about,
            },
            {
                "title": f"What follows: {ITEMS:,} items, {DIM} dimensions, {PAIRS} pairs a user",
                "reading": [
                    "In proportion: bytes to rows, epochs to pairs, lists to users times items. Lists of trained vectors take "
                    "less, since their lengths differ.",
                    "Hours are those of one machine of two processors; hours of one epoch.",
                    "Not in it: bytes between machines. What a step sends is measured with the processes that send it.",
                ],
                "columns": list(rows[0]),
                "rows": [list(row.values()) for row in rows],
                **about,
            },
        ],
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--record", type=Path, help="write the record of docs/results instead of tables")
    options = parser.parse_args()
    made = record()
    if options.record is not None:
        options.record.write_text(json.dumps(made, indent=1, ensure_ascii=False) + "\n", "utf-8")
        return
    from pages import page

    print(page(made))


if __name__ == "__main__":
    main()

"""Users of whom no pair was trained on, encoded from their items: beside a teacher, and the same students, that had them.

    python benches/new_users.py [--sets citeulike-loo,ml-100k] [--out runs/frontier] [--ways budget-10,budget-30] [--threads 1]
                                [--record]

A fifth of the users of a set of `frontier.py` is left out of all training, and its runs are used: the teacher and the
students of ``--out``, which have these users. Finished runs are skipped and begun ones resumed. ``--record`` writes
docs/results/new-users.json of what is there, of which pages.py makes a page.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import kdrs
from frontier import DIM, METRICS, RESULTS, SOURCES, TITLES, Study, origins
from reproduce import carry_out
from reproduce import kdrs as command

TEACHER = "teacher, trained with them"
HELD = 5
"""One user in so many is held out."""
DROPOUT = ("--set", "model.history_dropout=0.2")
BPR = ("--model", "bpr")
COMPRESSED = {
    "sum": ("teacher's items, float32, users W", ("--bits", "32", "--users", "sum")),
    "ridge": ("teacher's items, float32, users ridge", ("--bits", "32", "--users", "ridge")),
    "sum-2": ("teacher's items, 2 bits, users W", ("--bits", "2", "--users", "sum")),
    "ridge-2": ("teacher's items, 2 bits, users ridge", ("--bits", "2", "--users", "ridge")),
}
DISTILLED = {
    **{f"budget-{share}": (f"`--budget 1/{share}`", share, ()) for share in (10, 30, 100)},
    **{f"budget-{share}-dropout": (f"`--budget 1/{share}`, dropout .2", share, DROPOUT) for share in (10, 30, 100)},
    **{f"budget-bpr-{share}": (f"`--budget 1/{share} --model bpr`", share, BPR) for share in (10, 30)},
    "budget-bpr-30-cd": ("the same, by CD with dropout .2", 30, (*BPR, "--method", "cd", *DROPOUT)),
}
"""A student by name: its title, its share of the teacher's bytes and further words. Of a name that `frontier.py` has too
there may be a run that had the held-out users."""


class NewUsers:
    """The held-out users of one data set, and runs that were made without them."""

    def __init__(self, study: Study):
        self.study, self.place = study, study.place / "held-out"
        self.data = kdrs.Dataset.load(study.data)
        self.held = np.random.default_rng(0).permutation(self.data.n_users)[: self.data.n_users // HELD]
        self.evaluator = kdrs.Evaluator.of(self.data, kdrs.protocols.protocol("default"))

    def carry_out(self, name: str) -> None:
        if not (self.place / "data").exists():
            self.data.without_users(self.held).save(self.place / "data")
        own = ("--data", str(self.place / "data"), *self.study.common[2:])
        teacher = self.place / "teacher"
        carry_out(teacher, "train", *own, *BPR, *self.study.trained, "--dim", str(DIM), "--seed", "0")
        if name in DISTILLED:
            _, share, words = DISTILLED[name]
            taught = ("--teacher", str(teacher), "--budget", f"1/{share}", "--seed", "0")
            carry_out(self.place / name, "distill", *own, *taught, *words)
        elif not (self.place / name / "config.toml").is_file():
            told = ("--threads", self.study.threads, "--out", str(self.place / name))
            command("compress", str(teacher), *COMPRESSED[name][1], *told)

    def values(self, factors: Any) -> dict[str, tuple[float, float]]:
        """NDCG@10 of the held-out users and of the others, by part."""
        found = {}
        for part, report in self.evaluator(factors).items():
            new = np.isin(report.rows, self.held)
            values = report.values[METRICS[0]]
            found[part] = float(values[new].mean()), float(values[~new].mean())
        return found

    def rows(self) -> list[list[str]]:
        teacher = self.values(kdrs.load_run(self.study.teacher, self.data).factors())
        whole = teacher["test"][0]
        own = [TITLES[self.study.name], TEACHER, f"{self._bytes(self.study.teacher):,}"]
        rows = [[*own, f"{teacher['valid'][0]:.4f}", f"{whole:.4f}", "1", "", f"{teacher['test'][1]:.4f}"]]
        for name in (*COMPRESSED, *DISTILLED):
            run = self.place / name
            if not (run / "report.json").is_file():
                continue
            model = kdrs.load_run(run).model
            found = self.values((model.encode(self.data.train), *model.factors()[1:]))
            new = found["test"][0]
            title = (COMPRESSED[name] if name in COMPRESSED else DISTILLED[name])[0]
            rows.append(
                [
                    TITLES[self.study.name],
                    title,
                    f"{self._bytes(run):,}",
                    f"{found['valid'][0]:.4f}",
                    f"{new:.4f}",
                    f"{new / whole:.2f}",
                    self._beside(name, new),
                    f"{found['test'][1]:.4f}",
                ]
            )
        return rows

    def _beside(self, name: str, new: float) -> str:
        """The share of what the same student has that was trained with the held-out users."""
        _, share, words = DISTILLED.get(name, ("", 0, DROPOUT))
        if words not in ((), BPR):
            return ""
        run = self.study.run(name.rpartition("-")[0], share, "0")
        if not (run / "report.json").is_file():
            return ""
        had = self.values(kdrs.load_run(run, self.data).factors())["test"][0]
        return f"{new / had:.2f}"

    def _bytes(self, run: Path) -> int:
        data = self.data if run == self.study.teacher else None  # students answer without theirs
        return sum(tensor.nbytes for tensor in kdrs.load_run(run, data).model.state_dict().values())


def with_former(rows: list[list[str]], former: list[list[str]]) -> list[list[str]]:
    """Rows of the last record whose runs are gone stay, of the same teachers."""
    known = {(row[0], row[1]): row for row in former}
    for row in rows:
        if row[1] == TEACHER and known.get((row[0], TEACHER), row) != row:
            known = {key: value for key, value in known.items() if key[0] != row[0]}
    known |= {(row[0], row[1]): row for row in rows}
    titles = [TEACHER, *(title for title, *_ in (*COMPRESSED.values(), *DISTILLED.values()))]
    return sorted(known.values(), key=lambda row: (list(TITLES.values()).index(row[0]), titles.index(row[1])))


def record(found: Sequence[NewUsers], former: dict[str, Any]) -> dict[str, Any]:
    envs = [path for users in found for path in users.place.glob("*/env.json")]
    rows = [row for users in found for row in users.rows()]
    kept = with_former(rows, former.get("rows", []))
    sets = ",".join(users.study.name for users in found)
    return {
        "title": "New users",
        "question": "How well is a user served of whom nothing was trained on?",
        "answer": ANSWER,
        "figures": [
            {
                "title": "A fifth of the users, left out of all training",
                "command": f"`python benches/frontier.py --sets {sets} --only teacher,budget --shares 10,30,100`, then `python "
                f"benches/new_users.py --sets {sets}`, then the same with `--record`",
                **origins(envs, former if len(kept) > len(rows) else None),
                "seed": "0",
                "reading": [
                    f"Teacher: BPR {DIM}. All items ranked, NDCG@10. "
                    + " ".join(f"{TITLES[u.study.name]}: {len(u.held):,} of {u.data.n_users:,} users." for u in found),
                    "New users are encoded from their training items, by models that saw none of their pairs.",
                    "Of the teacher: the share of what a teacher of all users has for these users. Of itself: the share of "
                    "what the same student has for them that was trained with them.",
                    "Others: NDCG@10 of the users that were trained on. Empty cells: not known, of an older record.",
                ],
                "columns": ["data", "model", "bytes", "valid", "test", "of the teacher", "of itself", "others"],
                "rows": kept,
            }
        ],
    }


ANSWER = [
    "On MovieLens 100K better than by a teacher that was trained with them: 1.17 to 1.22 of its NDCG@10, from a tenth to a "
    "hundredth of its bytes (187 users).",
    "On CiteULike leave-one-out as well at a tenth (1.00), nearly at a thirtieth (.95), less at a hundredth (.83; 1,043 "
    "users). `--model bpr` has .90 at a tenth, .74 at a thirtieth. Items that nobody else has do not count in a new user's "
    "sum.",
    "Known users of the same students gain there (.1016 for the teacher's .0912 at a tenth). Nobody else has the items of "
    "8.8 % of the test pairs, 4.7 % where the left-out fifth is there: these cannot be ranked. A dropout of histories adds "
    "nothing to `elsa`; rows with dropout are of a kdrs before it ranked items by their frequency. "
    "[What else was tried](notes/frontier.md#new-users-by-elsa).",
]
"""By hand, from the table."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/frontier"))
    parser.add_argument("--data", type=Path, default=Path("datasets"))
    parser.add_argument("--sets", default=",".join(SOURCES))
    parser.add_argument("--ways", default=",".join((*COMPRESSED, *DISTILLED)))
    parser.add_argument("--threads", default="1")
    parser.add_argument("--record", action="store_true", help="train nothing, write what is there")
    options = parser.parse_args()
    ways = options.ways.split(",")
    if unknown := set(ways) - {*COMPRESSED, *DISTILLED}:
        parser.error(f"--ways knows {', '.join((*COMPRESSED, *DISTILLED))}; got {', '.join(sorted(unknown))}")
    found = [NewUsers(Study(name, options.out, options.data, options.threads)) for name in options.sets.split(",")]
    for name in ways if not options.record else ():
        for users in found:
            users.carry_out(name)
    if options.record:
        path = RESULTS / "new-users.json"
        former = json.loads(path.read_text("utf-8"))["figures"][0] if path.is_file() else {}
        path.write_text(json.dumps(record(found, former), indent=1, ensure_ascii=False) + "\n", "utf-8")


if __name__ == "__main__":
    main()

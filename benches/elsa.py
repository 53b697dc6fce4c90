"""ELSA as teacher of ELSA: what a small student gains from a teacher of its own kind that is better than it.

    python benches/elsa.py [--sets ml-100k,citeulike-loo,gowalla] [--out runs/elsa] [--shares 10,30,100] [--threads 1]
                           [--only compressed,budget,coded-alone] [--seeds 0,1,2] [--record]

Teachers are `elsa` of 200 dimensions with its defaults, students `kdrs distill --budget`; beside each stands the same coded
student without a teacher, and the compressed teacher. Finished runs are skipped and begun ones resumed. ``--record`` writes
docs/results/elsa.json of what is there, of which pages.py makes a page.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import kdrs
from frontier import DIM, METRICS, RESULTS, TITLES, Study, origins, qualities, ratio_of

KINDS = {
    "coded-alone": "alone",
    "compressed": "compressed",
    "former": "distilled, `--budget` before (RRD .03 or CD .1)",
    "budget": "distilled, `--budget` (RRD .3)",
}
"""What is shown; runs of ``former`` are of commit 7f9b572, and nothing makes them now."""
SHORT = ("gowalla",)
"""Sets whose teacher is what `kdrs train` takes without a model: 15 epochs in the place of a plateau."""


class OfELSA(Study):
    """The runs of one data set: `Study` with another teacher."""

    def train_teacher(self) -> None:
        words = () if self.name in SHORT else ("--model", "elsa", "--dim", str(DIM))
        self.timed(self.teacher, "train", *self.common, *words, "--seed", "0")


def rows_of(study: OfELSA, shares: Sequence[int], seeds: Sequence[str]) -> list[list[str]]:
    data, rows = kdrs.Dataset.load(study.data), []
    for share in shares:
        runs = {
            title: [run for seed in seeds if (run := study.run(kind, share, seed)).joinpath("report.json").is_file()]
            for kind, title in KINDS.items()
        }
        runs = {title: found for title, found in runs.items() if found}
        if KINDS["coded-alone"] not in runs:
            continue
        teacher, *lines = kdrs.compare_runs(
            [study.teacher, *(run for found in runs.values() for run in found)], dataset=data, protocol_name="default",
            metrics=METRICS, time_scoring=False, teacher=str(study.teacher), baseline=str(runs[KINDS["coded-alone"]][0]),
        ).to_json()["runs"]  # fmt: skip
        if not rows:
            first = [f"{TITLES[study.name]}: ELSA {DIM}", f"{teacher['n_bytes']:,}", *qualities(teacher)]
            rows.append([*first, "1", study.seconds(study.teacher)])
        for (title, (run, *_)), line in zip(runs.items(), lines, strict=True):
            own = [f"1/{share}: {title}", f"{line['n_bytes']:,}", *qualities(line)]
            rows.append([*own, "0" if title == KINDS["coded-alone"] else ratio_of(line), study.seconds(run)])
    return rows


def record(studies: Sequence[OfELSA], shares: Sequence[int], seeds: Sequence[str]) -> dict[str, Any]:
    envs = [path for study in studies for path in study.place.glob("**/env.json")]
    return {
        "title": "ELSA as teacher and student",
        "question": "What does a teacher add, where it is better than its student?",
        "answer": ANSWER,
        "figures": [
            {
                "title": "Teachers by ELSA, students by a budget",
                "command": f"`python benches/elsa.py --sets {','.join(study.name for study in studies)} --shares "
                f"{','.join(map(str, shares))} --seeds {','.join(seeds)}`, then with `--record`",
                **origins(envs),
                "seed": f"{', '.join(seeds)} of students, 0 of teachers",
                "reading": [
                    "All items ranked, test part. Nothing was searched for the teacher. On MovieLens 100K and CiteULike it is "
                    f"`kdrs train --model elsa --dim {DIM}`, which ends at a plateau; without `--model` epochs are fewer, and "
                    "the weights a mean over them. On Gowalla it is what `kdrs train` takes without `--model`, 15 epochs; a "
                    "tenth of the training pairs is for validation.",
                    "Leave-one-out: one pair of each user, drawn at random, tests.",
                    "Alone: the same model, dimensions, bits and epochs as the distilled student, without a teacher.",
                    "Transfer ratio of NDCG@10: 0 is that student alone, 1 the teacher; paired bootstrap over queries and "
                    "seeds, 95 %. Empty: the teacher's lead is not clear.",
                    "± is the standard deviation over seeds, where there are several; others are of seed 0.",
                    'Rows "`--budget` before" are what commit 7f9b572 made: `rrd` of weight .03 or `cd` of .1, the one that '
                    "was better on validation after a few epochs. The command does not make them.",
                    "Seconds are those of the whole command, on one thread of a machine that did other work too: some five "
                    "hours in all. Three seeds of every row take about twice as long.",
                ],
                "columns": ["model", "bytes", "NDCG@10", "Recall@20", "transfer ratio", "s"],
                "rows": [row for study in studies for row in rows_of(study, shares, seeds)],
            }
        ],
    }


ANSWER = [
    "Of the gap between the student alone and a teacher, both ELSA, distillation closes .82 on Gowalla at a thirtieth of the "
    "bytes, and .39 on CiteULike; on MovieLens 100K there is no clear gap.",
    "Gowalla: NDCG@10 is .1280 at a thirtieth; alone .1186, teacher .1300. At a hundredth .40 of the gap is closed.",
    "CiteULike: .1046 at a thirtieth; alone .1007, teacher .1107. At a hundredth, three seeds, .30 of the gap is closed. At a "
    "tenth the student alone is level with the teacher (.1094), and so are all others.",
    "MovieLens 100K, three seeds: .2298, .2289 and .2258 at a tenth, a thirtieth and a hundredth; alone .2295, .2284, .2165.",
    "What teaches are the teacher's lists, with weight: the method `rrd` with .3, which `--budget` takes from a teacher that "
    "is `elsa`. With little weight (`rrd` .03 or `cd` .1) CiteULike has .1032 at a thirtieth and .0882 at a hundredth, hardly "
    "more than alone, or less.",
    "From BPR's teachers, which are weaker, `rrd` keeps .03: a hundredth of CiteULike had .0920 with .3 on validation, .0962 "
    "with .03. The weight was chosen there; one seed.",
    "The compressed teacher, in seconds: near the others at a tenth, below them from a thirtieth on; at a hundredth of "
    "MovieLens 100K it is level with the student alone (.2190 for .2165).",
]
"""By hand, from the table."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/elsa"))
    parser.add_argument("--data", type=Path, default=Path("datasets"))
    parser.add_argument("--sets", default="ml-100k,citeulike-loo")
    parser.add_argument("--shares", default="10,30,100")
    parser.add_argument("--only", default="compressed,budget,coded-alone")
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--threads", default="1")
    parser.add_argument("--record", action="store_true", help="train nothing, write what is there")
    options = parser.parse_args()
    shares, seeds = [int(share) for share in options.shares.split(",")], options.seeds.split(",")
    studies = [OfELSA(name, options.out, options.data, options.threads) for name in options.sets.split(",")]
    if options.record:
        page = json.dumps(record(studies, shares, seeds), indent=1, ensure_ascii=False) + "\n"
        (RESULTS / "elsa.json").write_text(page, "utf-8")
        return
    for study in studies:
        study.train_teacher()
        for share in reversed(shares):
            for kind in options.only.split(","):
                for seed in seeds if kind != "compressed" else seeds[:1]:
                    study.carry_out(kind, share, seed)


if __name__ == "__main__":
    main()

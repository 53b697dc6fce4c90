"""Gowalla in LightGCN's split, beside published figures: two teachers on the whole training part, ELSA and LightGCN with a
sampled softmax, the same in few bits, and students of few bits that they taught.

    python benches/gowalla.py [--out runs/gowalla] [--data datasets] [--only elsa,lightgcn] [--threads 1] [--record]

The published split has no validation part. So settings are those that were best with a tenth of the training pairs as
validation (``frontier.py``'s form of the set), and the last epochs are kept, averaged. Metrics are those of the papers:
Recall@20 and NDCG@20 over all items. Finished runs are skipped and begun ones resumed. ``--record`` writes
docs/results/gowalla.json; a table whose runs are gone stays as it was recorded.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

import kdrs
from frontier import RESULTS, origins, qualities
from reproduce import carry_out
from reproduce import kdrs as command

DIMS, EPOCHS, TEMPERATURE = (256, 352), 12, 0.08
GRAPH = 256
"""Dimensions of LightGCN, those of BiGeaR++'s teacher, which has two layers too."""
BITS = (4, 3, 2, 1)
STUDENTS = ((236, 2), (352, 4))
"""Dimensions and bits of what is trained through the rounding, alone and taught by a larger teacher: a third of BiGeaR++'s
bytes, and all of them."""
SEEDS = ("0", "1", "2")
"""Of LightGCN's small student; others have the first."""
TAUGHT = ("--start", "teacher", "--method", "rrd", "--weight", "0.3")
"""What ``--budget`` takes of a teacher by ELSA."""
METRICS = ["recall@20", "ndcg@20"]
COLUMNS = ["model", "bytes", "Recall@20", "NDCG@20"]
PUBLISHED = [
    ["Mult-VAE, as LightGCN's paper has it", "", "0.1641", "0.1335"],
    ["LightGCN, 3 layers of 64, float32", "18,134,784", "0.1830", "0.1554"],
    ["BiGeaR++'s teacher: LightGCN, 2 layers of 256, float32", "72,539,136", "0.1885", ""],
    ["BiGeaR++, three layers' bits of 256, 800 epochs on a GPU", "7,650,612", "0.1867", ""],
]
"""He et al., SIGIR 2020, table 3; logs of QueYork/BiGeaR-SS. Bytes: users and items together; of BiGeaR++ 108 a row."""
ANSWER = [
    "Better than BiGeaR++ in Recall@20, at a third of its bytes: an ELSA of 236 dimensions in 2 bits, distilled from "
    "a LightGCN of 256, has .1882 ± .0006 in 2.5 MB (three seeds). BiGeaR++, a quantised LightGCN, has .1867 in 7.7 "
    "MB, after 800 epochs on a GPU, and its float32 teacher, 73 MB, .1885. In 4 bits of 352, 7.4 MB, the student has "
    ".1888 (one seed). Without a teacher they have .1849 and .1869, distilled from an ELSA .1875 and .1876.",
    "The teacher is LightGCN trained by a sampled softmax, .1870: half an hour of one core. A student takes another "
    "20 to 30 minutes. Compressed in minutes, without training, it has .1833 in 5.4 MB, and an ELSA of 352 .1869 in "
    "7.4 MB.",
    "NDCG@20 is .1548 at most, LightGCN's paper has .1554: this test part asks for frequent items more than the "
    "training part does ([why](notes/frontier.md#a-test-part-that-was-drawn-otherwise)).",
]
"""By hand, from the table."""


ELSA, LIGHTGCN = "Teachers by ELSA", "A teacher by LightGCN, and published figures"
READING = {
    ELSA: f"ELSA: {EPOCHS} epochs, and a temperature of {TEMPERATURE}, between the two that were best, as a tenth of the "
    "training pairs had it ([trials](notes/frontier.md#tried-with-elsa-and-left)); then trained with all pairs; kdrs's "
    "defaults else. Validation chose, never test.",
    LIGHTGCN: f"`lightgcn-ssm` of {GRAPH} dimensions and two layers: {EPOCHS} epochs, the temperature of ELSA's teachers, "
    "batches of 8,192; kdrs's defaults else ([trials](notes/frontier.md#lightgcn-with-a-sampled-softmax)). Its students are "
    "`elsa`, without a table of users. Others are cited: LightGCN's paper (SIGIR 2020), and the logs of BiGeaR++'s authors.",
}


def seeded(run: Path) -> list[Path]:
    """The runs of a student with each of `SEEDS`."""
    return [run / f"seed-{seed}" for seed in SEEDS]


def runs_of(out: Path, kind: str) -> dict[str, list[Path]]:
    """The runs of a table that are there, by title: one, or several seeds."""
    runs = {}
    if kind == ELSA:
        for dim in DIMS:
            runs[f"ELSA {dim}, float32"] = [out / f"elsa-{dim}"]
            runs |= {f"ELSA {dim}, compressed to {bits} bits": [out / f"elsa-{dim}-{bits}"] for bits in BITS}
        for dim, bits in STUDENTS:
            runs[f"ELSA {dim} of {bits} bits, trained through the rounding, alone"] = [out / f"alone-{dim}-{bits}"]
            runs[f"ELSA {dim} of {bits} bits, distilled from ELSA {DIMS[-1]}"] = [out / f"taught-{dim}-{bits}"]
    else:
        runs[f"LightGCN {GRAPH}, float32"] = [out / f"lightgcn-{GRAPH}"]
        runs |= {f"the same, compressed to {bits} bits": [out / f"lightgcn-{GRAPH}-{bits}"] for bits in BITS}
        for dim, bits in STUDENTS:
            title = f"ELSA {dim} of {bits} bits, distilled from it"
            runs[title] = seeded(out / f"lightgcn-taught-{dim}-{bits}")
    known = {title: [run for run in every if (run / "report.json").is_file()] for title, every in runs.items()}
    return {title: every for title, every in known.items() if every}


def record(out: Path, data: kdrs.Dataset) -> dict[str, Any]:
    path = RESULTS / "gowalla.json"
    former = (
        {figure["title"]: figure for figure in json.loads(path.read_text("utf-8"))["figures"]} if path.is_file() else {}
    )
    figures = []
    for kind in (LIGHTGCN, ELSA):
        runs = runs_of(out, kind)
        if not runs:
            figures += [former[kind]] if kind in former else []
            continue
        lines = kdrs.compare_runs(
            [run for every in runs.values() for run in every],
            dataset=data,
            protocol_name="default",
            metrics=METRICS,
            time_scoring=False,
        ).to_json()["runs"]
        figures.append(
            {
                "title": kind,
                "command": f"`python benches/gowalla.py --only {'elsa' if kind == ELSA else 'lightgcn'}`, then with `--record`",
                **origins([run / "env.json" for every in runs.values() for run in every]),
                "seed": "0" if kind == ELSA else "0; 0, 1, 2 where there is a ±, the standard deviation",
                "reading": ["Recall@20 and NDCG@20 over all items. Bytes are those of all tables.", READING[kind]],
                "columns": COLUMNS,
                "rows": [
                    [title, f"{line['n_bytes']:,}", *qualities(line, METRICS)]
                    for title, line in zip(runs, lines, strict=True)
                ]
                + (PUBLISHED if kind == LIGHTGCN else []),
            }
        )
    return {
        "title": "Gowalla, beside published figures",
        "question": "How good is it where others publish their figures?",
        "answer": ANSWER,
        "figures": figures,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/gowalla"))
    parser.add_argument("--data", type=Path, default=Path("datasets"))
    parser.add_argument("--only", default="elsa,lightgcn", help="teachers: elsa, lightgcn")
    parser.add_argument("--threads", default="1")
    parser.add_argument("--record", action="store_true", help="train nothing, write what is there")
    options = parser.parse_args()
    place = options.data / "gowalla"
    if not place.exists():
        command(
            "data", "prepare", str(Path(os.environ.get("KDRS_DATA", "../shared/data")) / "gowalla"), "--out", str(place)
        )
    if options.record:
        page = json.dumps(record(options.out, kdrs.Dataset.load(place)), indent=1, ensure_ascii=False) + "\n"
        (RESULTS / "gowalla.json").write_text(page, "utf-8")
        return
    own = ("--data", str(place), "--device", "cpu", "--threads", options.threads, "--seed", "0")
    trained = ("--epochs", str(EPOCHS), "--set", "train.average=0.5", "--set", f"model.temperature={TEMPERATURE}")
    elsa, wanted = ("--model", "elsa", *trained), options.only.split(",")
    if "lightgcn" in wanted:
        teacher = options.out / f"lightgcn-{GRAPH}"
        graph = ("--model", "lightgcn-ssm", *trained, "--batch-size", "8192")
        carry_out(teacher, "train", *own, *graph, "--dim", str(GRAPH))
        compress(teacher, options.threads)
        for dim, bits in STUDENTS:
            student = (*own, *elsa, "--dim", str(dim), "--set", f"model.bits={bits}")
            taught = ("--teacher", str(teacher), *TAUGHT)
            for run, seed in zip(seeded(options.out / f"lightgcn-taught-{dim}-{bits}"), SEEDS, strict=True):
                if seed == SEEDS[0] or (dim, bits) == STUDENTS[0]:
                    carry_out(run, "distill", *student, *taught, "--seed", seed)
    for dim in DIMS if "elsa" in wanted else ():
        run = options.out / f"elsa-{dim}"
        carry_out(run, "train", *own, *elsa, "--dim", str(dim))
        compress(run, options.threads)
    for dim, bits in STUDENTS if "elsa" in wanted else ():
        student = (*own, *elsa, "--dim", str(dim), "--set", f"model.bits={bits}")
        taught = ("--teacher", str(options.out / f"elsa-{DIMS[-1]}"), *TAUGHT)
        carry_out(options.out / f"taught-{dim}-{bits}", "distill", *student, *taught)
        carry_out(options.out / f"alone-{dim}-{bits}", "train", *student)


def compress(run: Path, threads: str) -> None:
    for bits in BITS:
        small = run.with_name(f"{run.name}-{bits}")
        if not (small / "config.toml").is_file():
            command("compress", str(run), "--bits", str(bits), "--threads", threads, "--out", str(small))


if __name__ == "__main__":
    main()

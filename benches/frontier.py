"""Quality against bytes: teacher, students alone, compressed, distilled in float32 and through the rounding, at equal bytes.

    python benches/frontier.py [--sets citeulike-loo,citeulike,ml-100k,gowalla] [--out runs/frontier] [--seeds 0] [--threads 1]
                               [--only teacher,compressed,budget,budget-bpr,alone,cd,coded-alone]
                               [--record]

Bytes are those of all tables: items, users or their encoder, scales. Every student is a kdrs command, printed before it starts;
finished runs are skipped and begun ones resumed. Needs the data sets in the folder that KDRS_DATA names. ``--record`` writes
docs/results/frontier.json, frontier-SET.json and frontier.png, of which pages.py makes pages; rows whose runs are gone stay as
they were recorded, in a table of their own where they are of another teacher.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import kdrs
from kdrs.runs.directory import Run
from reproduce import carry_out
from reproduce import kdrs as command

RESULTS = Path(__file__).resolve().parents[1] / "docs" / "results"
DIM = 200
SHARES = (10, 16, 30, 50, 100)
SOURCES: dict[str, tuple[str, ...]] = {
    "citeulike-loo": ("citeulike-loo",),
    "citeulike": (
        "citeulike/users.dat", "--format", "counted-lists", "--min-user", "5", "--split", "ratio", "--fractions", "0.8,0.1,0.1",
    ),
    "ml-100k": (
        "ml-100k/ml-100k.inter", "--min-rating", "4", "--k-core", "5", "--split", "ratio", "--fractions", "0.8,0.1,0.1",
    ),
    "gowalla": ("gowalla",),
}  # fmt: skip
TRAINED = {"gowalla": ("--epochs", "200", "--set", "train.every=5")}
"""Of teacher and students alone, where the plateau would take hours and an evaluation takes longer than an epoch."""
TITLES = {
    "citeulike-loo": "CiteULike, leave-one-out",
    "citeulike": "CiteULike, 8:1:1",
    "ml-100k": "MovieLens 100K, 8:1:1",
    "gowalla": "Gowalla, LightGCN's split",
}
METRICS = ["ndcg@10", "recall@20"]
KINDS = {
    "alone": "alone, float32",
    "coded-alone": "alone, coded",
    "cd": "CD, float32",
    "compressed": "compressed",
    "budget": "distilled, `--budget`",
    "budget-bpr": "the same, `--model bpr`",
}
TEACHER = "teacher"
PICTURED = ("citeulike-loo", "citeulike", "ml-100k")


class Study:
    """The runs of one data set, in one folder."""

    def __init__(self, name: str, out: Path, data: Path, threads: str):
        self.name, self.place, self.data = name, out / name, prepared(name, data)
        self.common = ("--data", str(self.data), "--device", "cpu", "--threads", threads)
        self.common += ("--protocol", "default") if name == "citeulike-loo" else ()
        self.bpr = (*self.common, "--model", "bpr")
        self.threads, self.teacher = threads, self.place / "teacher"
        self.trained = TRAINED.get(name, ())

    def run(self, kind: str, share: int, seed: str) -> Path:
        return (
            self.place / (f"{kind}-{DIM // share}" if kind in ("alone", "cd") else f"{kind}-{share}") / f"seed-{seed}"
        )

    def carry_out(self, kind: str, share: int, seed: str) -> None:
        run = self.run(kind, share, seed)
        seeded = ("--seed", seed)
        if kind == "alone":
            self.timed(run, "train", *self.bpr, *self.trained, "--dim", str(DIM // share), *seeded)
        elif kind == "coded-alone":
            distilled = Run.open(self.run("budget", share, "0")).config
            model, train = distilled["model"], distilled["train"]
            coded = ("--model", model["name"], "--dim", str(model["dim"]), "--set", f"model.bits={model['bits']}")
            same = ("--epochs", str(train["epochs"]), "--set", f"train.average={train['average']}")
            self.timed(run, "train", *self.common, *coded, "--set", "model.users=encoded", *same, *seeded)
        elif kind == "cd":
            taught = ("--method", "cd", "--teacher", str(self.teacher))
            self.timed(run, "distill", *self.bpr, *self.trained, *taught, "--dim", str(DIM // share), *seeded)
        elif kind in ("budget", "budget-bpr"):
            taught = ("--teacher", str(self.teacher), "--budget", f"1/{share}")
            self.timed(run, "distill", *(self.common if kind == "budget" else self.bpr), *taught, *seeded)
        elif not (run / "config.toml").is_file():
            began = time.monotonic()
            command(
                "compress", str(self.teacher), "--budget", f"1/{share}", "--threads", self.threads, "--out", str(run)
            )
            self.note(run, time.monotonic() - began)

    def timed(self, run: Path, *words: str) -> None:
        done = run.is_dir() and (run / "config.toml").is_file() and Run.open(run).status().get("status") == "finished"
        began = time.monotonic()
        carry_out(run, *words)
        if not done:
            self.note(run, time.monotonic() - began)

    def note(self, run: Path, seconds: float) -> None:
        """Adds the time of a command to that of earlier ones of the same run."""
        path = self.place / "seconds.json"
        known = json.loads(path.read_text("utf-8")) if path.is_file() else {}
        key = str(run.relative_to(self.place))
        path.write_text(json.dumps({**known, key: known.get(key, 0.0) + seconds}, indent=1), "utf-8")

    def seconds(self, run: Path) -> str:
        path = self.place / "seconds.json"
        known = json.loads(path.read_text("utf-8")) if path.is_file() else {}
        found = known.get(str(run.relative_to(self.place)))
        return "" if found is None else f"{found:,.0f}"


def prepared(name: str, folder: Path) -> Path:
    if name == "gowalla":
        return validated(folder / name, place=folder / f"{name}-validated")
    place = folder / name
    if not place.exists():
        source, *options = SOURCES[name]
        given = source if not options else str(Path(os.environ.get("KDRS_DATA", "../shared/data")) / source)
        command("data", "prepare", given, *options, "--out", str(place))
    return place


def validated(given: Path, place: Path) -> Path:
    """A ready-made split without validation: a tenth of each user's training pairs, of users with five or more, becomes it."""
    if place.exists():
        return place
    if not given.exists():
        source = Path(os.environ.get("KDRS_DATA", "../shared/data")) / given.name
        command("data", "prepare", str(source), "--out", str(given))
    data = kdrs.Dataset.load(given)
    train, rows = data.train, data.train.row_of_pair
    order = np.lexsort((np.random.default_rng(0).random(train.n_pairs), rows))
    place_of = np.empty(train.n_pairs, np.int64)
    place_of[order] = np.arange(train.n_pairs) - np.repeat(train.indptr[:-1], train.row_degrees)
    wanted = np.where(train.row_degrees >= 5, np.maximum(1, train.row_degrees // 10), 0)
    chosen = place_of < wanted[rows]

    def part(mask: np.ndarray) -> kdrs.Interactions:
        return kdrs.Interactions.from_pairs(rows[mask], train.indices[mask], *train.shape)

    known = {"users": data.users, "items": data.items, "name": place.name}
    how = {"kind": "given", "valid": "a tenth of each user's training pairs"}
    kdrs.Dataset.from_interactions(part(~chosen), part(chosen), data.test, **known, split=how).save(place)
    return place


def rows_of(study: Study, seeds: Sequence[str]) -> tuple[list[list[str]], list[float] | None]:
    """The table of a data set, of the runs that are there; and the interval of its teacher."""
    data, rows, interval = kdrs.Dataset.load(study.data), [], None
    for share in SHARES:
        runs = {
            kind: [run for seed in seeds if (run := study.run(kind, share, seed)).joinpath("report.json").is_file()]
            for kind in KINDS
        }
        known = [run for kind in KINDS for run in runs[kind]]
        if not runs["alone"] or len(known) == len(runs["alone"]):
            continue
        found = kdrs.compare_runs(
            [study.teacher, *known], dataset=data, protocol_name="default", metrics=METRICS, time_scoring=False,
            baseline=str(runs["alone"][0]),
        ).to_json()  # fmt: skip
        teacher, *lines = found["runs"]
        if not rows:
            rows.append([TEACHER, "1", f"{teacher['n_bytes']:,}", *qualities(teacher), "1", ""])
            interval = teacher.get("intervals", {}).get(METRICS[0])
        told = iter(lines)
        for kind in (kind for kind in KINDS if runs[kind]):
            alike = len({_methods(run) for run in runs[kind]}) == 1
            line = merged([next(told) for _ in runs[kind][: 1 if alike else None]])
            part = teacher["n_bytes"] / line["n_bytes"]
            size = [f"1/{part:.1f}", f"{line['n_bytes']:,}"]
            last = ["0" if kind == "alone" else ratio_of(line), study.seconds(runs[kind][0])]
            rows.append([_label(share, kind), *size, *qualities(line), *last])
    return rows, interval


def merged(lines: list[dict[str, Any]]) -> dict[str, Any]:
    """Seeds of one command, of which a race chose other methods: compared one by one, shown as one model, without a ratio."""
    first, *others = lines
    if not others:
        return first
    metrics = {}
    for metric in METRICS:
        means = [line["metrics"][metric]["mean"] for line in lines]
        metrics[metric] = {"mean": float(np.mean(means)), "sd": float(np.std(means, ddof=1))}
    return {**first, "metrics": metrics, "transfer_ratio": None}


def _methods(run: Path) -> tuple[str, ...]:
    return tuple(str(term["method"]) for term in Run.open(run).config.get("distill", []))


def _label(share: int, kind: str) -> str:
    return f"1/{share}: {KINDS[kind]}"


def with_former(rows: list[list[str]], former: list[list[str]]) -> list[list[str]]:
    """Rows of the last record, of the same teacher, whose runs are gone or were of more seeds stay."""
    if not former:
        return rows
    known = {row[0]: row for row in former}
    known |= {row[0]: row for row in rows if "±" in row[3] or "±" not in known.get(row[0], row)[3]}
    order = [TEACHER, *(_label(share, kind) for share in SHARES for kind in KINDS)]
    return [known[label] for label in order if label in known]


def points_of(figure: dict[str, Any]) -> list[dict[str, Any]]:
    """What the picture shows of a table."""
    kinds = {title: kind for kind, title in KINDS.items()}
    return [
        {
            "kind": "teacher" if label == TEACHER else kinds[label.partition(": ")[2]],
            "bytes": int(size.replace(",", "")),
            "value": float(value.partition(" ")[0]),
        }
        for label, _, size, value, *_ in figure["rows"]
    ]


def qualities(line: dict[str, Any], metrics: Sequence[str] = METRICS) -> list[str]:
    found = []
    for metric in metrics:
        told = line["metrics"][metric]
        found.append(f"{told['mean']:.4f}" + (f" ± {told['sd']:.4f}" if told.get("sd") else ""))
    return found


def ratio_of(line: dict[str, Any]) -> str:
    """The transfer ratio of a compared run with its interval; empty where the teacher's lead is not clear."""
    ratio = (line.get("transfer_ratio") or {}).get(METRICS[0])
    return f"{ratio['ratio']:.2f} [{ratio['low']:.2f}, {ratio['high']:.2f}]" if ratio and ratio["clear"] else ""


def origins(envs: Iterable[Path], former: dict[str, Any] | None = None) -> dict[str, str]:
    """Machines and commits of runs, by their env.json, and those of a ``former`` record of which rows stay."""
    known = [json.loads(path.read_text("utf-8")) for path in envs]
    machines = {
        f"{e['processor']}, {e['cores']} cores, no GPU; torch {e['torch']}, Python {e['python']}" for e in known
    }
    commits = {str(env["commit"]) for env in known}
    if former:
        machines |= set(former["machine"].split("; and "))
        commits |= set(former["commit"].split(", "))
    return {"machine": "; and ".join(sorted(machines)), "commit": ", ".join(sorted(commits))}


def picture(figures: dict[str, dict[str, Any]], path: Path) -> None:
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter

    looks = {
        "alone": ("0.45", "s", "student alone, float32"),
        "coded-alone": ("#56B4E9", "v", "student alone, coded"),
        "budget-bpr": ("#CC79A7", "P", "distilled by --budget --model bpr"),
        "cd": ("#009E73", "^", "CD, float32"),
        "compressed": ("#0072B2", "o", "compressed, seconds"),
        "budget": ("#D55E00", "D", "distilled through the rounding"),
    }
    figure = Figure(figsize=(4.8 * len(figures), 4.2), dpi=150, layout="constrained")
    handles: dict[str, Any] = {}
    for axis, (name, table) in zip(figure.subplots(1, len(figures), squeeze=False)[0], figures.items(), strict=True):
        teacher, *own = points_of(table)
        if table.get("interval"):
            axis.axhspan(*table["interval"], color="black", alpha=0.07, linewidth=0)
        handles["teacher"] = axis.axhline(teacher["value"], color="black", linewidth=1, linestyle=(0, (5, 4)))
        axis.plot(teacher["bytes"], teacher["value"], "*", color="black", markersize=12)
        for kind, (colour, marker, label) in looks.items():
            mine = sorted((p["bytes"], p["value"]) for p in own if p["kind"] == kind)
            if mine:
                (handles[label],) = axis.plot(
                    *zip(*mine, strict=True), marker=marker, color=colour, linewidth=1.4, markersize=6
                )
        axis.set_xscale("log")
        axis.xaxis.set_major_formatter(EngFormatter(unit="B", sep=" "))
        axis.set(title=TITLES[name], xlabel="bytes of all tables")
        axis.grid(True, color="0.92")
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylabel("NDCG@10, all items ranked, test")
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=6, frameon=False, fontsize=9)
    figure.savefig(path)


def figures_of(study: Study, seeds: Sequence[str], recorded: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The table of runs, and those of the ``recorded`` that are of other teachers; none without runs."""
    rows, interval = rows_of(study, seeds)
    if not rows:
        return []
    former, *others = recorded or [{}]
    if former and rows[0][:5] != former["rows"][0][:5]:
        former, others = {}, [{**former, "title": f"{former['title']}: another teacher, of an older kdrs"}, *others]
    return [_figure(study, seeds, rows, interval, former), *others]


def _figure(
    study: Study, seeds: Sequence[str], rows: list[list[str]], interval: list[float] | None, former: dict[str, Any]
) -> dict[str, Any]:
    kept = with_former(rows, former.get("rows", []))
    stay = any(row not in rows for row in kept)
    told = {seed for seed in seeds if list(study.place.glob(f"*/seed-{seed}/report.json"))}
    if stay:
        told |= set(former["seed"].split(", "))
    return {
        "title": TITLES[study.name],
        "command": "`python benches/frontier.py --record`; " + RUNS.get(study.name, "one seed"),
        **origins([study.teacher / "env.json", *study.place.glob("*/seed-*/env.json")], former if stay else None),
        "seed": ", ".join(sorted(told)),
        "reading": [
            f"All items ranked; teacher: BPR {DIM}. Bytes are those of all tables.",
            "Transfer ratio of NDCG@10: 0 is the float32 student alone of the same bytes, 1 the teacher; paired "
            "bootstrap over queries, 95 %. Empty: the teacher's lead is not clear.",
            "± is the standard deviation over seeds, where there are several; the teacher has one.",
            "Seconds are those of the whole command on one core of a shared machine.",
        ],
        "columns": ["model", "of the teacher", "bytes", "NDCG@10", "Recall@20", "transfer ratio", "s"],
        "rows": kept,
        "interval": interval,
    }


def record(studies: Sequence[Study], seeds: Sequence[str]) -> None:
    """The pages of these data sets, and the picture of those that it shows."""
    for study in studies:
        path = page_of(study.name)
        recorded = json.loads(path.read_text("utf-8"))["figures"] if path.is_file() else []
        if figures := figures_of(study, seeds, recorded):
            first, title = path.stem == "frontier", TITLES[study.name]
            page = {
                "title": "Quality against bytes" + ("" if first else f": {title}"),
                "question": "What is the best student of so many bytes?",
                "answer": ANSWER
                if first
                else [*ANSWERS.get(title, ()), "The picture of other data sets: [frontier](frontier.md)."],
                **({"picture": "frontier.png", "notes": "notes/frontier.md"} if first else {}),
                "figures": figures,
            }
            path.write_text(json.dumps(page, indent=1, ensure_ascii=False) + "\n", "utf-8")
    pages = {name: page_of(name) for name in PICTURED}
    shown = {name: json.loads(path.read_text("utf-8"))["figures"][0] for name, path in pages.items() if path.is_file()}
    picture(shown, RESULTS / "frontier.png")


def page_of(name: str) -> Path:
    return RESULTS / ("frontier.json" if name == next(iter(SOURCES)) else f"frontier-{name}.json")


RUNS = {
    "citeulike": "one seed; before it `--sets citeulike --only coded-alone --shares 100,30` and `--only budget-bpr`. Of "
    "`--model bpr` the student of a sixteenth has scales of two bytes, as they were then",
    "citeulike-loo": "one seed, of `--model bpr` and alone at a thirtieth three: before it `--sets citeulike-loo --only "
    "coded-alone --shares 30,50,100`, `--only budget-bpr`, `--only budget-bpr,alone --shares 30 --seeds 1,2`, and `--seeds "
    "0,1,2` beside `--record`",
    "gowalla": "one seed; before it `--sets gowalla --shares 30,50,100`, and `--sets gowalla` beside `--record`. Validation "
    "is a tenth of each user's training pairs. Teacher and students alone have 200 epochs at most, evaluated every five. "
    "`--budget 1/30` makes the student of a fiftieth: one bit of 200 dimensions, as many as the teacher has",
    "ml-100k": "before it `--sets ml-100k --only alone,cd`, `--only coded-alone`, `--only budget --shares 10 --seeds 1,2`, "
    "`--only alone --seeds 1,2 --shares 30,100` and `--only budget-bpr --seeds 0,1,2`, and `--seeds 0,1,2` beside "
    "`--record`; at a tenth the race of one of three seeds chose cd",
}
"""How runs that the plain command does not make were made."""
ANSWER = [
    "`kdrs distill --budget`: on CiteULike (both splits) and MovieLens 100K its students rank above their teachers, or level, "
    "down to a hundredth of the bytes: a tenth of leave-one-out has .1098, a hundredth .0960, the teacher .0895.",
    "Most of that is the student's model: [`elsa`](../methods.md#models) learns better than BPR's teachers, alone too "
    "([what the teacher adds](notes/frontier.md#elsa-as-student)). With `--model bpr`, which it trained before, a hundredth "
    "kept .99, .88 and 1.03 of the lead.",
    "The honest opponent is the same coded student without a teacher: rows `alone, coded`. The teacher adds little to it: on "
    "leave-one-out .0960 for .0940 at a hundredth, .0989 for .0997 and .1025 for .1002 at a fiftieth and a thirtieth; on "
    "MovieLens 100K .2242 for .2199 at a hundredth, and nothing from a fiftieth on. What a better teacher adds: "
    "[ELSA as teacher](elsa.md).",
    "In seconds, without training: the compressed teacher; down to a sixteenth it ranks as well as the teacher or better.",
    "New users: [how they are served](new-users.md).",
    "On MovieLens 100K a float32 student distilled by CD is near them at a tenth and a sixteenth; from a thirtieth on it "
    "keeps less. On CiteULike CD was not run; the float32 student alone keeps far less at all sizes.",
    "A better teacher takes minutes: [ELSA](elsa.md), or [ALS of implicit](als.md).",
]
"""By hand, from the tables."""
ANSWERS = {
    "MovieLens 100K, 8:1:1": (
        "`kdrs distill --budget`: .2278 at a tenth, .2311 at a thirtieth, .2242 at a hundredth; the teacher has .2095. All are "
        "above it.",
        "The same student without a teacher has .2336, .2314 and .2199: its model, `elsa`, helps more than BPR's teacher.",
        "Compressed in seconds, without training: level with the teacher down to a hundredth.",
    ),
    "CiteULike, 8:1:1": (
        "`kdrs distill --budget`: .1237 at a tenth, .1145 at a thirtieth, .1089 at a hundredth; the teacher has .0997. All are "
        "above it or level.",
        "The same coded student without a teacher has .1129 at a thirtieth and .1088 at a hundredth: BPR's teacher adds little "
        "to `elsa`, or nothing. Of `--model bpr` a hundredth has .0988.",
        "Compressed in seconds, without training: above the teacher down to a sixteenth, level at a thirtieth.",
    ),
    "Gowalla, LightGCN's split": (
        "`kdrs distill --budget`: .1196 at a fiftieth and .1155 at a hundredth, Recall@20 .1685 and .1644; the teacher has "
        ".1111 and .1375. Both are above it.",
        "`--model bpr`, which it trained before, is level at a fiftieth (.1195, Recall@20 .1563), less at a hundredth (.0986, "
        ".1360), of another teacher: the second table. At a tenth to a thirtieth it was still rising at its last epoch, the "
        "fifteenth; all but that at a fiftieth are of a kdrs whose scales had two bytes and which took no means over epochs.",
        "Compressed, without training: Recall@20 above the teacher at a thirtieth, level at a fiftieth; NDCG@10 below it.",
        "What a teacher that is `elsa` adds: [ELSA as teacher](elsa.md); beside the figures of papers: [Gowalla](gowalla.md); "
        "[what is special about this test part](notes/frontier.md#a-test-part-that-was-drawn-otherwise).",
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/frontier"))
    parser.add_argument("--data", type=Path, default=Path("datasets"))
    parser.add_argument("--sets", default=",".join(SOURCES))
    parser.add_argument("--shares", default=",".join(map(str, SHARES)))
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--only", default="teacher,compressed,budget,alone")
    parser.add_argument("--threads", default="1")
    parser.add_argument("--record", action="store_true")
    options = parser.parse_args()
    seeds, wanted = options.seeds.split(","), options.only.split(",")
    if unknown := set(wanted) - {TEACHER, "none", *KINDS}:
        parser.error(f"--only knows {', '.join([TEACHER, *KINDS])}, or none; got {', '.join(sorted(unknown))}")
    studies = [Study(name, options.out, options.data, options.threads) for name in options.sets.split(",")]
    for study in studies:
        if "teacher" in wanted:
            study.timed(study.teacher, "train", *study.bpr, *study.trained, "--dim", str(DIM), "--seed", "0")
        for kind in wanted:
            for share in map(int, options.shares.split(",")) if kind in KINDS else ():
                for seed in seeds:
                    study.carry_out(kind, share, seed)
    if options.record:
        record(studies, seeds)


if __name__ == "__main__":
    main()

"""The pages of docs/results, written from the records that lie beside them.

    python benches/pages.py [--check]

A record is a JSON file; the page has its name. `methods` and `family` are written by comparison.py, `trajectories` by
trajectories.py, the first page here, from all of them. Every other record holds tables as they were printed: its cells are
text and are carried over as they are. ``--check`` writes nothing and names the pages that differ (exit code 1).

A record of tables::

    {"title": ..., "question": ..., "answer": [sentence, ...], "notes": "notes/NAME.md", "picture": "NAME.png",
     "figures": [{"title": ..., "command": ..., "machine": ..., "commit": ..., "seed": ..., "reading": [sentence, ...],
                  "columns": [...], "rows": [[...], ...]}]}

``notes``, ``picture`` and ``seed`` are left out where there are none.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import comparison
import trajectories

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "docs" / "results"
IN_PACKAGE = ROOT / "python" / "kdrs" / "distillers" / "measured.json"
"""What `kdrs methods` prints."""
CLEAR = 0.014
"""Two standard errors of H@5 on CiteULike's 5,219 users: a smaller gain of one seed is marked."""

WHEN = {
    "freqd": "the best end is wanted and time does not matter",
    "mkd": "to reproduce MKD; NKD alone is as good, at a third",
    "nkd": "the teacher's vectors are at hand: near the top at a third of FreqD's cost",
    "ir-rrd": "scores are at hand and the catalogue is far larger than a batch's lists",
    "cd": "**first try**: scores are enough, cheap, near the top with all seeds",
    "dcd-1e-3": "CD disappoints; 0.001 is the default now",
    "cpd": "to reproduce PCKD; NKD brings more for less",
    "hetcomp": "there are several different teachers with trajectories ([its own protocol](hetcomp.md))",
    "cd-2": "to reproduce CD's two items an epoch; the default is better",
    "htd": "to reproduce topology distillation",
    "de": "to compare with the usual baseline on vectors",
    "rce-kd": "NDCG counts: little gain in hits, more in order ([its own protocol](rce-kd.md))",
    "de+rrd": "to reproduce DE-RRD; the sum brings no more than DE",
    "rrd": "only **lists** are at hand, or bytes are few",
    "rd": "lists alone, and a sequential student ([Caser](rd-caser.md), [SASRec](sasrec.md))",
    "score-matching": "as the plain baseline on scores",
    "hint": "as the plain baseline on vectors",
    "sld": "as a part of MKD; its label is a reconstruction",
    "ftd": "to reproduce FTD ([own protocol](ftd.md)); give it patience",
    "bd": "the teacher may be trained on and shall gain too ([its notebook](bd.md))",
    "dcd": "never with the published weight on data like these",
    "unkd": "popularity bias matters and all items are ranked ([its own protocol](unkd.md))",
    "dgkd": "assistants may be trained first: the best of this family",
    "hyperkdma": "to reproduce HyperKDMA; no clear gain over DE, one seed",
    "takd": "one chain of assistants is at hand",
    "phr": "to reproduce PHR; DE brings more for less",
}
"""What each measured method is for: judged from the tables of this folder, by hand."""

LINKS = {
    "Which method brings what?": {
        "methods": "all methods, BPR 200 -> 20", "family": "with assistants, 100 -> 10", "depth": "by depth of the list",
        "study": "each tuned, MovieLens", "study-citeulike": "each tuned, CiteULike (begun)",
    },
    "Do papers and kdrs agree?": {
        "headlines": "headline results", "trajectories": "learning curves", "ftd": "FTD", "rd-caser": "RD with Caser",
        "hetcomp": "HetComp", "sasrec": "RD with SASRec", "rce-kd": "RCE-KD", "bd": "BD", "unkd": "UnKD",
        "family-epochs": "HyperKDMA's family by epoch",
    },
    "What is the best student of so many bytes?": {
        "frontier": "CiteULike leave-one-out, and the picture", "frontier-citeulike": "CiteULike 8:1:1",
        "frontier-ml-100k": "MovieLens 100K", "frontier-gowalla": "Gowalla, bytes", "new-users": "new users",
        "als": "a teacher in a minute", "elsa": "ELSA as teacher", "gowalla": "Gowalla, beside papers",
    },
    "What does it cost?": {
        "costs": "methods, CiteULike", "costs-models": "models", "costs-gowalla": "methods, Gowalla",
        "growth": "growth with users and items", "million": "a million users", "far": "5 million users",
        "projection": "growth on paper", "epoch": "a plain epoch beside torch", "lazy-adam": "lazy Adam",
        "memory": "peak memory",
    },
    "When does a run stop, and do verdicts agree with seeds?": {"stopping": "stopping", "verdicts": "verdicts"},
    "How fast is it?": {
        "core": "the core", "codes": "codes", "serving": "serving", "one-query": "one query",
        "products": "HyperKDMA's products", "plain-loops": "methods beside plain loops", "processes": "two processes",
    },
}  # fmt: skip
"""The pages by what they answer, each with a few words."""


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table of ready cells."""
    return ["| " + " | ".join(cells) + " |" for cells in (columns, ["---"] * len(columns), *rows)]


def page(record: dict[str, Any]) -> str:
    """A record of tables as a page."""
    lines = [f"# {record['title']}", "", f"**{record['question']}** {' '.join(record['answer'])}".rstrip()]
    if "picture" in record:
        lines += ["", f"![{record['title']}]({record['picture']})"]
    for figure in record["figures"]:
        lines += ["", f"## {figure['title']}", ""]
        lines += [f"- {sentence}" for sentence in figure["reading"]]
        seed = f" Seed: {figure['seed']}." if "seed" in figure else ""
        lines += [
            f"- Command: {figure['command']}.",
            f"- Machine: {figure['machine']}. Commit: {figure['commit']}.{seed}",
            "",
            *table(figure["columns"], figure["rows"]),
        ]
    if "notes" in record:
        lines += ["", f"What was found on the way: [notes]({record['notes']})."]
    return "\n".join(lines) + "\n"


def needs(names: str) -> str:
    """What a teacher must have for a method, or for a sum of them, in the words of docs/methods.md."""
    from kdrs.distillers import DISTILLERS

    words = {"representations": "vectors", "scores": "scores", "a ranking": "ranking", "saved stages": "states"}
    found: dict[str, None] = {}
    for name in names.removesuffix("-1e-3").removesuffix("-2").split("+"):
        text = DISTILLERS[name].needs
        own = [word for part, word in words.items() if part in text]
        found |= dict.fromkeys(own or ["a run, to be trained on"])
    return ", ".join(found)


def two_digits(value: float) -> str:
    digits = f"{value:.1e}"
    return f"{float(digits):,.0f}" if value >= 10 else f"{float(digits):g}"


def signed(value: float) -> str:
    return f"{value:+.4f}".replace("0.", ".", 1)


def which_rows(known: dict[str, Any], costs: dict[str, float], recall: dict[str, float]) -> list[list[str]]:
    """A row for each method of one record of comparison.py, the largest gain first."""
    ends = known["finished"]
    alone, teacher = ends["student"]["hit@5"], ends["teacher"]["hit@5"]
    rows = []
    for name, end in sorted(ends.items(), key=lambda item: -item[1]["hit@5"]):
        if name in ("student", "teacher"):
            continue
        gain, seeds = end["hit@5"] - alone, len(end["epochs"])
        minutes = statistics.mean(end["epochs"]) * end["seconds"] / 60
        case = name.removesuffix("-1e-3").removesuffix("-2")
        rows.append([
            f"`{name}`",
            signed(gain) + ("" if abs(gain) >= CLEAR or seeds > 1 else " ?"),
            f"{gain / (teacher - alone):.2f}",
            signed(recall[name] - recall["student"]) if name in recall else "",
            str(seeds),
            f"{two_digits(costs[case] / costs['alone'])} x" if case in costs else "",
            two_digits(minutes),
            needs(name),
            WHEN[name],
        ])  # fmt: skip
    return rows


COLUMNS = [
    "method",
    "H@5 gained",
    "of the way",
    "R@10 gained",
    "seeds",
    "epoch",
    "minutes",
    "teacher has",
    "take it when",
]


def records_of(folder: Path) -> dict[str, Any]:
    return {
        name: json.loads((folder / f"{name}.json").read_text("utf-8")) for names in LINKS.values() for name in names
    }


def costs_of(records: dict[str, Any]) -> dict[str, float]:
    """Seconds of an epoch by case; ``alone`` is plain training."""
    steps = records["costs"]["figures"][0]
    place = steps["columns"].index("epoch s")
    return {row[0]: float(row[place]) for row in steps["rows"]}


SETTINGS = {
    "tuned": "MovieLens 100K 8:1:1, all items ranked, BPR 200 -> 4, each tuned by eight trials, NDCG@10",
    "published": "CiteULike leave-one-out, 499 candidates, BPR 200 -> 20, published weights, H@5",
    "chains": "as published, BPR 100 -> 10, four assistants",
}


def measured(folder: Path) -> str:
    """What is known of each method, for `kdrs methods`: transfer ratios by setting and their seeds, cost, what it is for."""
    records = records_of(folder)
    costs = costs_of(records)
    found: dict[str, dict[str, Any]] = {}
    for setting, record in (("published", records["methods"]), ("chains", records["family"])):
        ends = record["finished"]
        alone, teacher = ends["student"]["hit@5"], ends["teacher"]["hit@5"]
        for name in _methods():
            if name in ends:
                ratio = round((ends[name]["hit@5"] - alone) / (teacher - alone), 2)
                known = found.setdefault(name, {"ratios": {}, "seeds": {}})
                known["ratios"][setting], known["seeds"][setting] = ratio, len(ends[name]["epochs"])
    study = records["study"]["figures"][0]
    place, seeds = study["columns"].index("transfer ratio"), study["columns"].index("seeds")
    for row in study["rows"]:
        if row[0] in _methods() and row[place]:
            known = found.setdefault(row[0], {"ratios": {}, "seeds": {}})
            known["ratios"]["tuned"], known["seeds"]["tuned"] = float(row[place].split()[0]), int(row[seeds])
    for name, known in found.items():
        without_links = re.sub(r"\[[^]]*\]\([^)]*\)", "", WHEN[name])
        known["when"] = re.sub(r"\s*\([\s,]*\)", "", without_links).replace("*", "").replace("`", "")
        if name in costs:
            known["epoch"] = float(f"{costs[name] / costs['alone']:.1e}")
    asked = {"settings": SETTINGS, "methods": dict(sorted(found.items()))}
    return json.dumps(asked, indent=1, ensure_ascii=False) + "\n"


def first_page(folder: Path) -> str:
    """Which method when: from the records of methods, family, costs and depth."""
    records = records_of(folder)
    costs = costs_of(records)
    kept = records["depth"]["figures"][0]
    recall = {row[0]: float(row[kept["columns"].index("Recall@10")]) for row in kept["rows"]}
    large, small = records["methods"], records["family"]
    texts = []
    for known in (large, small):
        ends = known["finished"]
        texts.append(
            f"The student alone has H@5 {ends['student']['hit@5']:.4f}, the teacher {ends['teacher']['hit@5']:.4f}."
        )
    lines = [
        "# Results: which method when",
        "",
        "Written by `python benches/pages.py`. CiteULike (leave-one-out, 499 candidates), one seed unless stated, published",
        "weights; `rrd` ran with 0.001, its default is 0.03 now.",
        "",
        "- **First the model, then the method**: `elsa` of one bit without a teacher ranks above every distilled `bpr` of its",
        "  bytes ([study](study.md)). A teacher adds most where it is `elsa` itself ([figures](elsa.md)). Among methods for",
        "  `bpr` the order changes with data and tuning: `kdrs methods` shows both.",
        "- **A small student**: `kdrs distill --teacher RUN`, or `--budget 1/30` ([frontier](frontier.md)).",
        "- **Your own model**: of scores `cd`; of vectors `nkd`, then `freqd`; of lists `rrd`; of several teachers `hetcomp`.",
        "- Always train the student alone beside it: the gain is what counts, not the share of the teacher.",
        "",
        "## BPR 200 -> 20",
        "",
        texts[0],
        "",
        *table(COLUMNS, which_rows(large, costs, recall)),
        "",
        "## BPR 100 -> 10, methods with four assistants",
        "",
        texts[1],
        "",
        *table([*COLUMNS[:3], *COLUMNS[4:]], [row[:3] + row[4:] for row in which_rows(small, costs, {})]),
        "",
        "## How to read it",
        "",
        f"- **H@5 gained**: over the student alone. `?`: below {CLEAR}, two standard errors, from one seed.",
        "- **of the way**: (method - alone) / (teacher - alone), the transfer ratio. 1 is the teacher's quality.",
        "- **R@10 gained**: over the whole catalogue, one seed ([depth](depth.md)). The two can disagree: `unkd`.",
        "- **epoch**: as times of plain training, 200 -> 20, undisturbed ([costs](costs.md)); `dgkd` with two assistants.",
        "- **minutes**: on shared machines, two cores, assistants not counted "
        f"({two_digits(_minutes(large['finished']['student']))} for the student alone).",
        "- **teacher has**: vectors, scores, a ranking, or states of its training ([methods](../methods.md#methods)).",
    ]
    unmeasured = sorted(set(_methods()) - {name for known in (large, small) for name in known["finished"]})
    if unmeasured:
        lines.append(f"- Not measured here: {', '.join(f'`{name}`' for name in unmeasured)}.")
    lines += ["", "## All pages", ""]
    for question, told in LINKS.items():
        lines.append(f"- **{question}** {' · '.join(f'[{words}]({name}.md)' for name, words in told.items())}")
    notes = sorted((folder / "notes").glob("*.md"))
    lines.append(f"- **What was found on the way?** {' · '.join(f'[{n.stem}](notes/{n.name})' for n in notes)}")
    return "\n".join(lines) + "\n"


def _methods() -> list[str]:
    from kdrs.distillers import DISTILLERS

    return list(DISTILLERS)


def _minutes(end: dict[str, Any]) -> float:
    return statistics.mean(end["epochs"]) * end["seconds"] / 60


def pages(folder: Path = FOLDER) -> dict[Path, str]:
    """Every page of docs/results, the package's own record, and what each must be."""
    found = {folder / "README.md": first_page(folder), IN_PACKAGE: measured(folder)}
    for path in sorted(folder.glob("*.json")):
        record = json.loads(path.read_text("utf-8"))
        if "sizes" in record:
            text = comparison.page(record, path.name)
        elif "along" in record:
            text = trajectories.page(record, path.name)
        else:
            text = page(record)
        found[path.with_suffix(".md")] = text
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 if a page differs")
    options = parser.parse_args()
    differing = 0
    for path, text in pages().items():
        if path.is_file() and path.read_text("utf-8") == text:
            continue
        differing += 1
        if not options.check:
            path.write_text(text, "utf-8")
        print(path.relative_to(ROOT), "differs" if options.check else "written")
    return int(options.check and differing > 0)


if __name__ == "__main__":
    sys.exit(main())

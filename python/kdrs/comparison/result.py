"""What a comparison found: it prints and saves itself as text, Markdown, LaTeX, CSV, JSON, a page and a picture."""

from __future__ import annotations

import io
import json
import math
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from kdrs._files import write_bytes
from kdrs.comparison.background import Background
from kdrs.comparison.groups import Breakdown
from kdrs.comparison.latex import NAME, latex_of
from kdrs.comparison.page import page_of
from kdrs.comparison.picture import figure_of
from kdrs.comparison.rows import csv_of
from kdrs.comparison.standing import Standing
from kdrs.comparison.tables import Table, tables_of
from kdrs.comparison.verdicts import Verdict
from kdrs.errors import ConfigError, nearest, shown
from kdrs.escaping import json_text, markdown, visible
from kdrs.evaluation.significance import Difference, Spread
from kdrs.evaluation.transfer import Transfer

SCHEMA = 1
PICTURES = (".png", ".svg", ".pdf")


@dataclass(frozen=True)
class Line:
    """One model of a comparison, over its seeds."""

    name: str
    role: str
    seeds: tuple[int | None, ...]
    quality: dict[str, Spread]
    intervals: dict[str, tuple[float, float]]
    """Bootstrap interval of the mean over queries (and seeds, where there are several), by metric."""
    baseline: str | None
    """What it is compared with: the named one, or the model trained alone whose size is nearest; None for itself."""
    transfer: dict[str, Transfer]
    """Transfer ratio by metric; empty without a teacher or a baseline, and for these two."""
    kept: dict[str, float]
    """Share of the teacher's mean, by metric; empty without a teacher."""
    against: dict[str, Difference]
    """Difference to the baseline over queries (values averaged over seeds), by metric; empty for the baseline. Holm's
    correction is over all models but the teacher."""
    against_by_seed: dict[str, Difference]
    """The same over seeds, where both have two common seeds or more."""
    verdicts: dict[str, Verdict]
    """What the two say together."""
    beyond: dict[str, float]
    agreement: dict[str, float]
    n_parameters: int | None
    n_bytes: int | None
    """Sizes are those of the largest seed."""
    bytes_per_row: float | None
    seconds_per_1000: float | None
    curves: tuple[Sequence[Mapping[str, Any]], ...]
    standings: dict[str, Standing] = field(default_factory=dict)
    """Its place among the models that are no teachers, and how it does against the best of them, by metric; empty for
    teachers, and where there are fewer than two others."""


@dataclass(frozen=True)
class Comparison:
    """What ``compare`` found; it prints itself as text, Markdown, LaTeX, CSV, JSON, a page and a picture."""

    lines: tuple[Line, ...]
    metrics: tuple[str, ...]
    part: str
    setting: str
    n: int
    n_queries: int
    teacher: str | None
    baseline: str | None
    """The one that is named, or the first that was trained alone; each line says its own."""
    confidence: float
    warnings: tuple[str, ...] = ()
    """Why a result may not be trusted."""
    breakdowns: tuple[Breakdown, ...] = ()
    """Quality by groups of queries, where traits of them were given."""
    background: Background | None = field(default=None, repr=False)
    """What its page tells besides: of the data, and lists for some users."""

    def shown_name(self, metric: str) -> str:
        return metric if self.setting == "full" else f"{metric} {self.setting}"

    def tables(self) -> list[Table]:
        """Transfer ratio and cost of every model, its quality, then the differences to the baseline."""
        return tables_of(self)

    def text(self) -> str:
        """For a terminal or a log, plain."""
        blocks = [table.text() for table in self.tables()]
        if self.warnings:
            blocks.append("\n".join(f"warning: {visible(warning)}" for warning in self.warnings))
        return "\n\n".join(blocks) + "\n"

    def markdown(self) -> str:
        blocks = [table.markdown() for table in self.tables()]
        if self.warnings:
            blocks.append("\n".join(["**Warnings**", "", *(f"- {markdown(warning)}" for warning in self.warnings)]))
        return "\n\n".join(blocks) + "\n"

    def latex(self, name: str = NAME) -> str:
        """The tables for a paper, with booktabs: the best by each metric bold, the second best underlined. Their labels begin
        with ``name``, so that one paper can have several comparisons: ``tab:NAME-test-quality``."""
        return latex_of(self, name)

    def csv(self) -> str:
        """A row for each model and metric, a line with the names of the columns first; numbers in full precision."""
        return csv_of(self)

    def to_json(self) -> dict[str, Any]:
        """Plain values under ``"schema": 1``; numbers that do not exist are ``null``."""
        return {
            "schema": SCHEMA,
            "part": self.part,
            "setting": self.setting,
            "n": self.n,
            "n_queries": self.n_queries,
            "teacher": self.teacher,
            "baseline": self.baseline,
            "confidence": self.confidence,
            "warnings": list(self.warnings),
            "groups": [breakdown.to_json() for breakdown in self.breakdowns],
            "runs": [
                {
                    "name": line.name,
                    "role": line.role,
                    "seeds": list(line.seeds),
                    "n_parameters": line.n_parameters,
                    "n_bytes": line.n_bytes,
                    "bytes_per_row": line.bytes_per_row,
                    "seconds_per_1000_queries": line.seconds_per_1000,
                    "metrics": {self.shown_name(name): spread.to_json() for name, spread in line.quality.items()},
                    "intervals": {self.shown_name(name): list(ends) for name, ends in line.intervals.items()},
                    "baseline": line.baseline,
                    "transfer_ratio": {self.shown_name(name): t.to_json() for name, t in line.transfer.items()},
                    "share_of_teacher": {self.shown_name(name): _or_none(share) for name, share in line.kept.items()},
                    "against_baseline": {self.shown_name(name): d.to_json() for name, d in line.against.items()},
                    "against_baseline_by_seed": {
                        self.shown_name(name): d.to_json() for name, d in line.against_by_seed.items()
                    },
                    "verdicts": {self.shown_name(name): v.to_json() for name, v in line.verdicts.items()},
                    "standings": {self.shown_name(name): s.to_json() for name, s in line.standings.items()},
                    "beyond": line.beyond,
                    "agreement_with_teacher": line.agreement,
                }
                for line in self.lines
            ],
        }

    def page(self) -> str:
        """One HTML file for people, without scripts or anything else from elsewhere: tables, charts, and what
        `kdrs.runs.compared.compare_runs` adds for ``page``."""
        return page_of(self)

    def print(self, file: TextIO | None = None) -> None:
        """Writes the tables to ``file`` (stdout), with rules and colour where it is a terminal that wants them."""
        file = sys.stdout if file is None else file
        if not file.isatty() or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
            file.write(self.text())
            return
        from rich.console import Console
        from rich.text import Text

        console = Console(file=file)
        for table in self.tables():
            console.print(table.rich())
            for note in (*table.notes, *table.spoken):
                console.print(Text(note), style="dim")
            console.print()
        for warning in self.warnings:
            console.print(Text(f"warning: {visible(warning)}"), style="yellow")

    def save(self, folder: str | Path, *, picture: bool = True) -> list[Path]:
        """Writes ``report.html``, ``comparison.json``, ``.md``, ``.tex`` and ``.csv`` and, if asked, the picture as ``.png``,
        ``.svg`` and ``.pdf`` into ``folder``, which must be new, empty or that of an earlier comparison. The folder's name
        begins the labels of the tables in LaTeX. Returns the paths, the page first."""
        folder = Path(folder)
        check_folder(folder)
        # all is made before anything is written; first what a folder of a comparison is known by
        made = {
            "comparison.json": json_text(self.to_json(), indent=1, ascii=False) + "\n",
            "comparison.md": self.markdown(),
            "comparison.tex": self.latex(folder.resolve().name),
            "comparison.csv": self.csv(),
            "report.html": self.page(),
        }
        contents = {name: text.encode() for name, text in made.items()}
        if picture:
            contents |= {f"comparison{suffix}": self._drawn(suffix, self.metrics[0]) for suffix in PICTURES}
        else:  # those of an earlier comparison would pass for this one's
            for suffix in PICTURES:
                (folder / f"comparison{suffix}").unlink(missing_ok=True)
        for name, content in contents.items():
            write_bytes(folder / name, content, make_folder=True)
        return [folder / name for name in ("report.html", *(name for name in contents if name != "report.html"))]

    def picture(self, path: str | Path, *, metric: str | None = None) -> Path:
        """Quality against size, against scoring time, and learning curves; ``.png``, ``.svg`` or ``.pdf``.

        The same comparison gives the same bytes, and in SVG and PDF text stays text. ``metric`` is the first one by default.
        Raises ``MachineError`` where matplotlib is not installed.
        """
        path = Path(path)
        if path.suffix not in PICTURES:
            raise ConfigError(f"a picture as {shown(path.suffix or path.name)}", f"allowed: {', '.join(PICTURES)}")
        metric = self.metrics[0] if metric is None else metric
        if metric not in self.metrics:
            raise ConfigError(f"the comparison holds no {shown(metric)!r}", nearest(metric, self.metrics))
        write_bytes(path, self._drawn(path.suffix, metric), make_folder=True)
        return path

    def _drawn(self, suffix: str, metric: str) -> bytes:
        figure = figure_of(self, metric)
        import matplotlib

        content = io.BytesIO()
        # No date and no version in the file: the same comparison gives the same bytes.
        unstamped = {
            ".png": {"Software": None},
            ".svg": {"Date": None, "Creator": None},
            ".pdf": {"CreationDate": None, "Creator": None, "Producer": None},
        }
        with matplotlib.rc_context({"svg.hashsalt": "kdrs", "text.usetex": False}):
            # text that can be searched, copied and set in another font: no outlines of letters
            matplotlib.rcParams.update({"svg.fonttype": "none", "pdf.fonttype": 42})
            figure.savefig(content, format=suffix[1:], metadata=unstamped[suffix])
        return content.getvalue()


def check_folder(folder: Path) -> None:
    """Raises ``ConfigError`` for a folder that holds anything but an earlier comparison."""
    if folder.is_dir() and any(entry.suffix != ".tmp" for entry in folder.iterdir()) and not _holds_comparison(folder):
        raise ConfigError(
            f"{shown(str(folder))} is not empty and holds no report of kdrs", "name another folder with --out"
        )


def _holds_comparison(folder: Path) -> bool:
    try:
        document = json.loads((folder / "comparison.json").read_text("utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(document, dict) and {"schema", "baseline", "runs"} <= document.keys()


def _or_none(value: float) -> float | None:
    return value if math.isfinite(value) else None

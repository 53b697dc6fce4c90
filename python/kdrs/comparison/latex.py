"""A comparison as tables for a paper: LaTeX with booktabs, nothing else."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from kdrs import __version__
from kdrs.comparison.tables import tables_of
from kdrs.escaping import latex

if TYPE_CHECKING:
    from kdrs.comparison.result import Comparison
    from kdrs.comparison.tables import Table

NAME = "kdrs"
_MINUS = re.compile(r"(?<![\w.\-])-(?=[\d.])")


def latex_of(comparison: Comparison, name: str = NAME) -> str:
    """One ``table`` for each table of the comparison, for ``\\input``, with a label (`label_of`)."""
    head = (
        f"% Written by kdrs {__version__}. In the preamble: \\usepackage{{booktabs}}\n"
        "% Names with letters beyond Latin take LuaLaTeX or XeLaTeX.\n"
    )
    blocks = [_float(table, label_of(comparison, table, name)) for table in tables_of(comparison)]
    if comparison.warnings:
        # as a comment: a paper has no place for them, but who copies the table should meet them
        blocks.append("\n".join(f"% warning: {latex(warning)}" for warning in comparison.warnings))
    return head + "\n" + "\n\n".join(blocks) + "\n"


def label_of(comparison: Comparison, table: Table, name: str = NAME) -> str:
    """What a document refers to it by, such as ``tab:kdrs-test-quality``: of letters, digits and hyphens."""
    one, part = (re.sub(r"[^A-Za-z0-9]+", "-", text).strip("-") for text in (name, comparison.part))
    return "tab:" + "-".join(filter(None, (one or NAME, part, table.name)))


def _float(table: Table, label: str) -> str:
    said = " ".join(map(latex, (f"{table.title[:1].upper()}{table.title[1:]}.", *table.key)))
    notes = " ".join(map(latex, table.notes))
    below = [rf"\par\smallskip\parbox{{\linewidth}}{{\footnotesize {notes}}}"] if notes else []
    caption = rf"\caption{{{said}}}\label{{{label}}}"
    return "\n".join([r"\begin{table}", r"\centering", caption, tabular(table), *below, r"\end{table}"])


def tabular(table: Table) -> str:
    """The table alone."""
    tall = max(header.count("\n") for header in table.headers) + 1
    heads = [([""] * tall + header.split("\n"))[-tall:] for header in table.headers]
    align = "".join("l" if column < table.words else "r" for column in range(len(heads)))
    rows = [
        [
            latex(cell) if column < table.words else _marked(_numbers(cell), table.marks.get((at, column), ()))
            for column, cell in enumerate(row)
        ]
        for at, row in enumerate(table.rows)
    ]
    return "\n".join(
        [
            rf"\begin{{tabular}}{{{align}}}",
            r"\toprule",
            *(_row([latex(head[at]) for head in heads]) for at in range(tall)),
            r"\midrule",
            *map(_row, rows),
            r"\bottomrule",
            r"\end{tabular}",
        ]
    )


def _row(cells: Sequence[str]) -> str:
    return " & ".join(cells).strip() + r" \\"


def _numbers(cell: str) -> str:
    """A cell whose minus signs are no hyphens; they are found before it is escaped, which puts braces around some signs."""
    return "$-$".join(map(latex, _MINUS.split(cell.strip())))


def _marked(cell: str, marks: Sequence[str]) -> str:
    text = rf"\textbf{{{cell}}}" if "best" in marks else rf"\underline{{{cell}}}" if "second" in marks else cell
    return rf"{text}$^{{\approx}}$" if "alike" in marks else text

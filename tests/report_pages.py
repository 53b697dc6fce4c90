"""A report of small runs, as `kdrs report` writes it, and its page taken apart, for the tests of it."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path

from commands import FAST, ok, write_clicks
from kdrs.data import Dataset

EVIL = "<script>alert(1)</script>\"'&amp;<b onload=x>"
"""A name that is markup, if it is taken for that."""


class Read(HTMLParser):
    """A page as a browser would take it apart; raises for elements that are not closed in turn."""

    VOID = frozenset(("meta", "br"))

    def __init__(self, page: str):
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self.feed(page)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append((self.open[-1] if self.open else "", data))

    def all(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for element, attributes in self.elements if element == name]

    @property
    def text(self) -> str:
        return "".join(data for element, data in self.texts if element not in ("script", "style"))


def write_report(folder: Path) -> Path:
    """A teacher, a model alone and a student of two seeds each; titles of all items but one, one of them `EVIL`."""
    write_clicks(folder / "clicks.csv")
    split = ("--split", "ratio")
    ok("data", "prepare", folder / "clicks.csv", "--out", folder / "d", *split)
    common = ("--data", folder / "d", *FAST, "--epochs", 8)
    ok("train", *common, "--dim", 8, "--out", folder / "t")
    ok("train", *common, "--dim", 2, "--seeds", "0,1", "--out", folder / "alone")
    ok(
        "distill",
        *common,
        "--teacher",
        folder / "t",
        "--method",
        "rrd",
        "--dim",
        2,
        "--seeds",
        "0,1",
        "--out",
        folder / "rrd",
    )
    data = Dataset.load(folder / "d")
    rows = "".join(f"{item},Thing {item[1:]}\n" for item in data.items if item not in ("i7", "i8"))
    (folder / "names.csv").write_text(
        "item_id,title\n" + rows + f'elsewhere,x\ni8,"{EVIL.replace(chr(34), chr(34) * 2)}"\n'
    )
    runs = [folder / "t", *(folder / name / f"seed-{seed}" for name in ("alone", "rrd") for seed in (0, 1))]
    result = ok("report", *runs, "--out", folder / "report", "--item-names", folder / "names.csv")
    assert Path(result.out.splitlines()[0]).name == "report.html"
    return folder


def page_at(place: Path) -> str:
    return (place / "report/report.html").read_text("utf-8")

"""The page of a report in a browser: nothing on its console, heads that sort, buttons that choose, and that it fits a phone."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from report_pages import page_at, write_report


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(tmp_path_factory.mktemp("browser"))


CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
)
browser = pytest.mark.skipif(CHROMIUM is None, reason="no chromium is installed (Debian: apt-get install chromium)")


def opened(page: Path, tmp_path: Path, *options: str) -> tuple[str, list[str]]:
    """The document as a browser has it once its scripts have run, and what it says on the console."""
    assert CHROMIUM is not None
    done = subprocess.run(
        [
            CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}",
            "--enable-logging=stderr", "--v=0", "--virtual-time-budget=3000", *options, "--dump-dom", page.as_uri(),
        ],
        capture_output=True, timeout=120, check=True,
    )  # fmt: skip
    log = done.stderr.decode("utf-8", "replace")
    return done.stdout.decode("utf-8"), [line for line in log.splitlines() if "CONSOLE" in line]


def with_script(page: str, script: str, *, policy: bool = False) -> str:
    """The page with one more script, which its policy would not let run."""
    if not policy:
        page = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page)
    return page.replace("</body>", f"<script>{script}</script></body>")


def rows_of(document: str, label: str) -> list[list[str]]:
    table = re.search(rf'<table aria-label="{label}">(.*?)</table>', document, re.S)
    assert table is not None
    body = table[1].partition("<tbody>")[2]
    return [re.findall(r'data-value="([^"]*)"', row) for row in re.findall(r"<tr>(.*?)</tr>", body, re.S)]


@browser
def test_a_browser_opens_it_without_a_word(place, tmp_path):
    document, console = opened(place / "report/report.html", tmp_path)
    assert console == []
    assert '<html lang="en" class="js">' in document
    assert len(re.findall(r'<button[^>]* aria-pressed="true"', document)) == 1
    shown = re.findall(r'<div data-metric="([^"]*)" class="on"', document)
    assert len(shown) >= 4
    assert len(set(shown)) == 1
    assert "<title>" in document.partition("<body>")[0]
    assert "<title>" not in document.partition("<body>")[2]  # now the page's own tips
    assert document.count("data-tip=") > 50


@browser
def test_heads_sort_and_buttons_choose(place, tmp_path):
    clicks = """
    const heads = [...document.querySelectorAll("table[aria-label='models by recall@10'] button.sort")];
    const quality = heads.find(head => head.textContent === "recall@10");
    quality.click(); document.title = "sorted";
    document.querySelectorAll(".metrics button")[1].click();
    const mark = document.querySelector(".on .chart .mark[data-tip]");
    mark.dispatchEvent(new PointerEvent("pointerenter"));
    """
    page = tmp_path / "page.html"
    page.write_text(with_script(page_at(place), clicks), "utf-8")
    document, console = opened(page, tmp_path)
    assert console == []
    before = rows_of(page_at(place), "models by recall@10")
    after = rows_of(document, "models by recall@10")
    falling = sorted(before, key=lambda row: -float(row[2]))
    assert after == falling
    assert [row[0] for row in after] != [row[0] for row in before] or before == falling
    assert 'aria-sort="descending"' in document
    assert rows_of(document, "models by ndcg@10") == rows_of(page_at(place), "models by ndcg@10")
    assert set(re.findall(r'<div data-metric="([^"]*)" class="on"', document)) == {"ndcg@10"}
    tip = re.search(r'<div id="tip" role="status"[^>]*>([^<]+)</div>', document)
    assert tip is not None
    assert "ndcg@10" in tip[1]


@browser
def test_a_second_click_turns_the_order_and_words_go_by_letters(place, tmp_path):
    clicks = """
    const find = (table, text) => [...table.querySelectorAll("button.sort")].find(head => head.textContent.startsWith(text));
    const tables = document.querySelectorAll("#models table");
    find(tables[0], "recall@10").click(); find(tables[0], "recall@10").click();
    find(tables[1], "model").click();
    """
    page = tmp_path / "page.html"
    page.write_text(with_script(page_at(place), clicks), "utf-8")
    document, console = opened(page, tmp_path)
    assert console == []
    values = [float(row[2]) for row in rows_of(document, "models by recall@10")]
    assert values == sorted(values)
    assert [row[0] for row in rows_of(document, "models by ndcg@10")] == ["alone", "rrd", "t"]


@browser
def test_the_policy_stops_any_other_script(place, tmp_path):
    page = tmp_path / "page.html"
    page.write_text(with_script(page_at(place), "document.title = 'taken over'", policy=True), "utf-8")
    document, console = opened(page, tmp_path)
    assert "taken over" not in document.partition("<body>")[0]
    assert any("Content Security Policy" in line for line in console)


@browser
@pytest.mark.parametrize("width", [360, 420, 1280])
def test_it_fits_the_width(place, tmp_path, width):
    """Only tables and lists scroll sideways, within themselves. A frame of that width, for windows have a least one."""
    (tmp_path / "page.html").write_text(page_at(place), "utf-8")
    measure = """
    <script>
    const frame = document.querySelector("iframe");
    frame.addEventListener("load", () => {
      const inner = frame.contentDocument.documentElement;
      document.title = `${inner.clientWidth} ${inner.scrollWidth}`;
    });
    </script>
    """
    outer = tmp_path / "outer.html"
    outer.write_text(
        f"<!doctype html><title>x</title><body><iframe src='page.html' style='width:{width}px;height:900px;border:0'></iframe>"
        + measure
    )
    document, _ = opened(outer, tmp_path, "--allow-file-access-from-files")
    found = re.search(r"<title>(\d+) (\d+)</title>", document)
    assert found is not None, document[:300]
    assert int(found[1]) <= width
    assert int(found[2]) == int(found[1])

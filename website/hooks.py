"""What the site has beside docs/*.md: the first page, one page a method and a model, the reference of public names, sources."""

from __future__ import annotations

import html
import inspect
import json
import posixpath
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

import kdrs  # noqa: E402
from docs_check import LINK, slug  # noqa: E402
from kdrs.cli import catalogue  # noqa: E402

OUTSIDE = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "CHANGELOG.md": "changelog.md",
    "benches/README.md": "benches.md",
}
"""Pages of the project that do not lie in docs/, and their places in the site."""
GROUPS = {
    "Data": ("Dataset", "Interactions", "Names"),
    "Sampling and ranking": ("sampling", "ranking", "Codes"),
    "Training": (
        "PairTask", "UserTask", "ItemTask", "SequenceTask", "Learner", "Term", "fit", "Queries", "Batch", "View", "DotView",
        "Factors",
    ),
    "Teachers": ("ModelTeacher", "FileTeacher", "save_teacher", "import_teacher"),
    "Evaluation": ("Evaluator", "Report", "Selection", "protocols", "popularity", "overlap", "significance"),
    "Comparison": ("compare", "compare_runs", "Entry", "scoring_seconds"),
    "Runs": ("RunConfig", "resolve", "execute", "load_run", "compress", "export", "sweep"),
    "Serving": ("Student", "Recommendations", "Recommend"),
    "Errors": ("errors",),
    "Parts for methods and models of your own": ("distillers", "models", "losses", "kernels", "trackers", "data"),
}  # fmt: skip
"""Public names by page. Every name of ``kdrs.__all__`` stands in one."""
MEMBERS = {"sampling": ("stream", "negatives", "weighted", "falling_weights", "outside", "discrepancy")}
"""What is public of a module that holds helpers of other modules too."""
ROOMS = ("distillers", "models", "trackers", "data")
"""Modules whose file gathers others: their text, and the names that they export."""


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    config["mdx_configs"].setdefault("toc", {})["slugify"] = lambda text, separator: slug(text)
    made: dict[str, list[Any]] = {
        "METHODS": [{name: f"methods/{name}.md"} for name in kdrs.distillers.DISTILLERS],
        "MODELS": [{name: f"models/{name}.md"} for name in kdrs.models.MODELS],
        "API": [{"Names": "api/index.md"}, *({title: f"api/{slug(title)}.md"} for title in GROUPS)],
        "TABLES": _pages_in("results"),
        "NOTES": _pages_in("results/notes"),
        "NOTEBOOKS": _notebooks(),
    }
    config["nav"] = _filled(config["nav"], made)
    return config


def _filled(nav: list[Any], made: dict[str, list[Any]]) -> list[Any]:
    filled = []
    for entry in nav:
        if isinstance(entry, dict):
            ((title, value),) = entry.items()
            if isinstance(value, list):
                value = _filled(value, made)
            filled.append({title: made.get(value, value) if isinstance(value, str) else value})
        else:
            filled.append(entry)
    return filled


def _pages_in(folder: str) -> list[str]:
    return [
        f"{folder}/{path.name}" for path in sorted((ROOT / "docs" / folder).glob("*.md")) if path.name != "README.md"
    ]


def _notebooks() -> list[str]:
    order = ("first-student", "bring-a-teacher", "serve")
    return [f"notebooks/{name}.md" for name in order]


def on_files(files: Files, config: MkDocsConfig) -> Files:
    def add(place: str, content: str) -> None:
        files.append(File.generated(config, place, content=content))

    for source, place in OUTSIDE.items():
        add(place, _moved((ROOT / source).read_text("utf-8"), source, place))
    for name, cls in kdrs.distillers.DISTILLERS.items():
        add(f"methods/{name}.md", method_page(name, cls))
    for name, cls in kdrs.models.MODELS.items():
        add(f"models/{name}.md", model_page(name, cls))
    add("api/index.md", names_page())
    for title, names in GROUPS.items():
        add(f"api/{slug(title)}.md", reference_page(title, names))
    for path in sorted(ROOT.glob("examples/notebooks/*.ipynb")):
        add(f"notebooks/{path.stem}.md", notebook_page(path))
    add("site.css", (ROOT / "website" / "site.css").read_text("utf-8"))
    for source in sorted(_sources()):
        add(f"source/{source}.md", source_page(source))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    place = page.file.src_uri
    return markdown if page.file.generated_by else _moved(markdown, f"docs/{place}", place)


# links


def _moved(text: str, source: str, place: str) -> str:
    """A page whose relative links go from where it stands in the site to where their targets do."""

    def changed(found: re.Match[str]) -> str:
        target = found[1] or found[2]
        moved = _link(target, source, place)
        return found[0].replace(f"({target})", f"({moved})")

    return _outside_code(text, lambda part: LINK.sub(changed, part))


def _outside_code(text: str, change: Callable[[str], str]) -> str:
    parts = re.split(r"(^```.*?^```)", text, flags=re.MULTILINE | re.DOTALL)
    return "".join(part if part.startswith("```") else change(part) for part in parts)


def _link(target: str, source: str, place: str) -> str:
    if re.match(r"[a-z]+:|#", target):
        return target
    name, hash_, anchor = target.partition("#")
    path = posixpath.normpath(posixpath.join(posixpath.dirname(source), name))
    if path in OUTSIDE:
        goal = OUTSIDE[path]
    elif path.startswith("docs/"):
        goal = path.removeprefix("docs/")
    elif path.endswith(".ipynb"):
        goal = f"notebooks/{Path(path).stem}.md"
    else:
        goal = f"source/{path}.md"
    return posixpath.relpath(goal, posixpath.dirname(place) or ".") + hash_ + anchor


def _sources() -> set[str]:
    """Files and folders of the project that pages link to, and that are no pages."""
    found = set()
    for path in [*(ROOT / "docs").rglob("*.md"), *(ROOT / name for name in OUTSIDE)]:
        source = path.relative_to(ROOT).as_posix()

        def look(part: str, source: str = source) -> str:
            for match in LINK.finditer(part):
                name = (match[1] or match[2]).partition("#")[0]
                if name and not re.match(r"[a-z]+:", name):
                    target = posixpath.normpath(posixpath.join(posixpath.dirname(source), name))
                    if target not in OUTSIDE and not target.startswith("docs/") and not target.endswith(".ipynb"):
                        found.add(target)
            return part

        _outside_code(path.read_text("utf-8"), look)
    return found


def source_page(source: str) -> str:
    path = ROOT / source
    if path.is_dir():
        names = [f"- `{one.name}`" for one in sorted(path.iterdir()) if not one.name.startswith((".", "_"))]
        return "\n".join([f"# {source}", "", *names, ""])
    language = {".py": "python", ".toml": "toml", ".json": "json", ".rs": "rust"}.get(path.suffix, "text")
    return f"---\nsearch:\n  exclude: true\n---\n# {source}\n\n{fenced(path.read_text('utf-8'), language)}\n"


def fenced(text: str, language: str) -> str:
    fence = "`" * max(4, *(len(run) + 1 for run in re.findall(r"`+", text)), 4)
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"


# methods and models


def method_page(name: str, cls: Any) -> str:
    options = {**catalogue._entry_options(name, cls), **catalogue._options(cls.Config)}
    facts = {
        "published": cls.reference,
        "needs of a teacher": cls.needs,
        "default weight": f"`{cls.default_weight:g}`"
        + ("" if cls.published_weight is None else f" (published: `{cls.published_weight:g}`)"),
        "class": f"`kdrs.distillers.{cls.__name__}`",
        "on the command line": f"`kdrs distill ... --method {name}`",
    }
    return _entry_page(name, cls, cls.purpose, facts, options)


def model_page(name: str, cls: Any) -> str:
    facts = {
        "published": cls.reference,
        "trained with": ", ".join(f"`{key}` {value}" for key, value in catalogue._training_of(cls).items()),
        "class": f"`kdrs.models.{cls.__name__}`",
        "on the command line": f"`kdrs train ... --model {name}`",
    }
    return _entry_page(name, cls, "", facts, catalogue._options(cls.Config))


def _entry_page(name: str, cls: Any, purpose: str, facts: dict[str, str], options: dict[str, Any]) -> str:
    first = [purpose[:1].upper() + purpose[1:] + ".", ""] if purpose else []
    head, *rows = [f"| {key} | {value} |" for key, value in facts.items() if value]
    lines = [f"# {name}", "", *first, head, "|---|---|", *rows, "", "## What it computes", "", _text(cls), ""]
    lines += ["## Options", "", "| option | default | allowed | meaning |", "|---|---|---|---|"]
    for key, option in options.items():
        default = f"`{json.dumps(option['default'])}`" if "default" in option else "must be given"
        allowed = catalogue._in_words(option["allowed"]) if "allowed" in option else ""
        lines.append(f"| `{key}` | {_cell(default)} | {_cell(allowed)} | {_cell(option['meaning'])} |")
    return "\n".join([*lines, ""])


def _text(cls: Any) -> str:
    """A class's docstring: paragraphs, and formulas, which stand in by four."""
    parts = []
    for paragraph in inspect.cleandoc(cls.__doc__ or "").split("\n\n"):
        if any(line.startswith("    ") for line in paragraph.splitlines()):
            parts.append(equations(paragraph))
        else:
            parts.append(_plain(paragraph))
    return "\n\n".join(parts)


def equations(block: str) -> str:
    """Formulas in plain text, as HTML: a row each, equals signs below each other, indices low and exponents high."""
    rows = []
    for line in block.splitlines():
        left, equals, right = re.match(r"\s{4}(?:(\S.{0,11}?)\s*(=|∝)\s)?(.*)", line).groups(default="")
        cells = f"<td>{_set(left)}</td><td>{equals}</td><td>{_set(right.strip())}</td>"
        if not left and not line.startswith("     "):  # a remark of its own
            cells = f'<td colspan="3">{_set(right)}</td>'
        rows.append(f"<tr>{cells}</tr>")
    return f'<table class="equation">{"".join(rows)}</table>'


SYMBOL = r"(?<!\w)((?:[A-Za-zα-ωΑ-Ωℓ]|cos|TA)[̂'⁰]*)"


def _set(text: str) -> str:
    text = html.escape(text, quote=False)
    text = re.sub(rf"{SYMBOL}\^([A-Za-z](?=_)|-½|\(\d\)|\(l(?:\+1)?\)|\(layers\))", r"\1<sup>\2</sup>", text)
    text = re.sub(r"_\{([^}]*)\}", r"<sub>\1</sub>", text)
    text = re.sub(rf"(?:{SYMBOL}|(?<=</sup>))_([\w·]+(?:=\d…?\w*)?)", r"\1<sub>\2</sub>", text)
    text = re.sub(r"(?<=[\])₊])_(\w+)", r"<sub>\1</sub>", text)
    return re.sub(r" {2,}", "&emsp;&emsp;", text)


def _plain(text: str) -> str:
    """Prose in which nothing is markup by accident."""
    return re.sub(r"(?<!`)([*_<])(?!`)", r"\\\1", text) if "`" not in text else text


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


# the reference


def names_page() -> str:
    lines = [
        "# Names",
        "",
        "Everything public is there after `import kdrs`. Nothing heavy is imported before it is used.",
        "",
    ]
    lines += ["| name | what it is |", "|---|---|"]
    for title, names in GROUPS.items():
        for name in names:
            text = (inspect.getdoc(getattr(kdrs, name)) or "").split("\n\n")[0].replace("\n", " ")
            anchor = slug(f"kdrs.{name}") if name in ROOMS else _path(name)
            lines.append(f"| [`kdrs.{name}`]({slug(title)}.md#{anchor}) | {_cell(text)} |")
    return "\n".join([*lines, ""])


def _path(name: str) -> str:
    """Where a public name is defined."""
    return f"{getattr(kdrs, name).__module__}.{name}" if name in kdrs._PUBLIC else kdrs._MODULES[name]


def reference_page(title: str, names: Iterable[str]) -> str:
    parts = [f"# {title}", ""]
    for name in names:
        if name in ROOMS:
            parts += [_room(name), ""]
            continue
        path = _path(name)
        options = ["    options:"]
        if name in MEMBERS:
            options += ["      members:", *(f"        - {one}" for one in MEMBERS[name])]
        options += [f"      heading: kdrs.{name}", f"      toc_label: kdrs.{name}"]
        parts += [f"::: {path}", *options, ""]
    return "\n".join(parts)


def _room(name: str) -> str:
    """A module that gathers others: what it says of itself, and its names."""
    module = getattr(kdrs, name)
    rows = []
    for one in module.__all__:
        if not callable(getattr(module, one)):
            continue
        text = (inspect.getdoc(getattr(module, one)) or "").split("\n\n")[0].replace("\n", " ")
        rows.append(f"| `{one}` | {_cell(text)} |")
    return "\n".join(
        [f"## kdrs.{name}", "", inspect.getdoc(module) or "", "", "| name | what it is |", "|---|---|", *rows]
    )


# notebooks


def notebook_page(path: Path) -> str:
    lines = [f"<!-- {path.name} -->", ""]
    for cell in json.loads(path.read_text("utf-8"))["cells"]:
        text = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            lines += [_moved(text, f"examples/notebooks/{path.name}", f"notebooks/{path.stem}.md"), ""]
        else:
            lines += [fenced(text, "python"), ""]
    lines += [f"The notebook: `examples/notebooks/{path.name}`.", ""]
    return "\n".join(lines)

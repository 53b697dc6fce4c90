"""The documents do what they say: snippets are run and their results looked at, names are there, pages equal their records.

Python snippets need a row in EXAMPLES (page_examples.py), which prepares what the page takes for granted and looks at what came
out. Commands are run on tiny data in the order of their page, except those in PARSED, whose options are checked, no more.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from glob import glob
from pathlib import Path
from typing import Any

import numpy as np
import polars
import pytest
import safetensors.numpy
import torch

import kdrs
from commands import imports_undone, write_own
from commands import kdrs as run_command
from conftest import toy_dataset
from docs_check import FENCE, ROOT, command_lines, wrong_command
from page_examples import EXAMPLES, Names, run_directory, write_clicks

sys.path.append(str(ROOT / "benches"))

PAGES = [
    "README.md",
    "CONTRIBUTING.md",
    "benches/README.md",
    *(f"docs/{path.name}" for path in sorted(ROOT.glob("docs/*.md"))),
]
RESULTS = sorted((ROOT / "docs" / "results").rglob("*.md"))


def text_of(page: str) -> str:
    return (ROOT / page).read_text("utf-8")


def blocks(page: str) -> list[str]:
    return [block for language, block in FENCE.findall(text_of(page)) if language in ("python", "py")]


# Python


def found_examples() -> Iterator[Any]:
    for page in PAGES:
        for index, block in enumerate(blocks(page)):
            fitting = [holds for name, holds in EXAMPLES if name == page and holds in block]
            yield pytest.param(page, block, fitting, id=f"{page}:{index}")


@pytest.mark.parametrize(("page", "block", "fitting"), list(found_examples()))
def test_python_snippets_do_what_they_say(
    page: str,
    block: str,
    fitting: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert len(fitting) == 1, f"a Python block of {page} needs one row in EXAMPLES; it has {fitting}"
    assert not re.search(r"^(from kdrs|import kdrs\.)", block, re.MULTILINE), (
        "pages use `import kdrs` and its short names"
    )
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    prepared = EXAMPLES[page, fitting[0]]()
    names: Names = {"__name__": "snippet"} | next(prepared)
    capsys.readouterr()
    exec(compile(block, f"<{page}>", "exec"), names)  # no file, of which a class would be looked up
    names["printed"] = capsys.readouterr().out
    with pytest.raises(StopIteration):
        prepared.send(names)


def test_every_example_belongs_to_a_block() -> None:
    for page, holds in EXAMPLES:
        assert sum(holds in block for block in blocks(page)) == 1, (page, holds)


NAME = re.compile(r"(?<![\w./-])kdrs((?:\.[A-Za-z_]\w*)+)")
RESOLVE = """
import json, os, sys
import numpy, polars, pydantic.main, rich, safetensors.torch, scipy.sparse, torch, typer  # heavy, and none of our names

wrong = 0
for page, names in json.loads(sys.argv[1]).items():
    child = os.fork()
    if child:
        wrong |= os.waitpid(child, 0)[1]
        continue
    import kdrs

    assert len([name for name in sys.modules if name.startswith("kdrs")]) == 1
    for name in names:
        try:
            value = kdrs
            for part in name.split("."):
                value = getattr(value, part)
        except AttributeError as error:
            print(f"{page}: kdrs.{name}: {error}", flush=True)
            os._exit(1)
    os._exit(0)
sys.exit(wrong != 0)
"""


def test_names_are_there_after_a_bare_import() -> None:
    """Each page in a process of its own that has imported nothing of kdrs before."""
    found = {page: sorted({match[1].lstrip(".") for match in NAME.finditer(text_of(page))}) for page in PAGES}
    assert sum(map(len, found.values())) > 30
    command = [sys.executable, "-c", RESOLVE, json.dumps(found)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


# commands

PARSED = {
    "kdrs data fetch": "downloads",
    "kdrs data prepare ml-100k": "downloads; toy data lie in its place",
    "kdrs data prepare clicks.csv --user visitor --item product --out datasets/mine": "toy data lie in its place",
    "kdrs recommend --merge": "the other parts are made elsewhere; test_serving.py",
    "kdrs distill de-rrd --set data.path=datasets/citeulike --seeds 0..4": "five seeds; the preset runs once below it",
    "kdrs train --data datasets/citeulike": "its data are not at hand",
    "kdrs distill --data datasets/citeulike": "its data are not at hand",
}
"""Beginnings of commands whose options are checked and which are not run, with the reason."""
FAILS = {"kdrs train --data datasets/ml-100k --model bqr": 2}
SHORT = ("--epochs", "2", "--threads", "1", "--device", "cpu")


def stand_ins(page: str, data: Path) -> None:
    """What the commands of a page take for granted, small, in the current folder."""
    for path in ("datasets/ml-100k", "datasets/mine"):
        Path(path).parent.mkdir(exist_ok=True)
        os.symlink(data, path)
    columns = {"docs/command-line.md": "customer,article,rating,timestamp"}
    write_clicks(Path("clicks.csv"), columns.get(page, "visitor,product,rating,timestamp"))
    table = polars.read_csv("clicks.csv").sample(fraction=1, shuffle=True, seed=0)
    for name, start, stop in (("train", 0, 600), ("valid", 600, 700), ("test", 700, 800)):
        table[start:stop, :2].rename(dict(zip(table.columns, ("user", "item"), strict=False))).write_csv(
            f"{name}.tsv", separator="\t"
        )
    times = (f"u{n % 8}\t{1 + n % 28:02}/04/2012 18:05\t1.5\t2.5\tv{n % 11}\n" for n in range(88))
    Path("checkins.tsv").write_text("".join(times))
    os.symlink(ROOT / "examples", "examples")
    write_own(Path())
    for language, block in FENCE.findall(text_of(page)):
        if language == "toml" and "[teachers.big]" in block:
            Path("shared.toml").write_text(block)
    loaded = kdrs.Dataset.load(data)
    rng = np.random.default_rng(0)
    sizes = {"users": len(loaded.users), "items": len(loaded.items)}
    tensors = {side: rng.standard_normal((n, 4)).astype(np.float32) for side, n in sizes.items()}
    about = {"kdrs": "teacher/1", "users_digest": loaded.users.digest, "items_digest": loaded.items.digest}
    for name in ("theirs", "implicit"):
        safetensors.numpy.save_file(tensors, f"{name}.safetensors", metadata=about)
    # teachers of other programs: rows in another order than the data set's
    ids = {side: list(getattr(loaded, side))[::-1] for side in sizes}
    for side, own in ids.items():
        Path(f"{side}.txt").write_text("".join(f"{one}\n" for one in own))
    vectors = {side: rng.standard_normal((n, 8)).astype(np.float32) for side, n in sizes.items()}
    als = {side: rng.standard_normal((n, 64)).astype(np.float32) for side, n in sizes.items()}
    np.savez("als.npz", user_factors=als["users"], item_factors=als["items"])
    np.savez("teacher.npz", **vectors, user_ids=np.array(ids["users"]), item_ids=np.array(ids["items"]))
    np.save("items.npy", vectors["items"])
    for side in ("user", "item"):
        np.save(f"{side}_factors.npy", vectors[f"{side}s"])
    polars.DataFrame({"item": ids["items"], "vector": np.hstack([vectors["items"]] * 2)}).write_parquet("items.parquet")
    best = np.argsort(rng.random((sizes["users"], sizes["items"])), axis=1)[:-3, :100]
    rows = (
        (user, ids["items"][item], -at)
        for user, own in zip(ids["users"], best, strict=False)
        for at, item in enumerate(own)
    )
    polars.DataFrame(list(rows), schema=["user", "item", "score"], orient="row").write_csv("lists.csv")
    earlier = {
        "docs/production.md": [("runs/teacher", "32")],
        "docs/methods.md": [("runs/teacher", "100"), ("runs/alone/seed-0", "10")],
        "docs/runs.md": [("runs/student", "10")],
        "docs/serving.md": [("runs/teacher", "64")],
        "docs/search.md": [("runs/teacher", "32")],
        "docs/scale.md": [("runs/student", "10")],
    }
    for name, some in (("some", loaded.users[:5]), ("shop", loaded.items[:40]), ("sold", loaded.items[30:50])):
        Path(f"{name}.txt").write_text("".join(f"{one}\n" for one in some))
    Path("new.csv").write_text("user,item\n" + "".join(f"new,{one}\n" for one in loaded.items[:3]))
    for path, dim in earlier.get(page, ()):
        done = run_command(
            "train", "--data", "datasets/ml-100k", "--model", "bpr", "--dim", dim, *SHORT, "--out", path, "--quiet"
        )
        assert done.code == 0, done.err
    if page == "docs/compact.md":  # made by a snippet of the page
        loaded.without_users(np.arange(10)).save("datasets/known")
    if page == "docs/production.md":
        Path("clicks-to-now.csv").write_text(Path("clicks.csv").read_text())
        kdrs.Dataset.from_interactions(loaded.train.union(loaded.valid), test=loaded.test).save("datasets/both")
        taught = (
            "--teacher",
            "runs/teacher",
            "--method",
            "cd",
            "--model",
            "bpr",
            "--dim",
            "8",
            "--out",
            "runs/student",
        )
        done = run_command("distill", "--data", "datasets/ml-100k", *taught, *SHORT, "--quiet")
        assert done.code == 0, done.err
    if page == "docs/command-line.md":  # made by a command of docs/methods.md
        takd = (
            "--method",
            "takd",
            "--set",
            "distill.0.chain=[12, 11]",
            "--model",
            "bpr",
            "--dim",
            "10",
            "--out",
            "runs/takd",
        )
        run_directory("runs/large", "datasets/ml-100k")
        done = run_command("distill", "--data", "datasets/ml-100k", "--teacher", "runs/large", *takd, *SHORT, "--quiet")
        assert done.code == 0, done.err


def adapted(words: list[str]) -> list[str]:
    """The same command with few epochs: five where it asks for more, two where it does not say."""
    if words[0] == "sweep":
        few = ["--set", "train.epochs=2", "--set", "sweep.seeds=[]"]
        return [
            *(
                "2" if word.isdecimal() and before == "--trials" else word
                for before, word in zip(["", *words], words, strict=False)
            ),
            *few,
        ]
    if words[0] not in ("train", "distill") or {"--dry-run", "--help"} & set(words):
        return words
    enough = {"train.stages_every=10": 22, "train.stages=[9, 19]": 20}
    least = max((enough.get(word, 0) for word in words), default=0)
    if "--epochs" in words:
        place = words.index("--epochs") + 1
        return [*words[:place], str(max(least, min(int(words[place]), 5))), *words[place + 1 :]]
    return [*words, "--epochs", str(max(least, 2))]


PAGES_WITH_COMMANDS = [page for page in PAGES if list(command_lines(text_of(page)))]


@pytest.mark.parametrize("page", PAGES_WITH_COMMANDS)
def test_commands_run_on_tiny_data(
    page: str,
    ready: None,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    if page != "README.md":
        request.getfixturevalue("png_alone")
    from typer.main import get_command

    from kdrs.cli import app

    program = get_command(app)
    data = toy_dataset(60, 130, candidates=None).save(tmp_path_factory.mktemp("documents") / "toy")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KDRS_NUM_THREADS", "1")
    stand_ins(page, data)
    with imports_undone():
        assert commands_run(page, program)


def commands_run(page: str, program: Any) -> int:
    """Runs the commands of a page; how many there were."""
    ran = 0
    for line in command_lines(text_of(page)):
        words = shlex.split(line, comments=True)
        words = words[words.index("kdrs") + 1 :]
        plain = " ".join(["kdrs", *words])
        if any(plain.startswith(start) for start in PARSED):
            assert wrong_command(line, program) is None, line
            continue
        if ">" in words:
            words = words[: words.index(">")]
        words = [path for word in words for path in (sorted(glob(word)) if "*" in word else [word])]
        done = run_command(*adapted(words))
        expected = next((code for start, code in FAILS.items() if plain.startswith(start)), 0)
        assert done.code == expected, f"{line}\n{done.err}"
        assert expected or done.out.strip() or "--help" in words, line
        ran += 1
    return ran


# results


def test_result_pages_equal_what_the_program_writes() -> None:
    import pages

    for path, text in pages.pages().items():
        assert path.read_text("utf-8") == text, f"{path.name}: run `python benches/pages.py`"


def test_every_result_page_has_a_record_and_every_figure_its_origin() -> None:
    folder = ROOT / "docs" / "results"
    for path in folder.glob("*.md"):
        assert path.name == "README.md" or path.with_suffix(".json").is_file(), path.name
    for path in folder.glob("*.json"):
        record = json.loads(path.read_text("utf-8"))
        for figure in record.get("figures", ()):
            assert all(figure[key] for key in ("command", "machine", "commit")), (path.name, figure["title"])
            assert {len(row) for row in figure["rows"]} == {len(figure["columns"])}, (path.name, figure["title"])
        for row in record.get("finished", {}).values():
            assert all(row[key] for key in ("commands", "machine")), path.name


@pytest.mark.parametrize("name", ["study", "study-citeulike"])
def test_a_study_says_what_its_rows_say(name: str) -> None:
    """Level with the first is whose ± meets its own; a study without a float32 method cannot say which is best."""
    import study

    record = json.loads((ROOT / "docs" / "results" / f"{name}.json").read_text("utf-8"))
    (figure,) = record["figures"]
    told = [
        line.removeprefix("Not done yet: ").rstrip(".") for line in figure["reading"] if line.startswith("Not done")
    ]
    teacher, *rows = figure["rows"]
    assert study.answer(teacher, rows, told[0].split(", ") if told else []) == record["answer"]
    coded = [row for row in rows if row[0].startswith(("elsa", "coded")) or row[0].endswith("alone")]
    assert len(coded) < len(rows), "a float32 method is there"
    assert not record["answer"][0].startswith("Begun")
    assert study.answer(teacher, coded, ["cd"])[0].startswith("Begun")
    assert ("`elsa-cd`" in " ".join(record["answer"])) == (name == "study")
    assert "Begun" not in " ".join(study.answer(teacher, rows, [])), "all is done: nothing is said of what is left"


def test_first_page_names_every_method() -> None:
    page = (ROOT / "docs" / "results" / "README.md").read_text("utf-8")
    assert not [name for name in kdrs.distillers.DISTILLERS if f"`{name}`" not in page]


def test_first_page_counts_gains_from_the_student_alone() -> None:
    folder = ROOT / "docs" / "results"
    ends = json.loads((folder / "methods.json").read_text("utf-8"))["finished"]
    rows = [
        line.split("|")[1:-1]
        for line in (folder / "README.md").read_text("utf-8").splitlines()
        if line.startswith("| `")
    ]
    gained = {row[0].strip(" `"): row for row in reversed(rows)}  # the first table wins
    alone, teacher = ends["student"]["hit@5"], ends["teacher"]["hit@5"]
    for name in ("freqd", "cd", "rrd", "unkd"):
        gain = ends[name]["hit@5"] - alone
        assert float(gained[name][1].replace("?", "")) == pytest.approx(gain, abs=5.1e-5)
        assert float(gained[name][2]) == pytest.approx(gain / (teacher - alone), abs=5.1e-3)
    assert "?" in gained["hint"][1], "one seed, below two standard errors"
    assert "?" not in gained["rrd"][1], "three seeds"


@pytest.mark.parametrize(
    "path", [path for path in RESULTS if path.parent.name == "results"], ids=lambda path: path.name
)
def test_result_pages_are_two_screens(path: Path) -> None:
    lines = path.read_text("utf-8").splitlines()
    assert sum(max(1, -(-len(line) // 120)) for line in lines) <= 90, path.name

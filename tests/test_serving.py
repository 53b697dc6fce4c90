"""From a teacher of another library to lists, as a user goes; export, parts, damage; HTTP."""

from __future__ import annotations

import json
import os
import re
import shlex
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import polars as pl
import pytest

import kdrs
from commands import FAST, fails, ok
from commands import kdrs as command
from conftest import toy_dataset
from kdrs.errors import ConfigError, MissingKnowledge

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher, two students alone, a compressed and a distilled one; student files of most."""
    folder = tmp_path_factory.mktemp("serving")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        toy_dataset(120, 90, candidates=None).save("d")
        run = ("--data", "d", *FAST, "--epochs", "8", "--threads", "1", "--quiet")
        ok("train", *run, "--dim", "16", "--out", "teacher")
        ok("train", *run, "--dim", "4", "--out", "alone")
        ok("distill", *run, "--dim", "4", "--teacher", "teacher", "--method", "cd", "--out", "student")
        ok("compress", "teacher", "--bits", "4", "--users", "sum", "--out", "small")
        ok("compress", "teacher", "--bits", "2", "--users", "table", "--out", "coded")
        for name in ("teacher", "student", "small", "coded"):
            ok("export", name, "--seen", "--out", f"{name}.safetensors")
    return folder


@pytest.fixture
def here(place, monkeypatch) -> Path:
    monkeypatch.chdir(place)
    return place


@pytest.mark.parametrize("name", ["teacher", "student", "small", "coded"])
def test_fault_39_lists_are_those_of_the_evaluator(here, name):
    """Of the file, of the run, and of the evaluator that measured it."""
    run, student = kdrs.load_run(name), kdrs.Student.load(f"{name}.safetensors")
    data = run.dataset
    queries, items, bias = run.factors()
    best = kdrs.ranking.topk(queries, items, 20, seen=data.train, bias=bias)
    found = student.recommend(list(data.users), 20)
    assert np.array_equal(np.asarray(best.items), found.places)
    assert np.asarray(best.scores).tobytes() == found.scores.tobytes()
    report = kdrs.Evaluator(data.train, data.valid)(run.factors())
    hits = kdrs.ranking.metrics(found.places, data.valid, [10], ["ndcg"])["ndcg@10"]
    assert np.array_equal(next(iter(report.values())).values["ndcg@10"], hits[data.valid.row_degrees > 0])
    ok("recommend", name, "--out", f"{name}.run.csv")
    ok("recommend", f"{name}.safetensors", "--out", f"{name}.file.csv")
    assert Path(f"{name}.run.csv").read_bytes() == Path(f"{name}.file.csv").read_bytes()
    frame = pl.read_csv(f"{name}.file.csv", schema_overrides={"user": pl.String, "item": pl.String})
    assert frame["item"].to_list() == found.to_polars()["item"].to_list()


@pytest.mark.parametrize("ending", ["parquet", "csv", "jsonl"])
def test_parts_joined_are_the_whole(here, tmp_path, ending, monkeypatch):
    from kdrs.cli import asked, serving

    monkeypatch.setattr(asked, "BLOCK", 17)
    monkeypatch.setattr(serving, "BLOCK", 17)
    whole, parts = tmp_path / f"whole.{ending}", tmp_path / f"parts.{ending}"
    ok("recommend", "small.safetensors", "--k", 7, "--out", whole)
    for part in (3, 1, 5, 2, 4):
        ok("recommend", "small.safetensors", "--k", 7, "--out", parts, "--part", f"{part}/5")
    assert "5 parts" in ok("recommend", "--merge", "--out", parts).out
    assert parts.read_bytes() == whole.read_bytes()
    (tmp_path / f"parts.part-4-of-5.{ending}").unlink()
    error = fails(3, "recommend", "--merge", "--out", parts)
    assert "part 4 of 5 is missing" in error
    assert "--part 4/5" in error
    assert parts.read_bytes() == whole.read_bytes()
    ok("recommend", "small.safetensors", "--out", parts, "--part", "1/2")
    assert "parts of 2, 5 lie beside" in fails(3, "recommend", "--merge", "--out", parts)


def test_fault_40_a_failure_leaves_nothing(here, tmp_path):
    (tmp_path / "users.txt").write_text("1\n2\nnobody\n")
    error = fails(
        3, "recommend", "small.safetensors", "--users", tmp_path / "users.txt", "--out", tmp_path / "l.parquet"
    )
    assert "1 of 3 users are unknown, first nobody" in error
    assert sorted(path.name for path in tmp_path.iterdir()) == ["users.txt"]
    told = ok("recommend", "small.safetensors", "--users", tmp_path / "users.txt", "--unknown", "popular", "--out",
              tmp_path / "l.parquet", "--json").document  # fmt: skip
    assert (told["users"], told["popular"], told["rows"]) == (3, 1, 60)


@pytest.mark.parametrize("command", ["users", "exclude", "similar"])
def test_a_column_without_a_name_is_told(here, tmp_path, command):
    """Its first id was taken for the name, and left out."""
    file, kind = tmp_path / "ids.csv", "user" if command == "users" else "item"
    ask = {
        "users": ("recommend", "small.safetensors", "--users", file, "--k", 2, "--json"),
        "exclude": ("recommend", "small.safetensors", "--user", "1", "--exclude", file, "--k", 2, "--json"),
        "similar": ("similar", "small.safetensors", "--items", file, "--k", 2, "--json"),
    }[command]
    file.write_text("1\n2\n3\n")
    error = fails(3, *ask)
    assert f"ids.csv is {kind} 1, and names a column there" in error
    file.write_text(f"{kind}\n1\n2\n3\n")  # as the remedy says
    found = ok(*ask).document
    (tmp_path / "ids.txt").write_text("1\n2\n3\n")
    assert ok(*(tmp_path / "ids.txt" if one is file else one for one in ask)).document == found


def test_fault_40_what_no_id_means_is_told(here, tmp_path, monkeypatch):
    """Once, however many blocks of users there are: of lists for all, and of tables."""
    from kdrs.cli import asked

    monkeypatch.setattr(asked, "BLOCK", 17)
    ask = ("recommend", "teacher.safetensors", "--out", tmp_path / "l.csv")
    (tmp_path / "ids.txt").write_text("item\n5\n")
    (tmp_path / "pairs.csv").write_text("user,item\n0,5\n1,x\nnobody,6\n")
    plain = ok(*ask)
    assert plain.err == ""
    told = ok(*ask, "--exclude", tmp_path / "ids.txt").err
    assert (
        told == "warning: --exclude: 1 of 2 item ids are unknown, first item: they block nothing; is line 1 a header?\n"
    )
    assert "5" not in pl.read_csv(tmp_path / "l.csv")["item"].cast(str).to_list()
    (tmp_path / "ids.txt").write_text("x\ny\n")
    told = ok(*ask, "--exclude", tmp_path / "ids.txt").err
    assert told == "warning: --exclude: 2 of 2 item ids are unknown, first x: they block nothing\n"
    for option, meaning in (("--exclude", "they block nothing"), ("--seen", "they leave nothing out")):
        told = ok(*ask, option, tmp_path / "pairs.csv").err
        assert told.splitlines() == [
            f"warning: {option}: 1 of 3 users are unknown, first nobody: their rows are for nobody",
            f"warning: {option}: 1 of 3 item ids are unknown, first x: {meaning}",
        ]
    assert "none of the 2 ids is known" in fails(3, *ask, "--items", tmp_path / "ids.txt")
    told = ok(*ask, "--items", tmp_path / "pairs.csv").err
    assert "1 of 3 item ids are unknown, first x: no list can hold them\n" in told


def test_who_got_no_list_of_her_own_is_told_on_the_screen(here):
    ask = ("recommend", "teacher.safetensors", "--user", "0", "--user", "x", "--user", "y", "--k", "2")
    told = ok(*ask, "--unknown", "popular")
    assert told.err.startswith("warning: 2 of 3 users are unknown or have no trained items: the most popular items")
    assert ok(*ask, "--unknown", "skip").err == "warning: 2 of 3 users are unknown or have no trained items: skipped\n"
    lists = ok(*ask, "--unknown", "popular", "--json").document["lists"]
    assert [one.get("popular") for one in lists] == [None, True, True]
    assert ok(*ask[:4], "--k", "2").err == ""
    assert "a known id is 0" in fails(3, *ask)


def test_the_bytes_of_a_file_are_told_by_what_they_hold(here, tmp_path):
    told = ok("export", "student", "--seen", "--out", tmp_path / "s.safetensors", "--json").document
    student, parts = kdrs.Student.load(tmp_path / "s.safetensors"), told["parts"]
    assert list(parts) == ["tables", "ids", "seen", "popular", "card"]
    assert sum(parts.values()) == told["file_bytes"] == (tmp_path / "s.safetensors").stat().st_size
    assert parts["seen"] == 2 * (120 + 1) + student.seen.n_pairs  # 90 items are told by a byte, 1,577 pairs by two
    assert parts["popular"] == 2 * len(student.popular)
    assert student.sizes() == {name: parts[name] for name in ("tables", "ids", "seen", "popular")}
    said = ok("export", "student", "--out", tmp_path / "t.safetensors").out.splitlines()[1]
    assert said.startswith(f"its bytes: tables {parts['tables']:,}, ids {parts['ids']:,}, popular items ")
    assert "what was seen" not in said


def test_lists_of_some_items(here, tmp_path):
    (tmp_path / "shop.txt").write_text("1\n2\n3\n4\n")
    (tmp_path / "sold.csv").write_text("user_id,item_id\n0,1\n1,2\n")
    words = ("recommend", "teacher.safetensors", "--seen", "none", "--items", tmp_path / "shop.txt", "--exclude",
             tmp_path / "sold.csv", "--out", tmp_path / "l.csv")  # fmt: skip
    assert "118 lists" not in ok(*words, "--k", 4).out
    frame = pl.read_csv(tmp_path / "l.csv")
    assert set(frame["item"]) == {1, 2, 3, 4}
    assert sorted(frame.filter(pl.col("user") == 0)["item"]) == [2, 3, 4]
    assert sorted(frame.filter(pl.col("user") == 1)["item"]) == [1, 3, 4]
    pairs = tmp_path / "seen.csv"
    pairs.write_text("user,item\n0,3\n")
    ok("recommend", "teacher.safetensors", "--seen", pairs, "--user", "0", "--out", tmp_path / "m.csv")
    assert 3 not in pl.read_csv(tmp_path / "m.csv")["item"].to_list()
    shown = ok("recommend", "teacher.safetensors", "--user", "0", "--k", "3", "--json").document
    assert [len(one["items"]) for one in shown["lists"]] == [3]
    assert ok("similar", "teacher.safetensors", "--item", "5", "--k", "2").out.count("\n") == 3


def test_histories_of_new_users(here, tmp_path):
    (tmp_path / "clicks.csv").write_text("user,item\nnew,4\nnew,8\nold,1\n")
    ok("recommend", "small.safetensors", "--histories", tmp_path / "clicks.csv", "--k", 5, "--out", tmp_path / "n.csv")
    frame = pl.read_csv(tmp_path / "n.csv")
    student = kdrs.Student.load("small.safetensors")
    expected = student.recommend(["new", "old"], 5, histories=[["4", "8"], ["1"]])
    assert frame["user"].to_list() == ["new"] * 5 + ["old"] * 5
    assert [str(item) for item in frame["item"]] == expected.columns()["item"].tolist()
    assert not {4, 8} & set(frame.filter(pl.col("user") == "new")["item"])
    for name in ("student", "small"):  # of a run, as of its file
        for source in (name, f"{name}.safetensors"):
            ok(
                "recommend",
                source,
                "--histories",
                tmp_path / "clicks.csv",
                "--k",
                5,
                "--out",
                tmp_path / f"{source}.csv",
            )
        assert (tmp_path / f"{name}.csv").read_bytes() == (tmp_path / f"{name}.safetensors.csv").read_bytes()


def test_the_card(here):
    student = kdrs.Student.load("student.safetensors")
    card = student.card
    assert (card["methods"], card["teachers"], card["data"]["users"]) == (["cd"], ["teacher"], 120)
    report = kdrs.load_run("student").report()["test"]
    told = card["metrics"]["test"]["ndcg@10"]
    assert told["mean"] == pytest.approx(report.mean("ndcg@10"))
    assert told["low"] < told["mean"] < told["high"]
    assert card["bytes"] == (120 + 90) * 4 * 4  # the encoder comes on top
    assert student.nbytes > card["bytes"]
    new = card["new_users"]
    assert new["part"] == "test"
    assert new["interval"][0] <= new["share"] <= new["interval"][1]
    assert student.readme.startswith("# ")


@pytest.mark.parametrize("options", [(), ("--seen",)], ids=["bare", "seen"])
@pytest.mark.parametrize("name", ["student", "small", "coded"])
def test_the_use_that_a_file_states(here, tmp_path, monkeypatch, name, options):
    """It is of the file, not of the run it was made of, and it works."""
    ok("export", name, *options, "--out", tmp_path / "student.safetensors")
    monkeypatch.chdir(tmp_path)
    text = kdrs.Student.load("student.safetensors").readme
    assert "load_run" not in text
    (lines,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    found: dict = {}
    exec(lines, found)
    assert found["found"].counts.tolist() == [10]


def test_a_transfer_ratio_in_the_card(here, tmp_path):
    document = ok("export", "student", "--alone", "alone", "--out", tmp_path / "s.safetensors", "--json").document
    assert set(document["card"]["transfer_ratio"]["ndcg@10"]) >= {"ratio", "low", "high", "clear"}
    assert kdrs.Student.load(tmp_path / "s.safetensors").card == document["card"]


def test_exports_that_are_refused(here, tmp_path):
    (tmp_path / "s.safetensors").write_text("precious")
    assert "is there already" in fails(2, "export", "student", "--out", tmp_path / "s.safetensors")
    assert (tmp_path / "s.safetensors").read_text() == "precious"
    vectors = np.ones((3, 2), np.float32)
    with pytest.raises(ConfigError, match="factors have no ids"):
        kdrs.export((vectors, vectors), tmp_path / "t.safetensors")
    fails(4, "export", "nowhere", "--out", tmp_path / "t.safetensors")
    assert not (tmp_path / "t.safetensors").exists()


def test_a_run_without_its_data(here, tmp_path, monkeypatch):
    from shutil import copytree

    copytree("d", tmp_path / "d")
    monkeypatch.chdir(tmp_path)
    ok("train", "--data", "d", *FAST, "--epochs", "1", "--dim", "4", "--out", "r", "--quiet")
    kdrs.compress("r", 4, users="sum", out="c")
    (tmp_path / "d").rename("away")
    for name in ("r", "c"):
        with pytest.warns(UserWarning, match="is not there"):
            made = kdrs.export(name, f"{name}.safetensors")
        assert len(made.student.items) == 90
    assert kdrs.Student.load("r.safetensors").recommend(["1"], 5, seen=False).counts.tolist() == [5]
    assert kdrs.Student.load("c.safetensors").recommend(histories=[["1"]], k=5).counts.tolist() == [5]
    with pytest.raises(MissingKnowledge, match="data set of r"):
        kdrs.export("r", "x.safetensors", seen=True)


@pytest.mark.parametrize(("n_users", "n_items"), [(1, 1), (1, 4), (3, 1)])
def test_users_who_have_every_item(tmp_path, monkeypatch, n_users, n_items):
    """Nobody has a negative: a model that needs none is trained, and what comes of it is exported, compressed and served."""
    monkeypatch.chdir(tmp_path)
    everything = kdrs.Interactions.from_pairs(*np.nonzero(np.ones((n_users, n_items))), n_users, n_items)
    kdrs.Dataset.from_interactions(everything).save("d")
    ok("train", "--data", "d", "--model", "elsa", "--dim", "4", "--epochs", "1", "--out", "r", "--quiet")
    ok("compress", "r", "--bits", "1", "--out", "c")
    for name in ("r", "c"):
        ok("export", name, "--seen", "--out", f"{name}.safetensors")
        student = kdrs.Student.load(f"{name}.safetensors")
        assert student.recommend(["0"], seen=False).counts.tolist() == [n_items]
        assert student.recommend(["0"]).counts.tolist() == [0]
        ok("recommend", name, "--user", "0", "--seen", "none")


# --- the way that the README shows ----------------------------------------------------------------------------------

WITHOUT_TORCH = """
import importlib.util, sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        return importlib.util.spec_from_loader(name, self) if name.split(".")[0] == "torch" else None

    def create_module(self, spec):
        raise ImportError("no torch here")

sys.meta_path.insert(0, Refuse())
import kdrs

student = kdrs.Student.load("student.safetensors")
student.recommend(list(student.users), 20).to_polars().write_csv("served.csv")
"""


def als(folder: Path, data: kdrs.Dataset) -> None:
    """What implicit writes: by implicit where it is installed, else by hand in its form. Rows in an order of their own."""
    rng = np.random.default_rng(0)
    order = {"users": rng.permutation(data.n_users), "items": rng.permutation(data.n_items)}
    for side, names in (("users", data.users), ("items", data.items)):
        (folder / f"{side}.txt").write_text("".join(f"{names[int(row)]}\n" for row in order[side]))
    matrix = data.train.to_csr()[order["users"]][:, order["items"]]
    try:
        from implicit.als import AlternatingLeastSquares
    except ImportError:
        u, s, v = np.linalg.svd(matrix.toarray())
        k = 64
        np.savez(
            folder / "als.npz",
            user_factors=(u[:, :k] * s[:k]).astype(np.float32),
            item_factors=v[:k].T.astype(np.float32),
            regularization=np.array(0.01),
            factors=np.array(k),
        )
    else:
        model = AlternatingLeastSquares(factors=64, iterations=10, random_state=0)
        model.fit(matrix, show_progress=False)
        model.save(str(folder / "als.npz"))


def test_the_way_of_the_readme(tmp_path, monkeypatch):
    """implicit -> teacher import -> distill --budget -> export -> Student without torch, in a clean folder."""
    monkeypatch.chdir(tmp_path)
    clicks(tmp_path / "clicks.csv")
    text = (ROOT / "README.md").read_text("utf-8")
    block = next(part for part in text.split("```sh\n")[1:] if "kdrs teacher import" in part).partition("```")[0]
    lines = [line for line in block.replace("\\\n", " ").splitlines() if line.strip() and not line.startswith("#")]
    assert [shlex.split(line)[1] for line in lines] == ["data", "teacher", "distill", "export", "recommend"]
    for line in lines:
        words = shlex.split(line, comments=True)[1:]
        if words[0] == "teacher":
            als(tmp_path, kdrs.Dataset.load("datasets/mine"))
        done = command(*words, *(("--device", "cpu", "--threads", "1", "--quiet") if words[0] == "distill" else ()))
        assert done.code == 0, (line, done.err)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", WITHOUT_TORCH], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    strings = {"user": pl.String, "item": pl.String}
    listed, own = pl.read_parquet("lists.parquet"), pl.read_csv("served.csv", schema_overrides=strings)
    assert listed.select("user", "item", "rank").equals(own.select("user", "item", "rank").cast({"rank": pl.Int32}))
    run = kdrs.load_run("runs/from-als")
    data = run.dataset
    best = kdrs.ranking.topk(*run.factors()[:2], 20, seen=data.train, bias=run.factors().bias)
    expected = [data.items[int(item)] for row in np.asarray(best.items) for item in row if item >= 0]
    assert listed["item"].to_list() == expected
    assert run.n_parameters
    sizes = run.model.nbytes, 64 * 4 * (data.n_users + data.n_items)
    assert sizes[0] <= sizes[1] / 20


def clicks(path: Path) -> None:
    data = toy_dataset(160, 120, candidates=None)
    rows = (f"u{u},i{i}\n" for u, i in zip(data.full.row_of_pair.tolist(), data.full.indices.tolist(), strict=True))
    path.write_text("visitor,product\n" + "".join(rows))


def test_a_service_of_thirty_lines(here):
    pytest.importorskip("fastapi")
    pytest.importorskip("uvicorn")
    assert len((ROOT / "examples" / "serve.py").read_text("utf-8").splitlines()) < 45
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [sys.executable, "-m", "uvicorn", "--app-dir", str(ROOT / "examples"), "serve:app", "--port", str(port)]
    environment = {**os.environ, "STUDENT": str(here / "small.safetensors"), "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        words, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as server:
        try:
            known = asked(f"http://127.0.0.1:{port}/users/7?k=3")
            new = asked(f"http://127.0.0.1:{port}/lists", {"history": ["1", "5"], "k": 4})
            nobody = asked(f"http://127.0.0.1:{port}/users/no/body?k=2")
            with pytest.raises(urllib.error.HTTPError, match="422"):
                asked(f"http://127.0.0.1:{port}/users/7?k=0")
        finally:
            server.terminate()
    student = kdrs.Student.load(here / "small.safetensors")
    assert [one["item"] for one in known["items"]] == student.recommend(["7"], 3).items[0].tolist()
    assert [one["item"] for one in new["items"]] == student.recommend(histories=[["1", "5"]], k=4).items[0].tolist()
    assert nobody["popular"]


def asked(url: str, document: dict | None = None) -> dict:
    """What a service answers, once it is up."""
    body = None if document is None else json.dumps(document).encode()
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    for _ in range(600):
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return json.loads(answer.read())
        except urllib.error.HTTPError:
            raise
        except OSError:
            time.sleep(0.1)
    raise AssertionError("the service did not come up")


def test_tables_of_other_column_names(here, tmp_path):
    """What users have in a table of a shop's own is left out, and histories are read from one."""
    data = kdrs.Dataset.load("d")
    users, items = data.full.row_of_pair, data.full.indices
    own = pl.DataFrame(
        {"visitor": [data.users[u] for u in users], "when": "x", "product": [data.items[i] for i in items]}
    )
    own.write_csv(tmp_path / "own.csv")
    named = ("--columns", "visitor,product")
    ok(
        "recommend",
        "student.safetensors",
        "--seen",
        tmp_path / "own.csv",
        *named,
        "--k",
        90,
        "--out",
        tmp_path / "l.csv",
    )
    listed = pl.read_csv(tmp_path / "l.csv", infer_schema=False)
    assert not set(listed.select("user", "item").rows()) & set(own.select("visitor", "product").rows())
    assert listed.height == data.n_users * data.n_items - data.full.n_pairs
    ok(
        "recommend",
        "small.safetensors",
        "--histories",
        tmp_path / "own.csv",
        *named,
        "--k",
        3,
        "--out",
        tmp_path / "h.csv",
    )
    assert pl.read_csv(tmp_path / "h.csv")["user"].n_unique() == data.n_users
    error = fails(3, "recommend", "small.safetensors", "--histories", tmp_path / "own.csv", "--k", 3)
    assert "--columns USER,ITEM; if line 1 is a row already, write user,item above it" in error
    (tmp_path / "bare.csv").write_text("new,1\nnew,2\n")
    bare = (
        "recommend",
        "small.safetensors",
        "--k",
        3,
        "--out",
        tmp_path / "b.csv",
        "--histories",
        tmp_path / "bare.csv",
    )
    assert "write user,item above it" in fails(3, *bare)
    (tmp_path / "bare.csv").write_text("user,item\nnew,1\nnew,2\n")
    ok(*bare)
    (tmp_path / "half.csv").write_text("user,what\nnew,1\n")
    assert "line 1" not in fails(3, *bare[:-1], tmp_path / "half.csv")
    np.savez(tmp_path / "own.npz", a=np.ones(3))
    assert "write a table of user and item" in fails(3, *bare[:-1], tmp_path / "own.npz")
    error = fails(3, "recommend", "small.safetensors", "--histories", tmp_path / "own.csv", "--columns", "who,product")
    assert "visitor, when, product" in error
    for wrong in ("visitor", "a,b,c", "a,a", ","):
        fails(2, "recommend", "student.safetensors", "--seen", tmp_path / "own.csv", "--columns", wrong, "--user", "0")
    assert "leave it out" in fails(2, "recommend", "student.safetensors", "--user", "0", *named)

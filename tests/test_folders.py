"""Folders that take their place in one go: what is taken over, what links do, what a kill or a full disk leaves."""

from __future__ import annotations

import errno
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from commands import runner
from kdrs import _files
from kdrs.data import Dataset, Recipe, Table, prepare
from kdrs.errors import DataError, KdrsError, MachineError

pytestmark = pytest.mark.skipif(os.name == "nt", reason="POSIX locks and signals")
FILES = ["dataset.json", "interactions.safetensors", "items.json", "users.json"]


def made(seed: int) -> Dataset:
    rng = np.random.default_rng(seed)
    return prepare(Table.from_pairs(rng.integers(0, 9, 90), rng.integers(0, 25, 90)), Recipe(candidates=5), name="toy")


@pytest.fixture(scope="module")
def old() -> Dataset:
    return made(0)


@pytest.fixture(scope="module")
def new() -> Dataset:
    return made(1)


def listing(folder: Path) -> dict[str, bytes | str]:
    """Everything below a folder: bytes of files, targets of links."""
    return {
        str(path.relative_to(folder)): os.readlink(path) if path.is_symlink() else path.read_bytes()
        for path in folder.rglob("*")
        if path.is_symlink() or path.is_file()
    }


# What is taken over


@pytest.mark.parametrize(
    "content",
    [
        {"dataset.json": b"{}"},
        {"dataset.json": b'{"format": "kdrs-dataset/1"}', "users.json": b"[]"},
        {"dataset.json": b'{"title": "my own data", "rows": [1, 2]}'},
        {"dataset.json": b"", "notes": b"x"},
        {"users.json": b"[]", "items.json": b"[]", "interactions.safetensors": b""},
    ],
)
def test_a_folder_is_taken_over_by_a_valid_head_only(old, tmp_path, content):
    place = tmp_path / "mine"
    place.mkdir()
    for name, data in content.items():
        (place / name).write_bytes(data)
    before = listing(tmp_path)
    for overwrite in (False, True):
        with pytest.raises(DataError, match="exists, is not empty and holds no prepared data set"):
            old.save(place, overwrite=overwrite)
    assert listing(tmp_path) == before


@pytest.mark.parametrize("name", ["notes.txt", "run", ".hidden"])
def test_what_somebody_put_into_a_data_set_is_not_lost(old, new, tmp_path, name):
    place = old.save(tmp_path / "d")
    if name == "run":
        (place / name).mkdir()
        (place / name / "model").write_bytes(b"precious")
    else:
        (place / name).write_bytes(b"precious")
    before = listing(tmp_path)
    with pytest.raises(DataError, match=f"and also {name}"):
        new.save(place, overwrite=True)
    assert listing(tmp_path) == before


def test_a_link_in_the_place_is_not_written_through(old, new, tmp_path):
    there = old.save(tmp_path / "there")
    (tmp_path / "d").symlink_to(there)
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    before = listing(tmp_path)
    for name in ("d", "dangling"):
        with pytest.raises(MachineError, match="is a link") as caught:
            new.save(tmp_path / name, overwrite=True)
        assert caught.value.exit_code == 5
    assert listing(tmp_path) == before
    assert Dataset.load(tmp_path / "d").fingerprint == old.fingerprint  # reading goes through


def test_links_inside_an_old_data_set_are_removed_and_not_followed(old, new, tmp_path):
    place = old.save(tmp_path / "d")
    elsewhere = tmp_path / "elsewhere.json"
    (place / "users.json").rename(elsewhere)
    (place / "users.json").symlink_to(elsewhere)
    kept = elsewhere.read_bytes()
    new.save(place, overwrite=True)
    assert elsewhere.read_bytes() == kept
    assert not (place / "users.json").is_symlink()
    assert Dataset.load(place).fingerprint == new.fingerprint


def test_files_are_new_and_links_in_their_place_refused(tmp_path):
    precious = tmp_path / "precious"
    precious.write_bytes(b"x")

    def write(folder):
        (folder.path / "users.json").symlink_to(precious)
        folder.write("users.json", b"other")

    with (
        pytest.raises(MachineError, match="File exists"),
        _files.new_folder(tmp_path / "d", FILES, lambda _: False, overwrite=False, kind="thing") as folder,
    ):
        write(folder)
    assert listing(tmp_path) == {"precious": b"x"}


def test_a_file_replaces_a_link(tmp_path):
    (tmp_path / "there").write_bytes(b"precious")
    (tmp_path / "here").symlink_to(tmp_path / "there")
    _files.write_bytes(tmp_path / "here", b"new")
    assert (tmp_path / "there").read_bytes() == b"precious"
    assert listing(tmp_path) == {"there": b"precious", "here": b"new"}


# One call


@pytest.mark.parametrize("code", [None, errno.EINVAL, errno.ENOSYS])
def test_the_exchange_and_its_fallback_give_the_same(old, new, tmp_path, monkeypatch, code):
    if code is not None:

        def refusing(*_):
            _files.ctypes.set_errno(code)
            return -1

        monkeypatch.setattr(_files, "_renameat2", lambda: refusing)
    place = old.save(tmp_path / "d")
    new.save(place, overwrite=True)
    assert Dataset.load(place).fingerprint == new.fingerprint
    assert os.listdir(tmp_path) == ["d"]
    assert sorted(os.listdir(place)) == FILES


def test_the_exchange_is_one_call_here(tmp_path):
    if _files._renameat2() is None:
        pytest.skip("no renameat2")
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).write_bytes(b"")
    if not _files.exchange(tmp_path / "a", tmp_path / "b"):
        pytest.skip("the file system has no exchange")
    assert [os.listdir(tmp_path / name) for name in ("a", "b")] == [["b"], ["a"]]


# Kills

STEPS = ("mkdir", "open", "fsync", "rename", "replace", "unlink", "rmdir", "listdir", "scandir", "lstat", "fstat")


def killed_at(step: int, data: Dataset, place: Path, how: str) -> bool:
    """Save in a child that is killed at its ``step``-th call of the system; False where it makes fewer."""
    child = os.fork()
    if child:
        return os.waitpid(child, 0)[1] == signal.SIGKILL
    calls = 0

    def counted(real):
        def call(*args, **kwargs):
            nonlocal calls
            calls += 1
            if calls == step:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **kwargs)

        return call

    try:
        if how == "fallback":
            _files._renameat2 = lambda: None
        for name in STEPS:
            setattr(os, name, counted(getattr(os, name)))
        _files.exchange = counted(_files.exchange)
        data.save(place, overwrite=True)
    finally:
        os._exit(calls < step)


@pytest.mark.parametrize("how", ["exchange", "fallback"])
def test_killed_at_every_step_the_old_or_the_new_one_stands_there(old, new, tmp_path, how):
    both, found = {old.fingerprint, new.fingerprint}, set()
    folder = tmp_path / "w"
    for step in range(1, 200):
        place = old.save(folder / "d")
        if not killed_at(step, new, place, how):
            break
        assert how == "fallback" or place.is_dir()
        found.add(Dataset.load(place).fingerprint)  # puts back what was moved away
        old.save(place, overwrite=True)
        assert os.listdir(folder) == ["d"], f"step {step}"
        assert Dataset.load(place).fingerprint == old.fingerprint
        shutil.rmtree(folder)
    assert step > 25
    assert found == both


@pytest.mark.parametrize("command", ["describe", "prepare", "prepare --overwrite", "train"])
def test_what_was_moved_away_is_put_back_by_any_command(old, tmp_path, command):
    from kdrs.cli import app

    old.save(tmp_path / "d").rename(tmp_path / ".d.0123456789ab.old")
    (tmp_path / ".d.ba9876543210.tmp").mkdir()
    (tmp_path / "a.csv").write_text("user,item\n" + "".join(f"{n % 3},{n}\n" for n in range(30)))
    place = str(tmp_path / "d")
    arguments = {
        "describe": ["data", "describe", place],
        "prepare": ["data", "prepare", str(tmp_path / "a.csv"), "--out", place],
        "prepare --overwrite": ["data", "prepare", str(tmp_path / "a.csv"), "--out", place, "--overwrite"],
        "train": ["train", "--data", place, "--model", "bpr", "--dim", "2", "--dry-run"],
    }
    result = runner().invoke(app, arguments[command])
    assert sorted(os.listdir(tmp_path)) == ["a.csv", "d"]
    assert (Dataset.load(place).fingerprint == old.fingerprint) == (command != "prepare --overwrite")
    assert (result.exception is None) == (command != "prepare")  # it stands there already


@pytest.mark.slow
def test_killed_at_any_moment(old, new, tmp_path):
    source = new.save(tmp_path / "source")
    place = old.save(tmp_path / "w" / "d")
    loop = (
        "import sys\nfrom kdrs.data import Dataset\ndata = Dataset.load(sys.argv[2])\nprint('ready', flush=True)\n"
        "while True:\n    data.save(sys.argv[1], overwrite=True)\n"
    )
    for round in range(4):
        process = subprocess.Popen([sys.executable, "-c", loop, str(place), str(source)], stdout=subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(random.Random(round).uniform(0, 0.2))
        process.kill()
        process.wait()
        process.stdout.close()
        assert Dataset.load(place).fingerprint in {old.fingerprint, new.fingerprint}
        old.save(place, overwrite=True)
        assert os.listdir(place.parent) == ["d"]


def test_what_a_living_writer_holds_is_not_swept(old, new, tmp_path):
    with _files.new_folder(tmp_path / "d", FILES, lambda _: False, overwrite=False, kind="thing") as folder:
        folder.write("users.json", b"[]")
        new.save(tmp_path / "d")
        assert folder.path.is_dir()
        shutil.rmtree(tmp_path / "d")
    assert listing(tmp_path) == {"d/users.json": b"[]"}


def test_only_what_is_ours_is_swept(old, tmp_path):
    foreign = {
        ".d.0123456789ab.tmp/thesis": b"x",  # a folder with something else in it
        ".d.0123456789ab.old/thesis": b"x",
        ".d.tmp/users.json": b"x",  # other names
        ".e.0123456789ab.tmp/users.json": b"x",
        ".d.0123456789AB.tmp/users.json": b"x",
    }
    for name, content in foreign.items():
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(content)
    (tmp_path / ".d.ba9876543210.tmp").symlink_to(tmp_path / ".d.tmp")
    (tmp_path / ".d.aaaaaaaaaaaa.tmp").mkdir()
    (tmp_path / ".d.aaaaaaaaaaaa.tmp" / "users.json").write_bytes(b"")
    before = listing(tmp_path)
    old.save(tmp_path / "d")
    after = {name: content for name, content in listing(tmp_path).items() if not name.startswith("d/")}
    assert after == {name: content for name, content in before.items() if "aaaaaaaaaaaa" not in name}


def test_a_killed_writer_of_a_file_leaves_nothing_for_long(tmp_path):
    code = (
        "import os, sys, pathlib\nfrom kdrs import _files\n"
        "with _files.replacing(pathlib.Path(sys.argv[1])) as temporary:\n"
        "    temporary.write_bytes(b'half')\n    os.kill(os.getpid(), 9)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "a.json")], check=False)
    assert len(os.listdir(tmp_path)) == 1
    _files.write_bytes(tmp_path / "a.json", b"whole")
    assert listing(tmp_path) == {"a.json": b"whole"}


# Errors of the disk


@pytest.mark.parametrize("name", ["mkdir", "open", "fsync", "rename", "exchange"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EROFS, errno.EDQUOT, errno.EACCES])
def test_an_error_of_the_disk_anywhere_is_code_5_and_changes_nothing(old, new, tmp_path, monkeypatch, name, code):
    place = old.save(tmp_path / "d")
    before = listing(tmp_path)
    module = _files if name == "exchange" else os
    for nth in range(1, 30):
        left = nth
        real = getattr(module, name)

        def failing(*args, real=real, **kwargs):
            nonlocal left
            left -= 1
            if left == 0:
                raise OSError(code, os.strerror(code))
            return real(*args, **kwargs)

        with monkeypatch.context() as patch:
            patch.setattr(module, name, failing)
            try:
                new.save(place, overwrite=True)
            except KdrsError as error:
                assert error.exit_code == 5, f"{name} {nth}: {error}"  # noqa: PT017
        if left > 0:
            break
        there = {path for path in listing(tmp_path) if not path.startswith(".d.")}  # what could not be removed is swept
        assert there == before.keys(), f"{name} {nth}"
        assert Dataset.load(place).fingerprint in {old.fingerprint, new.fingerprint}
        old.save(place, overwrite=True)
        assert os.listdir(tmp_path) == ["d"], f"{name} {nth}"


def test_folders_on_the_way_are_not_left_behind(new, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left")))
    with pytest.raises(MachineError, match=r"No space left; .* are needed"):
        new.save(tmp_path / "a" / "b" / "d")
    assert not list(tmp_path.iterdir())


def test_names_as_long_as_the_file_system_takes_them(old, tmp_path):
    assert Dataset.load(old.save(tmp_path / ("n" * 255))).fingerprint == old.fingerprint
    with pytest.raises(MachineError, match="File name too long"):
        old.save(tmp_path / ("n" * 256))
    with pytest.raises(MachineError, match="null"):
        old.save(tmp_path / "a\0b")
    assert len(os.listdir(tmp_path)) == 1

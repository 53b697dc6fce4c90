"""Known data sets: right or absent, whatever the network does."""

from __future__ import annotations

import hashlib
import http.server
import io
import threading
import zipfile
from pathlib import Path

import pytest

from kdrs.data import KNOWN, Recipe, fetch, known
from kdrs.data import known as by_name
from kdrs.data.known import Known, KnownFile, Url, Wheel, ZipMember
from kdrs.errors import ConfigError, DataError, MachineError

known_module = __import__("kdrs.data.known", fromlist=["known"])
CONTENT = b"1 5 6\n2 7\n"
DIGEST = hashlib.sha256(CONTENT).hexdigest()


class Server:
    """Answers each request with the next of ``answers``: (status, body)."""

    def __init__(self):
        self.answers: list[tuple[int, bytes]] = []
        self.asked = 0
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                status, body = outer.answers[min(outer.asked, len(outer.answers) - 1)]
                outer.asked += 1
                self.send_response(status)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args):
                pass

        self.http = http.server.HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/lists.txt"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()


@pytest.fixture
def server():
    server = Server()
    yield server
    server.http.shutdown()
    server.http.server_close()


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    for name in ("KDRS_DATA", "KDRS_OFFLINE", "http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("KDRS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(known_module, "PAUSE", 0.0)
    return tmp_path / "cache"


@pytest.fixture
def small(monkeypatch, server) -> Known:
    files = {"all": KnownFile("lists.txt", DIGEST, (Url(server.url),))}
    data = Known("small-set", "A small set", "nobody", files, Recipe(), ("small",))
    monkeypatch.setitem(KNOWN, data.name, data)
    return data


def everything(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_fetched_once_then_taken_from_the_cache(cache, small, server):
    server.answers = [(200, CONTENT)]
    path = fetch("small-set")["all"]
    assert path == cache / "data" / "small-set" / "lists.txt"
    assert path.read_bytes() == CONTENT
    assert fetch("small_set")["all"] == path
    assert server.asked == 1
    assert everything(cache) == [path]


def test_three_attempts(cache, small, server):
    server.answers = [(503, b""), (500, b""), (200, CONTENT)]
    assert fetch("small-set")["all"].read_bytes() == CONTENT
    server.asked, server.answers = 0, [(503, b"")]
    for path in everything(cache):
        path.unlink()
    with pytest.raises(MachineError, match=r"cannot fetch .*HTTP Error 503.*; nothing was kept\nplace lists.txt"):
        fetch("small-set")
    assert server.asked == 3
    server.asked, server.answers = 0, [(404, b"")]
    with pytest.raises(MachineError, match="HTTP Error 404"):
        fetch("small-set")
    assert server.asked == 1


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"<!DOCTYPE html><title>Sorry</title>", "gave an HTML page, 35 bytes"),
        (CONTENT + b"x", f"gave SHA-256 {hashlib.sha256(CONTENT + b'x').hexdigest()[:16]}"),
        (CONTENT[:3], "gave SHA-256"),
    ],
    ids=["HTML page", "other file", "cut file"],
)
def test_nothing_wrong_is_kept(cache, small, server, body, words):
    server.answers = [(200, body)]
    with pytest.raises(DataError, match=words) as caught:
        fetch("small-set")
    assert caught.value.exit_code == 3
    assert everything(cache.parent) == []


def test_offline_names_the_file_to_place(cache, small, server, monkeypatch):
    monkeypatch.setenv("KDRS_OFFLINE", "1")
    with pytest.raises(MachineError, match=rf"KDRS_OFFLINE is set\nplace lists.txt \(SHA-256 {DIGEST}\)") as caught:
        fetch("small-set")
    assert caught.value.exit_code == 5
    assert server.asked == 0


def test_a_folder_of_data_is_used_before_the_network(cache, small, server, monkeypatch, tmp_path, caplog):
    place = tmp_path / "own" / "small" / "lists.txt"
    place.parent.mkdir(parents=True)
    place.write_bytes(CONTENT)
    monkeypatch.setenv("KDRS_DATA", str(tmp_path / "own"))
    assert fetch("small-set")["all"] == place
    target = fetch("small-set", tmp_path / "to")["all"]
    assert target == tmp_path / "to" / "lists.txt"
    assert server.asked == 0
    place.write_bytes(b"changed")
    server.answers = [(200, CONTENT)]
    assert fetch("small-set")["all"].read_bytes() == CONTENT
    assert "SHA-256 differs): passed over" in caplog.text


def test_a_damaged_cache_is_made_again(cache, small, server, caplog):
    server.answers = [(200, CONTENT)]
    path = fetch("small-set")["all"]
    path.write_bytes(CONTENT[:4])
    assert fetch("small-set")["all"].read_bytes() == CONTENT
    assert server.asked == 2


def test_files_in_the_way_are_not_replaced(cache, small, server, tmp_path):
    (tmp_path / "lists.txt").write_text("mine")
    with pytest.raises(DataError, match=r"is there already and is not lists.txt of small-set"):
        fetch("small-set", tmp_path)
    assert (tmp_path / "lists.txt").read_text() == "mine"


def test_zip_members_with_a_head(server, cache):
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as opened:
        opened.writestr("ml/u.data", "1\t2\n")
    server.answers = [(200, archive.getvalue())]
    assert ZipMember(Url(server.url), "ml/u.data", b"head\n").bytes() == b"head\n1\t2\n"
    with pytest.raises(DataError, match="has no member other"):
        ZipMember(Url(server.url), "other").bytes()
    server.answers = [(200, b"<html>")]
    with pytest.raises(DataError, match="is no zip archive: it begins"):
        ZipMember(Url(server.url), "ml/u.data").bytes()


def test_a_wheel_is_downloaded_and_not_installed(monkeypatch):
    calls = []

    def run(command, **kwargs):
        calls.append(command)
        with zipfile.ZipFile(Path(command[command.index("--dest") + 1]) / "a-1-py3-none-any.whl", "w") as wheel:
            wheel.writestr("a/data.txt", "x")
        return type("Done", (), {"returncode": 0, "stderr": ""})()

    monkeypatch.setattr("subprocess.run", run)
    assert Wheel("a==1", "a/data.txt").bytes() == b"x"
    assert calls[0][1:5] == ["-m", "pip", "download", "--no-deps"]
    monkeypatch.setattr("subprocess.run", lambda *_, **__: type("D", (), {"returncode": 1, "stderr": "no route\n"})())
    with pytest.raises(MachineError, match="pip cannot download a==1: no route"):
        Wheel("a==1", "a/data.txt").bytes()


def test_names():
    assert by_name("citeulike_loo") is KNOWN["citeulike-loo"]
    assert known("citeulike") is KNOWN["citeulike-t"]
    with pytest.raises(ConfigError, match=r"unknown data set gowala\ndid you mean 'gowalla'"):
        fetch("gowala")

"""Vectors by word: word2vec's text and binary forms, as gensim, word2vec and fastText write them."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from kdrs.data.plain import check_unpacked, guarded, read_bytes, read_plain
from kdrs.errors import DataError, shown
from kdrs.teachers.ids import texts
from kdrs.teachers.importers.found import Side, as_vectors

_HEAD = re.compile(rb"\s*(\d{1,12})[ \t]+(\d{1,7})[ \t]*\r?\n")


def read_word2vec(path: Path) -> Side:
    """A first line with the number of words and of dimensions; then words and numbers as text, or words and float32
    (little-endian). Which of both is told by the bytes behind the first word."""
    data, _ = read_bytes(path)
    name = shown(str(path), 300)
    head = _HEAD.match(data)
    if head is None:
        raise DataError(
            f"{name} does not begin with the number of words and of dimensions: {shown(str(data[:40]))}",
            "write it in word2vec's form, with that line: gensim's save_word2vec_format; GloVe's files lack it",
        )
    n, dim = int(head[1]), int(head[2])
    if not n or not dim:
        raise DataError(f"{name} states {n} words of {dim} dimensions", "write it again")
    check_unpacked(name, 4 * n * dim, "states vectors of")
    body = data[head.end() :]
    return _text(body, n, dim, name) if _is_text(body) else _binary(body, n, dim, name)


def _is_text(body: bytes) -> bool:
    """Whether the first line is one word and numbers."""
    line = body.partition(b"\n")[0]
    fields = line.split()
    try:
        return len(fields) > 1 and all(float(field) is not None for field in fields[1:])
    except ValueError:
        return False


def _text(body: bytes, n: int, dim: int, name: str) -> Side:
    import polars as pl

    body = re.sub(rb"[ \t\r]+\n", b"\n", body).rstrip(b"\n") + b"\n"  # word2vec.c ends its lines with a blank
    lines = body.count(b"\n")
    if lines != n:
        raise DataError(
            f"{name} states {n:,} words and has {lines:,} lines of them", "the file was cut: write it again"
        )
    with guarded(f"{name} is no table of one word and {dim} numbers a line"):
        frame = read_plain(body, " ")
    if frame.width != dim + 1:
        raise DataError(
            f"{name} states {dim} dimensions and has {frame.width - 1} numbers behind a word", "ids must hold no blank"
        )
    words, numbers = frame.columns[0], frame.columns[1:]
    values = frame.select(pl.col(numbers).cast(pl.Float32, strict=False))
    bad = values.select(pl.any_horizontal(pl.all().is_null())).to_series()
    if bad.any():
        line = int(bad.arg_true()[0])
        raise DataError(f"{name}:{line + 2}: not {dim} numbers behind a word", "write it again; ids must hold no blank")
    return Side(as_vectors(values.to_numpy(), name), texts(frame[words], name))


def _binary(body: bytes, n: int, dim: int, name: str) -> Side:
    width, place = 4 * dim, 0
    words, starts = [], np.empty(n, np.int64)
    for row in range(n):  # where a word ends is known only once the one before it has been read
        end = body.find(b" ", place)
        if end < 0 or end + 1 + width > len(body):
            raise DataError(
                f"{name} states {n:,} words of {dim} dimensions and ends in the {row + 1:,}th",
                "the file was cut: write it again",
            )
        words.append(body[place:end].lstrip(b"\n"))
        starts[row] = end + 1
        place = end + 1 + width
    if body[place:].strip(b"\n"):
        raise DataError(f"{name} states {n:,} words of {dim} dimensions and holds more", "write it again")
    raw = np.frombuffer(body, np.uint8)
    rows = raw[starts[:, None] + np.arange(width)]
    with guarded(f"{name} holds words that are no UTF-8"):
        ids = [word.decode("utf-8") for word in words]
    return Side(as_vectors(np.ascontiguousarray(rows).view("<f4"), name), texts(ids, name))

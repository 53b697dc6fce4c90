"""The student file: what is in it, and damage."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import kdrs
from kdrs.errors import ArtefactError
from kdrs.student import Student, file
from test_student import N_ITEMS, made


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("student") / "s.safetensors"
    made(4).save(path)
    return path.read_bytes()


@given(st.data())
@settings(max_examples=200)
def test_a_flipped_bit_is_found(written, tmp_path_factory, data):
    path = tmp_path_factory.mktemp("flip") / "s.safetensors"
    place = data.draw(st.integers(0, len(written) - 1))
    flipped = bytearray(written)
    flipped[place] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(flipped)
    with pytest.raises(ArtefactError) as error:
        Student.load(path)
    assert error.value.remedy
    with contextlib.suppress(ArtefactError):  # unseen where nobody looks, but never another error
        assert len(Student.load(path, verify=False).items) == N_ITEMS


@given(st.data())
@settings(max_examples=50)
def test_a_cut_file_is_found(written, tmp_path_factory, data):
    path = tmp_path_factory.mktemp("cut") / "s.safetensors"
    path.write_bytes(written[: data.draw(st.integers(0, len(written) - 1))])
    with pytest.raises(ArtefactError):
        Student.load(path)


def rewritten(written: bytes, path: Path, change) -> None:
    """The file with other contents and a right checksum."""
    path.write_bytes(written)
    tensors, metadata = file.read(path)
    tensors = {name: np.array(value) for name, value in tensors.items()}
    metadata = {name: value for name, value in metadata.items() if name not in ("crc32", "kdrs")}
    change(tensors, metadata)
    path.unlink()
    file.write(path, tensors, metadata)


def twice(tensors, _):
    tensors["item_ids"][tensors["item_ids_ends"][1] : tensors["item_ids_ends"][2]] = tensors["item_ids"][
        : tensors["item_ids_ends"][1]
    ]


@given(st.lists(st.integers(0, 2**31 - 1), max_size=9), st.sampled_from(sorted(file.NARROWED)))
def test_integers_are_written_by_their_low_bytes(values, name):
    array = np.array(values, file.NARROWED[name])
    found = file.narrow(name, array)
    assert found.nbytes == len(values) * min(width for width in (1, 2, 4) if max(values, default=0) < 256**width)
    again = file._wide(name, found)
    assert (again == array).all()
    assert again.dtype == array.dtype


@pytest.mark.parametrize("encoded", [False, True])
def test_files_of_whole_integers_are_the_same_student(tmp_path, monkeypatch, encoded):
    student = made(2, encoded=encoded)
    small = student.save(tmp_path / "small.safetensors")
    monkeypatch.setattr(file, "_MAPPED", 0)  # as they were written before, and as large ones are
    assert student.save(tmp_path / "whole.safetensors") > small
    one, two = (kdrs.Student.load(tmp_path / f"{name}.safetensors") for name in ("small", "whole"))
    assert one.fingerprint() == two.fingerprint() == student.fingerprint()
    assert list(one.recommend(["ü1", "ü2"], 5)) == list(two.recommend(["ü1", "ü2"], 5))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (twice, "item item 0 comes twice in the id list"),
        (lambda t, m: t.pop("item_ids"), "lacks item_ids"),
        (lambda t, m: m.pop("tables"), "lacks tables"),
        (lambda t, m: m.update(tables="[]"), "tables is no JSON object"),
        (lambda t, m: m.update(tables="{"), "is damaged"),
        (lambda t, m: m.update(tables=json.dumps({"dim": 6, "items": {"bits": 4, "seed": 0}})), "nothing is known of"),
        (lambda t, m: t.update(more=np.zeros(1, np.uint8)), "nothing is known of the tensor more"),
        (lambda t, m: t.update(items_scales=t["items_scales"][:-1]), "scales are float32 of shape (39,)"),
        (lambda t, m: t.update(items_scales=t["items_scales"].astype(np.float32)), "the scales of items are float32"),
        (lambda t, m: t.update(seen_items=t["seen_items"][::-1].copy()), "is damaged"),
        (lambda t, m: t.update(popular=t["popular"] + np.int32(1000)), "popular holds rows that are no items"),
        (lambda t, m: t.update(popular=np.zeros_like(t["popular"])), "popular holds an item twice"),
        (lambda t, m: t.update(popular=np.zeros((), np.int32)), "popular and popular_counts are no int32 [P]"),
        (
            lambda t, m: t.update(popular=np.zeros((15, 5), np.uint8)),
            "popular has integers of 5 bytes; 1, 2 or 4 are expected",
        ),
        (lambda t, m: t.update(bias=np.full(N_ITEMS, np.nan, np.float32)), "the bias is not finite"),
    ],
)
def test_contents_that_do_not_fit(written, tmp_path, change, message):
    rewritten(written, tmp_path / "s.safetensors", change)
    with pytest.raises(ArtefactError) as error:
        Student.load(tmp_path / "s.safetensors")
    assert message in error.value.cause


@pytest.mark.parametrize(
    ("kind", "remedy"),
    [("student/9", "another version of kdrs"), ("teacher/2", "it is a teacher"), ("", "kdrs export RUN")],
)
def test_other_files(tmp_path, kind, remedy):
    from safetensors.numpy import save_file

    save_file({"a": np.zeros(2, np.float32)}, tmp_path / "s.safetensors", metadata={"kdrs": kind} if kind else None)
    with pytest.raises(ArtefactError, match="is no student file") as error:
        Student.load(tmp_path / "s.safetensors")
    assert remedy in str(error.value.remedy)
    with pytest.raises(ArtefactError, match="no student file"):
        Student.load(tmp_path / "absent.safetensors")

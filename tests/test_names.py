"""Packed ids: the same places and strings as Python's own dictionary."""

import numpy as np
import polars
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdrs.core.names import Names
from kdrs.errors import DataError

TEXT = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=8)


@given(st.lists(TEXT, unique=True, max_size=60), st.lists(TEXT, max_size=20))
def test_places_are_those_of_a_dictionary(values, others):
    names = Names.of(values, "item")
    wanted = [*others, *values]
    places = {value: place for place, value in enumerate(values)}
    assert names.index(wanted, unknown="mark").tolist() == [places.get(value, -1) for value in wanted]
    assert list(names) == values
    again = Names.from_tensors(names.tensors(), "item")
    assert again == names
    assert again.take(np.array([[-1, *range(len(values))]])).tolist() == [[None, *values]]
    column = again.column()
    assert (column.dtype, column.to_list()) == (polars.String, values)
    assert again.column() is column


def test_many_at_once_and_few_are_the_same():
    values = [f"ü{n}" for n in range(6000)]
    names, places = Names.of(values), np.random.default_rng(0).integers(-1, 6000, (70, 80))
    few = [names.take(row).tolist() for row in places]
    assert names.take(places).tolist() == few


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (["a", "b", "a"], "item a comes twice"),
        (["a", ""], "item 1 is an empty string"),
        (["a", 7], r"item 7 is no string \(int\)"),
        (["\ud800"], "lone surrogate"),
    ],
)
def test_what_is_no_list_of_ids(values, message):
    with pytest.raises(DataError, match=message):
        Names.of(values, "item")


def test_unknown_ids_are_named():
    with pytest.raises(DataError, match="2 of 3 user ids are unknown, first x"):
        Names.of(["a", "b"], "user").index(["a", "x", "y"])
    with pytest.raises(DataError, match="got the string a"):
        Names.of(["a", "b"], "user").index("a")


@pytest.mark.parametrize("ends", [[0, 3], [1, 2], [0, 2, 1, 2], [], [0, -1, 2]])
def test_damaged_ends(ends):
    with pytest.raises(DataError, match="ids: the ends of names do not ascend"):
        Names(np.frombuffer(b"ab", np.uint8), np.array(ends, np.int64))


@pytest.mark.parametrize(("data", "ends"), [(b"a\xff", [0, 1, 2]), ("ä".encode(), [0, 1, 2])])
def test_bytes_that_are_no_text(data, ends):
    with pytest.raises(DataError, match="are no UTF-8"):
        Names(np.frombuffer(data, np.uint8), np.array(ends, np.int64))

"""What several processes are made of: shares of a batch, lists of tiles, views of columns."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from conftest import toy_dataset
from kdrs.core import ranking
from kdrs.core.tiles import topk as topk_of_tiles
from kdrs.data import Dataset, Interactions
from kdrs.models import BPR
from kdrs.training.columns import Columns, ColumnView
from kdrs.training.pairs import PairTask
from kdrs.training.queries import Epoch
from kdrs.training.sharing import Part, share


def toy() -> Dataset:
    return toy_dataset(20, 30, candidates=None)


@given(st.integers(1, 12), st.integers(1, 30), st.integers(1, 9), st.integers(1, 40), st.integers(0, 9))
def test_lists_of_tiles_are_lists_of_the_whole(rows: int, items: int, size: int, k: int, seed: int):
    """Ties go to the lower id whichever tiles they lie in; what is seen is left out; -1 pads."""
    rng = np.random.default_rng(seed)
    queries, catalogue = (rng.integers(-2, 3, (n, 3)).astype(np.float32) for n in (rows, items))
    held = np.nonzero(rng.random((rows + 2, items)) < 0.3)
    seen = Interactions.from_pairs(*held, rows + 2, items)
    asked = np.sort(rng.choice(rows + 2, rows, replace=False))
    tiles = ((start, catalogue[start : start + size]) for start in range(0, items, size))
    found = topk_of_tiles(queries, tiles, min(k, items), seen=seen, rows=asked)
    whole = ranking.topk(queries, catalogue, min(k, items), seen=seen, rows=asked)
    assert found.items.tolist() == whole.items.tolist()
    assert found.scores.tolist() == whole.scores.tolist()


class Seat:
    """A place in a group that says nothing."""

    def __init__(self, rank: int, size: int):
        self.rank, self.size = rank, size


@given(st.integers(1, 40), st.integers(1, 5), st.integers(0, 5), st.integers(1, 3))
def test_shares_make_the_whole(rows: int, size: int, seed: int, negatives: int):
    """Every row, query and item is in one share; BPR's loss of the shares adds up to that of the batch."""
    dataset = toy()
    task = PairTask(dataset.train, batch_size=rows, n_negatives=negatives, layout="rows")
    batch = next(iter(task.draw(Epoch(0, seed, 1))))
    parts = [share(batch, Seat(rank, size)) for rank in range(size)]  # type: ignore[arg-type]
    assert all(isinstance(part, Part) for part in parts)
    assert sorted(np.concatenate([part.places for part in parts]).tolist()) == sorted(batch.places.tolist())
    order = parts[0].order
    assert torch.equal(torch.cat([part.positives for part in parts]), batch.positives[order])
    assert torch.equal(torch.cat([part.unique_queries.ids for part in parts]), batch.unique_queries.ids)
    for part in parts:
        assert torch.equal(part.queries.rows[part.unique_queries.first], part.unique_queries.ids)
        assert part.idle or part.share > 0
    ids, roles = batch.item_roles
    assert torch.equal(torch.cat([part.item_roles[0] for part in parts]), ids)
    assert torch.equal(torch.cat([part.item_roles[1] for part in parts]), roles)
    model = BPR(BPR.Config(dim=3), task)
    with torch.no_grad():
        total = sum(model.loss(model(part.queries), part) for part in parts if not part.idle)
        assert float(total) == pytest.approx(float(model.loss(model(batch.queries), batch)), rel=1e-5)
    assert sum(part.share for part in parts) == pytest.approx(1)


def test_a_view_of_columns_goes_with_its_step():
    """Without the collector of cycles: what it holds is as large as the model."""
    task = PairTask(toy().train, batch_size=8)
    queries = task.queries(torch.arange(4))
    gc.disable()
    try:
        view = ColumnView(BPR(BPR.Config(dim=3), task)(queries), queries, Columns(Seat(0, 2), 6))  # type: ignore[arg-type]
        other = view.at(queries)
        gone = [weakref.ref(view), weakref.ref(other)]
        del view, other
        assert [ref() for ref in gone] == [None, None]
    finally:
        gc.enable()

"""Scores of many pairs at once: the closed-form gradient against autograd's."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from kdrs import view
from kdrs.tasks import Queries
from kdrs.view import DotView

USERS, ITEMS, DIM = 30, 50, 6


class Tables(nn.Module):
    """Users and items in float64; ``sparse`` as BPR keeps them."""

    def __init__(self, sparse: bool, bias: bool):
        super().__init__()
        rng = torch.Generator().manual_seed(1)
        make = lambda *shape: nn.Parameter(torch.randn(*shape, generator=rng, dtype=torch.float64))
        self.sparse = sparse
        self.users, self.items = make(USERS, DIM), make(ITEMS, DIM)
        self.bias = make(ITEMS) if bias else None

    def forward(self, queries: Queries) -> DotView:
        def rows(ids):
            return F.embedding(ids, self.items, sparse=self.sparse)

        users = lambda asked: F.embedding(asked.users, self.users, sparse=self.sparse)
        return DotView(queries, users, rows, lambda: self.items, self.bias, sparse=self.sparse)


def gradients(tables: Tables, kind: str, many: int, monkeypatch) -> list[torch.Tensor]:
    monkeypatch.setattr(view, "MANY", many)
    monkeypatch.setattr(view, "BLOCK_FLOATS", 3 * 9 * DIM)  # a few rows a block, the last one short
    rng = torch.Generator().manual_seed(2)
    asked = torch.randint(0, USERS, (20,), generator=rng)
    answer = tables(Queries(asked, asked))
    if kind == "scores":
        scores = answer.scores(torch.randint(0, ITEMS, (20, 9), generator=rng))
    elif kind == "items of a query":
        scores = answer.pairs(
            torch.randint(0, 20, (40, 1), generator=rng), torch.randint(0, ITEMS, (40, 9), generator=rng)
        )
    else:
        scores = answer.pairs(
            torch.randint(0, 20, (40, 9), generator=rng), torch.randint(0, ITEMS, (40, 1), generator=rng)
        )
    tables.zero_grad()
    base = answer.scores(torch.randint(0, ITEMS, (20, 2), generator=rng))  # another loss of the step
    ((scores * torch.rand(scores.shape, generator=rng, dtype=torch.float64)).sum() + base.square().sum()).backward()
    found = [p.grad for p in tables.parameters()]
    return [scores.detach(), *(g.to_dense() if g.is_sparse else g for g in found)]


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("kind", ["scores", "items of a query", "queries of an item"])
def test_products_of_many_pairs_have_autograds_gradient(kind, sparse, bias, monkeypatch):
    tables = Tables(sparse, bias)
    expected = gradients(tables, kind, 1 << 30, monkeypatch)
    found = gradients(tables, kind, 1, monkeypatch)
    for left, right in zip(expected, found, strict=True):
        assert torch.allclose(left, right, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("width", [2, 3])
def test_a_sparse_table_gets_the_touched_rows_alone(width, monkeypatch):
    """Whichever way is taken: 20 x 2 pairs are fewer than the items, 20 x 3 are more."""
    monkeypatch.setattr(view, "MANY", 1)
    tables = Tables(sparse=True, bias=False)
    asked = torch.arange(20)
    ids = torch.randint(0, ITEMS // 2, (20, width), generator=torch.Generator().manual_seed(0))
    tables(Queries(asked, asked)).pairs(torch.arange(20)[:, None], ids).sum().backward()
    gradient = tables.items.grad
    assert gradient.is_sparse
    assert set(gradient._indices()[0].tolist()) == set(ids.flatten().tolist())

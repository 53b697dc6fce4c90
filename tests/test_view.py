"""Scores of pairs: the kernels in float32 against torch's own operations in float64."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from kdrs.core.tables import RowTable
from kdrs.training.queries import Queries
from kdrs.training.view import DotView

USERS, ITEMS, DIM = 30, 50, 6


class Tables(nn.Module):
    """Users and items; ``sparse`` as BPR keeps them."""

    def __init__(self, sparse: bool, bias: bool, dtype: torch.dtype):
        super().__init__()
        rng = torch.Generator().manual_seed(1)
        make = lambda *shape: nn.Parameter(torch.randn(*shape, generator=rng).to(dtype))
        table = RowTable if sparse else nn.Embedding
        self.users, self.items = table(USERS, DIM), table(ITEMS, DIM)
        self.users.weight, self.items.weight = make(USERS, DIM), make(ITEMS, DIM)
        self.bias = make(ITEMS) if bias else None

    def forward(self, queries: Queries) -> DotView:
        table = self.items if isinstance(self.items, RowTable) else lambda: self.items.weight
        return DotView(queries, lambda asked: self.users(asked.users), self.items, table, self.bias)


def gradients(tables: Tables, kind: str) -> list[torch.Tensor]:
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
    ((scores * torch.rand(scores.shape, generator=rng)).sum() + base.square().sum()).backward()
    found = [p.grad for p in tables.parameters()]
    return [scores.detach(), *(g.to_dense() if g.is_sparse else g for g in found)]


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("kind", ["scores", "items of a query", "queries of an item"])
def test_products_of_pairs_have_autograds_gradient(kind, sparse, bias):
    expected = gradients(Tables(sparse, bias, torch.float64), kind)
    found = gradients(Tables(sparse, bias, torch.float32), kind)
    for left, right in zip(expected, found, strict=True):
        assert torch.allclose(left, right.double(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("width", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_sparse_table_gets_the_touched_rows_alone(width, dtype):
    tables = Tables(sparse=True, bias=False, dtype=dtype)
    asked = torch.arange(20)
    ids = torch.randint(0, ITEMS // 2, (20, width), generator=torch.Generator().manual_seed(0))
    tables(Queries(asked, asked)).pairs(torch.arange(20)[:, None], ids).sum().backward()
    gradient = tables.items.weight.grad
    assert gradient.is_sparse
    assert set(gradient._indices()[0].tolist()) == set(ids.flatten().tolist())

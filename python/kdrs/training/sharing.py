"""How several processes do one step: a batch divided among them, and the gradients brought together again.

All processes draw the same epoch, so that each knows the whole batch: no ids travel for it. A process gets some of the batch's
distinct queries, with all their rows, and some of its distinct items. A loss that is a sum over rows, queries or items is then
the sum of the processes' losses, and so is its gradient.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import torch
from torch import Tensor, nn

from kdrs.training.processes import Group
from kdrs.training.queries import Batch

SUMMED = 1 << 20
"""Numbers that are summed up at a time."""
FEWEST = 2
"""Distinct queries and items for each process; smaller batches are not divided, the first process takes them whole."""


@dataclass(frozen=True, kw_only=True)
class Part(Batch):
    """One process's share of a batch of pairs.

    ``unique_queries`` and ``item_roles`` are shares of the whole batch's: every entity is in one process's share alone, an item
    with its roles in the whole batch.
    """

    whole: Batch
    order: Tensor
    """int64 [B]: rows of the whole batch, those of the first process first."""
    counts: tuple[int, ...]
    """How many rows each process has."""
    rank: int

    @property
    def share(self) -> float:
        """Of the batch's rows."""
        return len(self.queries) / len(self.whole.queries)

    @property
    def idle(self) -> bool:
        """Whether there is nothing in it: the batch was too small to be divided."""
        return not len(self.queries)

    @cached_property
    def item_roles(self) -> tuple[Tensor, Tensor]:
        ids, roles = self.whole.item_roles
        busy = [rank for rank, count in enumerate(self.counts) if count]
        if self.rank not in busy:
            return ids[:0], roles[:0]
        places = _slice(len(ids), busy.index(self.rank), len(busy))
        return ids[places], roles[places]


def share(batch: Batch, group: Group) -> Part:
    """The share of a process in a batch of pairs."""
    found = torch.unique(batch.queries.rows, return_inverse=True, return_counts=True)
    inverse, sizes = found[1], found[2]
    order = torch.argsort(inverse, stable=True)
    ends = sizes.cumsum(0)
    total, n_unique = len(batch.queries), len(sizes)
    if n_unique < FEWEST * group.size or batch.negatives.numel() + total < FEWEST * group.size:
        cuts = [0] + [total] * group.size
    else:
        # at the ends of queries nearest to even shares
        wanted = torch.arange(1, group.size, device=ends.device) * total // group.size
        at = torch.searchsorted(ends, wanted).clamp(max=n_unique - 1)
        cuts = [0, *ends[at].tolist(), total]
    counts = tuple(stop - start for start, stop in pairwise(cuts))
    own = order[cuts[group.rank] : cuts[group.rank + 1]]
    return Part(
        queries=batch.queries.at(own),
        positives=batch.positives[own],
        negatives=batch.negatives[own],
        places=None if batch.places is None else batch.places[own],
        whole=batch,
        order=order,
        counts=counts,
        rank=group.rank,
    )


def _slice(size: int, rank: int, count: int) -> slice:
    return slice(size * rank // count, size * (rank + 1) // count)


@torch.no_grad()
def exchange(parameters: Mapping[str, nn.Parameter], group: Group) -> None:
    """Makes each parameter's gradient the sum of all processes' gradients, the same bytes in each.

    A table whose gradient is the rows that were touched gets the rows of all, one process after the other; other gradients are
    added up in one buffer. A parameter to which no process has a gradient keeps none.
    """
    named = list(parameters.values())
    # -2: none, -1: dense, else so many rows
    kinds = torch.tensor([_kind(parameter.grad) for parameter in named], dtype=torch.int64)
    table = group.gather(kinds)  # [W, P]
    dense, sparse = [], []
    for parameter, own in zip(named, table.T.tolist(), strict=True):
        if max(own) == -2:
            continue
        if -1 in own:
            dense.append(parameter)
        else:
            sparse.append((parameter, [max(count, 0) for count in own]))
    for device in dict.fromkeys(parameter.device for parameter, _ in sparse):
        _gather_rows([pair for pair in sparse if pair[0].device == device], group)
    for key in dict.fromkeys((parameter.device, parameter.dtype) for parameter in dense):
        alike = [parameter for parameter in dense if (parameter.device, parameter.dtype) == key]
        buffer = torch.cat([_dense(parameter).reshape(-1) for parameter in alike])
        group.add_up(buffer)
        for parameter, summed in zip(alike, buffer.split([p.numel() for p in alike]), strict=True):
            parameter.grad = summed.view_as(parameter)


def _kind(gradient: Tensor | None) -> int:
    if gradient is None:
        return -2
    return int(gradient._indices().shape[1]) if gradient.is_sparse else -1


def _dense(parameter: nn.Parameter) -> Tensor:
    gradient = parameter.grad
    if gradient is None:
        return torch.zeros_like(parameter)
    return gradient.to_dense() if gradient.is_sparse else gradient


def _gather_rows(tables: Sequence[tuple[nn.Parameter, list[int]]], group: Group) -> None:
    """Touched rows of several tables, in two collectives: all their ids, then all their values."""
    device = tables[0][0].device
    ids, values = [], []
    for parameter, _ in tables:
        gradient = parameter.grad
        if gradient is not None:
            ids.append(gradient._indices()[0].to(torch.int32))
            values.append(gradient._values().reshape(-1).float())
    counts = [[own[rank] for _, own in tables] for rank in range(group.size)]
    widths = [parameter.shape[1] for parameter, _ in tables]
    n_ids = [sum(own) for own in counts]
    n_values = [sum(n * width for n, width in zip(own, widths, strict=True)) for own in counts]
    empty = torch.zeros(0, device=device)
    all_ids = group.gather_parts(torch.cat([empty.to(torch.int32), *ids]), n_ids).split(
        [n for own in counts for n in own]
    )
    pieces = [n * width for own in counts for n, width in zip(own, widths, strict=True)]
    all_values = group.gather_parts(torch.cat([empty, *values]), n_values).split(pieces)
    for index, (parameter, _) in enumerate(tables):
        rows = torch.cat(all_ids[index :: len(tables)]).long()
        summed = torch.cat(all_values[index :: len(tables)]).view(-1, widths[index]).to(parameter.dtype)
        parameter.grad = torch.sparse_coo_tensor(rows.unsqueeze(0), summed, parameter.shape, check_invariants=False)


@torch.no_grad()
def differing(tensors: Mapping[str, Tensor], group: Group) -> str | None:
    """The first of these tensors that is not the same bytes in all processes."""
    sums = [_sum_of(tensor.detach()) for tensor in tensors.values()]
    if not sums:
        return None
    found = group.gather(torch.stack(sums))
    alike = (found == found[0]).all(dim=0).tolist()
    return next((name for name, same in zip(tensors, alike, strict=True) if not same), None)


def _sum_of(tensor: Tensor) -> Tensor:
    """A number that other bytes would hardly give, int64 on the CPU."""
    total = torch.zeros((), dtype=torch.int64, device=tensor.device)
    for part in tensor.contiguous().reshape(-1).split(SUMMED):
        words = part.view(torch.int32) if part.element_size() in (4, 8) else part.to(torch.int64)
        total = total * 31 + (words.long() * torch.arange(1, len(words) + 1, device=words.device)).sum()
    return total.cpu()

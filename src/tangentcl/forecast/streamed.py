"""Forecasts for a linear head over more old samples than memory holds."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from tangentcl.errors import DataError
from tangentcl.forecast.dynamics import Dynamics
from tangentcl.forecast.feature_blocks import Block, SampleBlocks, Source, checked, own_blocks
from tangentcl.forecast.forecast import Cost
from tangentcl.forecast.problem import head_matrix
from tangentcl.forecast.reduced import streamed_problem
from tangentcl.forecast.streamed_forecast import StreamedForecast
from tangentcl.forecast.verdicts import margin
from tangentcl.linalg import with_constant
from tangentcl.nn import GrowingLinear
from tangentcl.processes import joined, summed

PART = 1 << 22  # outputs of a block that are held at a time


def forecast_streamed(
    old: Source,
    head: nn.Linear | GrowingLinear,
    new: tuple[Tensor, Tensor] | Source,
    dynamics: Dynamics,
    *,
    columns: Sequence[int] | None = None,
    seen: int | None = None,
    moment: bool = True,
) -> StreamedForecast:
    r"""The forecast of `forecast_linear` in one pass over old features, which are never all in memory.

    Held are a few numbers per old sample, the head and its change [d, C], one block of features and of outputs, and
    the second moment of the old features [d, d], from which the energy of the drift in every eigenspace follows
    without a second pass. New samples are streamed too where the recipe allows it: squared error on the whole data
    needs only d rows that have the same :math:`\Phi^\top\Phi` and :math:`\Phi^\top Y`.

    When ``torch.distributed`` is initialised, the processes share the work: each takes one stretch of the old samples
    (and of streamed new ones), and every process returns the whole forecast.

    Args:
        old: `ArrayBlocks` (arrays on disk), `SampleBlocks` (a backbone), or any iterable of (features [B, d], labels
            int64 [B]); with several processes each passes its own part of a plain iterable, in order.
        head: a linear layer as it is when training starts, with a row for every new class.
        new: features [n2, d] with labels int64 [n2] or values [n2, C_active]; or blocks of these, as for ``old``.
        dynamics: the training recipe. One that needs every sample reads streamed new samples into memory.
        columns: outputs in the loss; None = all.
        seen: outputs that count for the accuracy now; None = all.
        moment: whether to keep the second moment; without it the result has no eigenspaces.

    Raises:
        DataError: shapes, labels or values that do not fit; no sample. ConfigError: a recipe that diverges.

    >>> from tangentcl.forecast import GradientDescent
    >>> head = nn.Linear(2, 2, bias=False)
    >>> nn.init.eye_(head.weight).shape
    torch.Size([2, 2])
    >>> blocks = [(torch.eye(2), torch.tensor([0, 1])), (torch.eye(2), torch.tensor([0, 1]))]
    >>> forecast = forecast_streamed(blocks, head, (torch.tensor([[0.0, 1.0]]), torch.tensor([0])),
    ...                              GradientDescent(lr=1.0, steps=2, loss="squared_error"))
    >>> forecast.accuracy(), forecast.vulnerable_rank(0.99)
    ((1.0, 0.5), 1)
    """
    began = time.perf_counter()
    n_outputs, d = head.weight.shape
    seen = n_outputs if seen is None else seen
    if not 1 < seen <= n_outputs:
        raise DataError(f"seen must be from 2 to the {n_outputs} outputs of the head, got {seen}")
    chosen = None if columns is None else [int(c) for c in columns]
    problem = streamed_problem(new, head, dynamics, chosen)
    moved = dynamics.displacement(problem)
    totals = _Totals(head_matrix(head.weight, head.bias).cpu(), moved.weight.cpu(), head.bias is not None, seen, moment)
    for block in own_blocks(old):
        totals.add(*checked(block, d, "old"))
    passes = sum(len(source) for source in (old, new) if isinstance(source, SampleBlocks))
    return totals.forecast(moved.residual, began, passes)


@dataclass
class _Totals:
    """What is kept of the blocks so far.

    Attributes:
        weight, change: of the head, float64 [d (+ 1), C]; bias: whether the last row is one.
    """

    weight: Tensor
    change: Tensor
    bias: bool
    seen: int
    with_moment: bool
    energy: float = 0.0
    kept: list[tuple[Tensor, ...]] = field(default_factory=list)

    def __post_init__(self) -> None:
        d = len(self.weight)
        self.moment = torch.zeros(d, d, dtype=torch.float64) if self.with_moment else None
        self._cast: dict[torch.dtype, tuple[Tensor, Tensor]] = {}

    def add(self, features: Tensor, labels: Tensor) -> None:
        """One block: features [B, d], labels int64 [B]."""
        if labels.ndim != 1 or labels.is_floating_point():
            raise DataError(f"expected whole numbers as labels of old samples, got {labels.dtype} {list(labels.shape)}")
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < self.seen:
            raise DataError(f"labels of old samples must be outputs from 0 to {self.seen - 1}, got {int(labels.max())}")
        features, labels = features.cpu(), labels.cpu().long()
        dtype = torch.promote_types(features.dtype, torch.float32)
        if dtype not in self._cast:
            self._cast[dtype] = self.weight.to(dtype), self.change.to(dtype)
        for part in _parts(features, labels, self.weight.shape[1]):
            self.kept.append(self._measured(*part, *self._cast[dtype]))
        if self.moment is not None:
            rows = with_constant(features, float(self.bias))
            self.moment.addmm_(rows.T, rows)

    def _measured(self, features: Tensor, labels: Tensor, weight: Tensor, change: Tensor) -> tuple[Tensor, ...]:
        outputs, drift = (_linear(features.to(weight.dtype), matrix, self.bias) for matrix in (weight, change))
        squared = drift.square().sum(dim=1, dtype=torch.float64)
        self.energy += float(squared.sum())
        known = outputs[:, : self.seen]
        now, margin_now = known.argmax(dim=1) == labels, margin(known, labels)
        after = outputs.add_(drift)
        return labels, now, after.argmax(dim=1) == labels, margin_now, margin(after, labels), squared.sqrt()

    def forecast(self, residual: float, began: float, passes: int) -> StreamedForecast:
        """The blocks of all processes together."""
        dtype = next(iter(self._cast), torch.float32)
        types = (torch.int64, torch.bool, torch.bool, dtype, dtype, torch.float64)
        empty = tuple(torch.zeros(0, dtype=kind) for kind in types)
        columns = [torch.cat(parts) for parts in zip(*(self.kept or [empty]))]
        labels, now, after, margin_now, margin_after, norms = (joined(column) for column in columns)
        if not len(labels):
            raise DataError("expected at least one old sample, got no block")
        return StreamedForecast(
            labels=labels,
            right=(now, after),
            margin=(margin_now, margin_after),
            drift_norm=norms,
            change=self.change,
            moment=None if self.moment is None else summed(self.moment),
            drift_energy=float(summed(torch.tensor([self.energy], dtype=torch.float64))),
            seen=self.seen,
            residual=residual,
            cost=Cost(time.perf_counter() - began, float(passes)),
        )


def _parts(features: Tensor, labels: Tensor, n_outputs: int) -> Iterator[Block]:
    """A block in pieces whose outputs are not too many."""
    rows = max(1, PART // n_outputs)
    return zip(features.split(rows), labels.split(rows))


def _linear(features: Tensor, matrix: Tensor, bias: bool) -> Tensor:
    """Features [B, d] (and a constant) times [d (+ 1), C]."""
    return torch.addmm(matrix[-1], features, matrix[:-1]) if bias else features @ matrix

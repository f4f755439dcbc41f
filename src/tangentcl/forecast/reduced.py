"""Many new samples as d rows that train a squared error alike."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from tangentcl.errors import DataError
from tangentcl.forecast.closed_form import GradientFlow, Ridge
from tangentcl.forecast.dynamics import Dynamics
from tangentcl.forecast.feature_blocks import FeatureBlocks, Source, checked, own_blocks
from tangentcl.forecast.gradient_descent import GradientDescent
from tangentcl.forecast.problem import LinearProblem, linear_problem
from tangentcl.forecast.protected_ridge import ProtectedRidge
from tangentcl.nn import GrowingLinear
from tangentcl.processes import joined, rank_and_world, summed

Columns = list[int] | None


def sums_suffice(dynamics: Dynamics) -> bool:
    r"""Whether a recipe sees the new samples through :math:`\Phi^\top\Phi` and :math:`\Phi^\top Y` alone.

    So it is for squared error on the whole data. Cross-entropy and mini-batches need every sample.

    >>> sums_suffice(Ridge(strength=1.0)), sums_suffice(GradientDescent(lr=0.1, steps=2))
    (True, False)
    """
    whole = isinstance(dynamics, (Ridge, ProtectedRidge, GradientFlow, GradientDescent))
    return whole and dynamics.loss == "squared_error"


def streamed_problem(
    new: tuple[Tensor, Tensor] | Source, head: nn.Linear | GrowingLinear, dynamics: Dynamics, columns: Columns
) -> LinearProblem:
    """The problem of a head on new samples: (features, targets), or blocks, reduced where the recipe allows it.

    Raises:
        DataError: no new sample, or blocks that every process was to read and cannot.
    """
    if isinstance(new, tuple) and len(new) == 2 and isinstance(new[0], Tensor) and isinstance(new[1], Tensor):
        return linear_problem(new[0], head.weight, head.bias, new[1], columns)
    blocks = cast("Source", new)
    return reduced_problem(blocks, head, columns) if sums_suffice(dynamics) else whole_problem(blocks, head, columns)


def reduced_problem(new: Source, head: nn.Linear | GrowingLinear, columns: Columns) -> LinearProblem:
    r"""With :math:`\Phi = QR`, the rows R [d, d] and targets :math:`Q^\top Y` have the same sums as all n samples.

    A QR factorisation, updated block by block, and not a Cholesky factor of :math:`\Phi^\top\Phi`, which would square
    the condition number. Each process reduces its blocks; the triangles are then reduced once more.
    """
    nothing = torch.zeros_like(head.weight[:1]), torch.tensor([columns[0] if columns else 0])
    example = linear_problem(nothing[0], head.weight, head.bias, nothing[1], columns)
    rows, targets, n = example.features[:0], example.targets[:0], 0
    for block in own_blocks(new):
        features, labels = checked(block, head.weight.shape[1], "new")
        part = linear_problem(features, head.weight, head.bias, labels, columns)
        n += len(features)
        rows, targets = _triangle(torch.cat([rows, part.features]), torch.cat([targets, part.targets]))
    n = int(summed(torch.tensor([n])))
    if not n:
        raise DataError("expected at least one new sample, got no block")
    if rank_and_world()[1] > 1:
        rows, targets = _triangle(joined(rows), joined(targets))
    return LinearProblem(rows, example.weight, targets, example.columns, samples=n)


def whole_problem(new: Source, head: nn.Linear | GrowingLinear, columns: Columns) -> LinearProblem:
    """All new samples in memory; every process reads all of them."""
    if rank_and_world()[1] > 1 and not isinstance(new, FeatureBlocks):
        raise DataError(
            "this recipe needs every new sample in every process, and plain blocks are a process's own. "
            "Pass (features, targets), ArrayBlocks or SampleBlocks."
        )
    blocks = new.stretch(0, len(new)) if isinstance(new, FeatureBlocks) else iter(new)
    parts = [checked(block, head.weight.shape[1], "new") for block in blocks]
    if not parts:
        raise DataError("expected at least one new sample, got no block")
    features, targets = (torch.cat(tensors) for tensors in zip(*parts))
    return linear_problem(features, head.weight, head.bias, targets, columns)


def _triangle(rows: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """R [<= d, d] and Q^T Y [<= d, C] of rows [m, d] and their targets."""
    Q, R = torch.linalg.qr(rows)
    return R, Q.T @ targets

"""Training step by step in coordinates where a step is cheap."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from tangentcl.errors import DataError
from tangentcl.forecast.problem import LinearProblem, loss_residual
from tangentcl.forecast.rules import Rule
from tangentcl.forecast.spaces import Rows, Space


def recurse(
    problem: LinearProblem,
    space: Space,
    rule: Rule,
    loss: str,
    rates: Sequence[float],
    batches: Sequence[Rows],
    pull: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Train step by step in the coordinates of ``space``; the change of the weights in the loss, [d, C_active].

    Args:
        pull: gradient of what is added to the loss, in the same coordinates.
    """
    state = space.start.clone()
    for rate, rows in zip(rates, batches, strict=True):
        targets = problem.targets[rows]
        residual = loss_residual(loss, space.outputs(rows, state), targets) / len(targets)
        gradient = space.gradient(rows, residual)
        rule(state, gradient if pull is None else gradient + pull(state), rate)
    return space.change(state)


def batch_rows(batches: Sequence[Sequence[int]], n: int, device: torch.device) -> list[Rows]:
    """Index lists as tensors. Raises DataError for an empty batch or an index that is no new sample."""
    rows: list[Rows] = []
    for step, batch in enumerate(batches):
        index = torch.as_tensor(batch, dtype=torch.int64, device=device)
        if index.ndim != 1 or not len(index) or int(index.min()) < 0 or int(index.max()) >= n:
            raise DataError(
                f"batch {step} must hold positions from 0 to {n - 1} of the new samples, got {list(batch)[:8]}"
            )
        rows.append(index)
    return rows

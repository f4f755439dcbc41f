"""The exact forecast: a linear head on features that stay as they are."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tangentcl.errors import DataError
from tangentcl.forecast.dynamics import Displacement, Dynamics
from tangentcl.forecast.forecast import Forecast
from tangentcl.forecast.old_kernel import FeatureModes
from tangentcl.forecast.problem import LinearProblem, head_matrix, linear_problem
from tangentcl.linalg.operator import BLOCK
from tangentcl.nn import GrowingLinear


def forecast_linear(
    features_old: Tensor,
    head: nn.Linear | GrowingLinear,
    features_new: Tensor,
    targets_new: Tensor,
    dynamics: Dynamics,
    *,
    columns: Sequence[int] | None = None,
    seen: int | None = None,
    labels_old: Tensor | None = None,
) -> Forecast:
    r"""Forecast for a linear head on features: :math:`D = \Phi_o (W_T - W_0)`.

    The displacement of the head is computed in float64 whatever the features are in; outputs and drift in the
    precision of the old features (at least float32). No matrix is larger than [n, C], [d, C] or [m, m] with m the
    smaller of n2 and d.

    Args:
        features_old: [n1, d].
        head: a linear layer as it is when training starts, with a row for every new class.
        features_new: [n2, d].
        targets_new: labels int64 [n2], or values [n2, C_active].
        dynamics: the training recipe.
        columns: outputs in the loss; None = all.
        seen: outputs that count for the accuracy now; None = all.
        labels_old: int64 [n1], for accuracies and margins; may be given later.

    Raises:
        DataError: shapes, labels or values that do not fit. ConfigError: a recipe that diverges.

    >>> from tangentcl.forecast import GradientDescent
    >>> head = nn.Linear(2, 2, bias=False)
    >>> nn.init.eye_(head.weight).shape
    torch.Size([2, 2])
    >>> forecast = forecast_linear(torch.eye(2), head, torch.tensor([[0.0, 1.0]]), torch.tensor([0]),
    ...                            GradientDescent(lr=1.0, steps=2, loss="squared_error"))
    >>> forecast.drift
    tensor([[ 0.,  0.],
            [ 1., -1.]])
    >>> forecast.accuracy(torch.tensor([0, 1]))
    (1.0, 0.5)
    """
    problem = linear_problem(features_new, head.weight, head.bias, targets_new, columns)
    return linear_forecast(features_old, head, problem, dynamics, seen=seen, labels_old=labels_old)


def linear_forecast(
    features: Tensor,
    head: nn.Linear | GrowingLinear,
    problem: LinearProblem,
    dynamics: Dynamics,
    *,
    seen: int | None,
    labels_old: Tensor | None,
    notes: tuple[str, ...] = (),
    moved: Displacement | None = None,
) -> Forecast:
    """`forecast_linear` for a problem that is made already, or solved already; with notes it is not exact."""
    n_outputs, d = head.weight.shape
    if features.ndim != 2 or features.shape[1] != d or not len(features):
        raise DataError(f"expected features of old samples [n, {d}], got {list(features.shape)}")
    seen = n_outputs if seen is None else seen
    if not 0 < seen <= n_outputs:
        raise DataError(f"seen must be from 1 to the {n_outputs} outputs of the head, got {seen}")
    moved = dynamics.displacement(problem) if moved is None else moved
    dtype = torch.promote_types(features.dtype, torch.float32)
    outputs = _linear(features, head_matrix(head.weight, head.bias).to(features.device), head.bias is not None, dtype)
    drift = _linear(features, moved.weight.to(features.device), head.bias is not None, dtype)
    if not bool(outputs.isfinite().all()):
        raise DataError("the features of the old samples must be finite")
    return Forecast(
        outputs=outputs,
        drift=drift,
        seen=seen,
        old_kernel=FeatureModes(
            features.detach(), head.bias is not None, problem if dynamics.in_span else None, dynamics.loss
        ),
        exact=not notes,
        residual=moved.residual,
        notes=notes,
        labels=labels_old,
    )


def _linear(features: Tensor, matrix: Tensor, bias: bool, dtype: torch.dtype) -> Tensor:
    """Features [n, d] (and a constant) times [d (+ 1), C] in ``dtype``, block by block, [n, C]."""
    matrix = matrix.to(dtype)
    weight, constant = (matrix[:-1], matrix[-1]) if bias else (matrix, torch.zeros_like(matrix[0]))
    result = torch.empty(len(features), matrix.shape[1], dtype=dtype, device=features.device)
    for block, rows in zip(features.detach().split(BLOCK), result.split(BLOCK)):
        torch.addmm(constant, block.to(dtype), weight, out=rows)
    return result

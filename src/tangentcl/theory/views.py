"""What several views of a sample are worth (Q10)."""

from __future__ import annotations

import torch
from torch import Tensor

from tangentcl.errors import DataError
from tangentcl.linalg import ridge, with_constant


def view_correlation(residuals: Tensor) -> float:
    r"""Q10: :math:`\bar\rho`, the mean over pairs of views of the correlation of their residuals over samples.

    Each residual is taken around its mean over samples, output by output.

    Args:
        residuals: [V, n, C] for V >= 2 views of n >= 2 samples.

    Raises:
        DataError: fewer views or samples.

    >>> r = torch.tensor([[1.0], [2.0], [4.0]])
    >>> round(view_correlation(torch.stack([r, r])), 12), round(view_correlation(torch.stack([r, -r])), 12)
    (1.0, -1.0)
    """
    if residuals.ndim != 3 or len(residuals) < 2 or residuals.shape[1] < 2:
        raise DataError(f"expected residuals [V, n, C] of two views and samples or more, got {list(residuals.shape)}")
    rows = residuals.to(torch.float64)
    rows = (rows - rows.mean(dim=1, keepdim=True)).flatten(1)  # [V, n C]
    norms = rows.norm(dim=1)
    correlation = (rows @ rows.T) / torch.outer(norms, norms).clamp(min=1e-300)
    upper = torch.triu_indices(len(rows), len(rows), offset=1)
    return float(correlation[upper[0], upper[1]].mean())


def effective_samples(n: int, views: int, correlation: float) -> float:
    r"""Q10: :math:`V n / (1 + (V - 1)\bar\rho)`, how many independent samples V correlated views of n samples are.

    The variance of a mean of V numbers with correlation :math:`\bar\rho` is :math:`(1 + (V - 1)\bar\rho) / V` of one
    number's. Views that are the same are one view; ridge with them is ridge with :math:`\lambda / V`.

    >>> effective_samples(100, 3, 1.0), effective_samples(100, 3, 0.0)
    (100.0, 300.0)
    """
    spread = 1 + (views - 1) * correlation
    if n < 1 or views < 1 or spread <= 0:
        raise DataError(f"no {views} views of {n} samples have a mean correlation of {correlation:g}")
    return views * n / spread


def held_out_residuals(views: Tensor, targets: Tensor, strength: float) -> Tensor:
    """Residuals of one ridge head for all views, of samples it was not fitted on, float64 [V, n, C].

    The head is fitted on all views of every second sample, and leaves the residuals of the others; then the other way
    round. Residuals of samples it was fitted on would be alike because of the fit.

    Args:
        views: features [V, n, d]. targets: [n, C]. strength: of the ridge, for the samples of one view.
    """
    if views.ndim != 3 or views.shape[1] != len(targets) or len(targets) < 2:
        raise DataError(f"expected views [V, n, d] and targets [n, C], got {list(views.shape)}, {list(targets.shape)}")
    V, y = len(views), targets.to(torch.float64)
    found = torch.empty(V, *y.shape, dtype=torch.float64)
    for own in (0, 1):
        fitted = torch.cat([with_constant(view[1 - own :: 2], 1.0) for view in views])
        head, _ = ridge(fitted, y[1 - own :: 2].repeat(V, 1), strength)
        for v, view in enumerate(views):
            found[v, own::2] = y[own::2] - with_constant(view[own::2], 1.0) @ head
    return found

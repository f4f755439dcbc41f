"""How many directions a kernel really has (Q8)."""

from __future__ import annotations

import math

from torch import Tensor

from tangentcl.errors import ConfigError


def effective_dimension(values: Tensor, ridge: float) -> float:
    r"""Q8: :math:`\mathrm{tr}\,K(K + \lambda I)^{-1}`, the degrees of freedom of a ridge (Hastie and Tibshirani, 1990).

    Args:
        values: eigenvalues of K; those that are zero may be left out. ridge: lambda > 0.

    Raises:
        ConfigError: a ridge that is not positive.

    >>> import torch
    >>> effective_dimension(torch.tensor([3.0, 1.0]).double(), 1.0)
    1.25
    """
    if not ridge > 0:
        raise ConfigError(f"an effective dimension needs a positive ridge, got {ridge}")
    return float((values / (values + ridge)).sum())


def participation_ratio(values: Tensor) -> float:
    r"""Q8: :math:`(\sum_i s_i)^2 / \sum_i s_i^2`, between 1 and the rank; NaN without an eigenvalue.

    >>> import torch
    >>> participation_ratio(torch.tensor([2.0, 2.0, 0.0]).double())
    2.0
    """
    squares = float(values.square().sum())
    return float(values.sum()) ** 2 / squares if squares > 0 else math.nan

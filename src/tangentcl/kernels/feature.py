"""The tangent kernel of a linear head on frozen features."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tangentcl.errors import ModelError
from tangentcl.kernels.kernel import Kernel
from tangentcl.linalg import GramOperator, KroneckerIdentity


class FeatureKernel(Kernel):
    r""":math:`K(x_1, x_2) = (\Phi_1 \Phi_2^\top + 1 1^\top) \otimes I_C`, the term :math:`1 1^\top` with a bias only.

    The exact tangent kernel of :math:`f(x) = W\phi(x) + b` in W and b. It is never written down: its action on a
    vector costs O((n1 + n2) d C).

    Args:
        n_outputs: C.
        features: maps a batch to features [n, d] (a frozen backbone); None takes batches that are features already.
        bias: whether the head has a bias.

    >>> kernel = FeatureKernel(3)
    >>> K = kernel(torch.eye(2), torch.ones(4, 2))
    >>> K.shape, K.apply(torch.ones(4, 3)).shape
    ((6, 12), torch.Size([2, 3]))
    """

    exact = True

    def __init__(self, n_outputs: int, features: Callable[[Any], Tensor] | None = None, *, bias: bool = True) -> None:
        self.n_outputs, self.features, self.bias = n_outputs, features, bias

    def __call__(self, x1: Any, x2: Any = None) -> KroneckerIdentity:
        A = self._features(x1)
        B = None if x2 is None else self._features(x2)
        return KroneckerIdentity(GramOperator(A, B, constant=float(self.bias)), self.n_outputs)

    def _features(self, x: Any) -> Tensor:
        with torch.no_grad():
            found = x if self.features is None else self.features(x)
        if not isinstance(found, Tensor) or found.ndim != 2:
            what = list(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise ModelError(f"expected features [n, d], got {what}")
        return found.detach()

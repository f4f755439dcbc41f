"""The conjugate kernel: what a linear head alone would see."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tangentcl.kernels.batch import chunks
from tangentcl.kernels.kernel import Kernel
from tangentcl.kernels.network import Network, Outputs
from tangentcl.linalg import GramOperator, KroneckerIdentity


class ConjugateKernel(Kernel):
    r""":math:`K(x_1, x_2) = \Phi_1 \Phi_2^\top \otimes I_C` with the features of the last layer.

    The part of the tangent kernel that belongs to the weights of a linear head. An approximation as soon as anything
    else trains, and not a substitute for it: it is blind to how features move.

    Args:
        model: a module. n_outputs: C. features: ``features(model, batch) -> [n, d]``; None calls ``model(batch)``.

    >>> kernel = ConjugateKernel(nn.Linear(4, 6), n_outputs=3)
    >>> kernel(torch.ones(2, 4)).shape, kernel.exact
    ((6, 6), False)
    """

    exact = False
    approximation = "the weights of a linear head alone move: everything below it is taken as frozen"

    def __init__(
        self, model: nn.Module, n_outputs: int, features: Outputs | None = None, chunk_size: int = 256
    ) -> None:
        self.model, self.n_outputs, self.features, self.chunk_size = model, n_outputs, features, chunk_size

    def __call__(self, x1: Any, x2: Any = None) -> KroneckerIdentity:
        A = self._features(x1)
        B = None if x2 is None else self._features(x2)
        return KroneckerIdentity(GramOperator(A, B), self.n_outputs)

    def _features(self, x: Any) -> Tensor:
        network = Network(self.model, self.features, parameters=())
        with network.evaluating(), torch.no_grad():
            network.check(x)
            return torch.cat([network(part) for part in chunks(x, self.chunk_size)])

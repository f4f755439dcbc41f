"""Coordinates in which a recursion on a linear head is cheap."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from tangentcl.forecast.problem import LinearProblem

Rows = slice | Tensor  # samples of a batch


class Space(ABC):
    """A linear parametrisation of the weights in the loss.

    Attributes:
        start: coordinates before training, [m, C_active].
    """

    start: Tensor

    @abstractmethod
    def outputs(self, rows: Rows, state: Tensor) -> Tensor:
        """Outputs of some samples, [B, C_active]."""

    @abstractmethod
    def gradient(self, rows: Rows, residual: Tensor) -> Tensor:
        """Coordinates of the gradient whose output residuals are [B, C_active], [m, C_active]."""

    @abstractmethod
    def change(self, state: Tensor) -> Tensor:
        """Change of the weights since the start, [d, C_active]."""


class FeatureSpace(Space):
    r"""The weights themselves: :math:`F_b = \Phi_b W`, :math:`\nabla = \Phi_b^\top R_b`. O(B d C) per step.

    The only space for recipes that treat each weight by its own history (AdamW), which depend on the basis.
    """

    def __init__(self, problem: LinearProblem) -> None:
        self.features, self.start = problem.features, problem.active

    def outputs(self, rows: Rows, state: Tensor) -> Tensor:
        return self.features[rows] @ state

    def gradient(self, rows: Rows, residual: Tensor) -> Tensor:
        return self.features[rows].T @ residual

    def change(self, state: Tensor) -> Tensor:
        return state - self.start


class SampleSpace(Space):
    r"""Dual coefficients: :math:`W = \Phi^\top a + \rho W_0`. O(B n C) per step, for recipes linear in the gradient.

    The state is a [n, C] with one more row, rho: the share of the initial weights that decay has left. With
    :math:`K = \Phi\Phi^\top`, :math:`F_b = K_b a + \rho F_{0,b}`, and a gradient is the residuals put at the rows of
    the batch.
    """

    def __init__(self, problem: LinearProblem) -> None:
        self.features, self.weight = problem.features, problem.active
        self.kernel = self.features @ self.features.T  # [n, n]
        self.initial = self.features @ self.weight  # [n, C]
        self.start = torch.zeros(len(self.features) + 1, self.weight.shape[1]).to(self.weight)
        self.start[-1] = 1.0

    def outputs(self, rows: Rows, state: Tensor) -> Tensor:
        return self.kernel[rows] @ state[:-1] + self.initial[rows] * state[-1]

    def gradient(self, rows: Rows, residual: Tensor) -> Tensor:
        full = torch.zeros_like(self.start)
        if isinstance(rows, slice):
            full[:-1][rows] = residual
        else:
            full.index_add_(0, rows, residual)  # a sample may occur twice in a batch
        return full

    def change(self, state: Tensor) -> Tensor:
        return self.features.T @ state[:-1] + self.weight * (state[-1] - 1.0)


def cheaper_space(problem: LinearProblem) -> Space:
    """Sample space for n < d, else feature space. Only for recipes that do not depend on the basis."""
    n, d = problem.features.shape
    return SampleSpace(problem) if n < d else FeatureSpace(problem)

"""The interface of every kernel."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from tangentcl.linalg import LinearOperator


class Kernel(ABC):
    """How a change at one batch moves the outputs at another: :math:`K(x_1, x_2) = J(x_1) J(x_2)^\\top`.

    Outputs flatten sample-major: output c of sample i has index ``i * n_outputs + c``.

    Attributes:
        n_outputs: outputs per sample, C.
        exact: whether this is the tangent kernel itself, or an approximation of it.
    """

    n_outputs: int
    exact: bool

    @abstractmethod
    def __call__(self, x1: Any, x2: Any = None) -> LinearOperator:
        """The operator ``R^(n2 C) -> R^(n1 C)``; symmetric, between ``x1`` and itself, without ``x2``."""

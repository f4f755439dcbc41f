"""A recipe whose loss has a penalty on the parameters beside it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from tangentcl.errors import ConfigError
from tangentcl.forecast.dynamics import Dynamics, Penalty, Steps
from tangentcl.forecast.problem import LinearProblem
from tangentcl.forecast.recursion import recurse
from tangentcl.forecast.spaces import FeatureSpace


@dataclass(frozen=True, kw_only=True)
class Penalised(Dynamics):
    r"""Steps of another recipe on :math:`L + P(\theta)`, such as a spectral regulariser's.

    For a linear head it is exact, one d x C step after the other, as long as the penalty is a function of the head;
    else the local model is trained with it.

    Args:
        inner: a recipe that is made of steps: `SGD`, `AdamW`, `GradientDescent`.
        penalty: a differentiable function of the values of what trains, by name in the model.
        weight, bias: names of the head's parameters in the model; the bias None where there is none. Needed for the
            exact form alone.

    Raises:
        ConfigError: a recipe that is not made of steps.

    >>> from tangentcl.forecast import GradientDescent
    >>> pull = lambda values: 5.0 * values["weight"].square().sum()
    >>> Penalised(inner=GradientDescent(lr=0.1, steps=3), penalty=pull, weight="weight").loss
    'cross_entropy'
    """

    inner: Dynamics
    penalty: Penalty = field(repr=False)
    weight: str | None = None
    bias: str | None = None

    def __post_init__(self) -> None:
        if not self.inner.has_steps:
            raise ConfigError(
                f"{type(self.inner).__name__} is not made of steps, so no penalty can be added to them. "
                "Use SGD, AdamW or GradientDescent; for squared error with a penalty there is ProtectedRidge."
            )

    @property
    def loss(self) -> str:  # type: ignore[override]
        """That of the inner recipe."""
        return self.inner.loss

    @property
    def in_span(self) -> bool:
        return False  # the penalty turns updates away from the new features

    def learn(self, problem: LinearProblem) -> tuple[Tensor, float]:
        if self.weight is None:
            raise ConfigError("the exact form of a recipe with a penalty needs the name of the head's weight")
        steps = self.inner.stepwise(len(problem.features), problem.features.device)
        space = FeatureSpace(problem)
        whole = problem.weight.clone()

        def pull(state: Tensor) -> Tensor:
            moved = whole.index_copy(1, problem.columns, state).requires_grad_()
            with torch.enable_grad():
                (gradient,) = torch.autograd.grad(self.penalty(self._values(moved)), moved)
            return gradient[:, problem.columns]

        return recurse(problem, space, steps.rule(), self.loss, steps.head_rates, steps.rows, pull), 0.0

    def idle_change(self) -> float:
        return self.inner.idle_change()

    def stepwise(self, n: int, device: torch.device) -> Steps:
        return replace(self.inner.stepwise(n, device), penalty=self.penalty)

    def _values(self, matrix: Tensor) -> Mapping[str, Tensor]:
        """The head's parameters by name, of a matrix [d (+ 1), C]."""
        assert self.weight is not None
        if self.bias is None:
            return {self.weight: matrix.T}
        return {self.weight: matrix[:-1].T, self.bias: matrix[-1]}

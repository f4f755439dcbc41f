"""What a problem refuses, and its losses."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tangentcl.errors import ConfigError, DataError
from tangentcl.forecast import linear_problem
from tangentcl.forecast.problem import check_loss, loss_residual

HEAD = nn.Linear(3, 4)
X, Y = torch.randn(5, 3), torch.tensor([0, 1, 2, 3, 3])


@pytest.mark.parametrize("loss", ["cross_entropy", "squared_error"])
def test_residuals_are_gradients(loss: str) -> None:
    outputs = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    one_hot = F.one_hot(Y, 4).double()
    value = F.cross_entropy(outputs, Y, reduction="sum")
    if loss == "squared_error":
        value = 0.5 * (outputs - one_hot).square().sum()
    (gradient,) = torch.autograd.grad(value, outputs)
    torch.testing.assert_close(loss_residual(loss, outputs.detach(), one_hot), gradient)


def test_the_problem_is_in_float64_with_a_constant_feature() -> None:
    problem = linear_problem(X, HEAD.weight, HEAD.bias, Y)
    assert problem.features.dtype == problem.weight.dtype == problem.targets.dtype == torch.float64
    assert problem.features.shape == (5, 4)
    torch.testing.assert_close(problem.features @ problem.weight, HEAD(X).detach().double())
    values = torch.randn(5, 2)
    assert torch.equal(linear_problem(X, HEAD.weight, None, values, [3, 1]).targets, values.double())


def test_what_does_not_fit_is_named() -> None:
    with pytest.raises(DataError, match=r"labels \[0, 1\] of the new samples are not among the outputs"):
        linear_problem(X, HEAD.weight, HEAD.bias, Y, [2, 3])
    with pytest.raises(DataError, match="different outputs from 0 to 3"):
        linear_problem(X, HEAD.weight, HEAD.bias, Y, [2, 4])
    with pytest.raises(DataError, match="expected 5 labels"):
        linear_problem(X, HEAD.weight, HEAD.bias, Y[:2])
    with pytest.raises(DataError, match=r"expected targets \[5, 4\], got \[5, 3\]"):
        linear_problem(X, HEAD.weight, HEAD.bias, X)
    with pytest.raises(DataError, match=r"a weight \[C, d\], got \[5, 3\] and \[3, 4\]"):
        linear_problem(X, HEAD.weight.T, HEAD.bias, Y)
    with pytest.raises(DataError, match="features of the new samples' problem must be finite"):
        linear_problem(X / 0, HEAD.weight, HEAD.bias, Y)
    with pytest.raises(ConfigError, match="Did you mean 'cross_entropy'"):
        check_loss("cross_entropie")

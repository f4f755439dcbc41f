"""Directions of features against gradients from autograd and training by torch.optim."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tangentcl.forecast.directions import STEPS, feature_directions, orthonormal, output_directions
from tangentcl.forecast.problem import LinearProblem, linear_problem

N, D, C = 9, 12, 5


def _case(bias: bool = True, columns: list[int] | None = None) -> tuple[LinearProblem, nn.Linear, Tensor]:
    torch.manual_seed(0)
    features, head = torch.randn(N, D).double(), nn.Linear(D, C, bias=bias).double()
    labels = torch.randint(3, C, (N,))
    return linear_problem(features, head.weight, head.bias, labels, columns), head, labels


def _loss(loss: str, f: Tensor, labels: Tensor, columns: list[int] | None) -> Tensor:
    chosen = list(range(C)) if columns is None else columns
    f, y = f[:, chosen], torch.tensor([chosen.index(int(label)) for label in labels])
    if loss == "cross_entropy":
        return F.cross_entropy(f, y, reduction="sum")
    return 0.5 * (f - F.one_hot(y, len(chosen))).square().sum()


def _pulls(loss: str, columns: list[int] | None, bias: bool, trains: bool = True) -> Tensor:
    """Gradients of the losses in the features while torch.optim trains the head, at 0, 1, 2, 4, ... steps."""
    problem, head, labels = _case(bias, columns)
    features = problem.features[:, :D].clone().requires_grad_()
    curvature = float(torch.linalg.eigvalsh(problem.features.T @ problem.features / N)[-1])
    rate = (1.0 if loss == "cross_entropy" else 0.5) / curvature
    optimizer = torch.optim.SGD(head.parameters(), lr=rate, momentum=0.9)
    wanted = {0, *(2**k for k in range(STEPS.bit_length()))} if trains else {0}
    found = []
    for step in range(max(wanted) + 1):
        total = _loss(loss, head(features), labels, columns)
        if step in wanted:
            found.append(torch.autograd.grad(total, features, retain_graph=True)[0])
        optimizer.zero_grad()
        (total / N).backward()
        optimizer.step()
    return torch.stack(found, dim=1)  # [n, times, d]


def _projected(rows: Tensor, P: Tensor) -> Tensor:
    """The part of rows [n, times, d] inside the span of P [n, k, d]."""
    return rows @ P.transpose(1, 2) @ P


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("columns", [None, [4, 3]])
@pytest.mark.parametrize("loss", ["cross_entropy", "squared_error"])
def test_own_directions_hold_most_of_the_pulls(loss: str, columns: list[int] | None, bias: bool) -> None:
    problem, _, _ = _case(bias, columns)
    pulls = _pulls(loss, columns, bias)
    for own in (1, 3):
        P = feature_directions(problem, loss, own, 0, width=D)
        assert P.shape == (N, own, D)
        torch.testing.assert_close(P @ P.transpose(1, 2), torch.eye(own).double().expand(N, -1, -1))
        for i in range(N):  # no own directions are better: Eckart and Young
            s = torch.linalg.svdvals(pulls[i])
            lost = (pulls[i] - _projected(pulls[i : i + 1], P[i : i + 1])[0]).norm()
            assert float(lost) == pytest.approx(float(s[own:].norm()), rel=1e-6, abs=1e-9)


def test_shared_directions_hold_most_of_everybodys_pulls() -> None:
    problem, _, _ = _case()
    rows = _pulls("cross_entropy", None, True).flatten(0, 1)
    P = feature_directions(problem, "cross_entropy", 0, 2, width=D)
    assert P.shape == (N, 2, D)
    assert all(torch.allclose(p.T @ p, P[0].T @ P[0]) for p in P)
    lost = rows - rows @ P[0].T @ P[0]
    assert float(lost.norm()) == pytest.approx(float(torch.linalg.svdvals(rows)[2:].norm()), rel=1e-9)


def test_own_and_shared_together_and_a_frozen_head() -> None:
    problem, head, _ = _case()
    both = feature_directions(problem, "cross_entropy", 2, 2, width=D)
    assert both.shape == (N, 4, D)
    torch.testing.assert_close(both @ both.transpose(1, 2), torch.eye(4).double().expand(N, -1, -1))
    for own, shared in ((2, 0), (0, 2)):
        P = feature_directions(problem, "cross_entropy", own, shared, width=D)
        torch.testing.assert_close(_projected(P, both), P)
    whole = feature_directions(problem, "cross_entropy", 4, 20, width=D)
    assert whole.shape == (N, D, D)  # no more than there are
    torch.testing.assert_close(whole @ whole.transpose(1, 2), torch.eye(D).double().expand(N, -1, -1))

    frozen = feature_directions(problem, "cross_entropy", 1, C, width=D, trains=False)
    rows = head.weight.detach().expand(N, -1, -1)
    torch.testing.assert_close(_projected(rows, frozen), rows)  # what reads the features is in it
    pulls = _pulls("cross_entropy", None, True, trains=False)
    torch.testing.assert_close(_projected(pulls, frozen), pulls)


def test_directions_of_outputs() -> None:
    torch.manual_seed(0)
    f, columns = torch.randn(3, 6), torch.tensor([5, 2, 0, 1])
    residual = torch.tensor([[0.1, -3.0, 2.0, 0.0], [1.0, 0.0, 0.0, -2.0], [0.0, 0.3, 0.2, 0.1]])
    every = output_directions(f, residual, columns, 4)
    assert all(torch.equal(p.argmax(dim=1), columns) for p in every)
    few = output_directions(f, residual, columns, 2)
    assert [p.argmax(dim=1).tolist() for p in few] == [[2, 0], [1, 5], [2, 0]]
    assert bool((few.sum(dim=2) == 1).all())


def test_rows_are_made_orthonormal() -> None:
    rows = torch.randn(2, 3, 7, generator=torch.Generator().manual_seed(0)).double()
    Q = orthonormal(rows)
    torch.testing.assert_close(Q @ Q.transpose(1, 2), torch.eye(3).double().expand(2, -1, -1))
    torch.testing.assert_close(_projected(rows, Q), rows)
    assert orthonormal(torch.randn(2, 9, 4).double()).shape == (2, 4, 4)

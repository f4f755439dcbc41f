"""The anchored ridge against dense algebra, and over several tasks against the recursion in dual form."""

from __future__ import annotations

import pytest
import torch

from tangentcl.errors import ConfigError, DataError
from tangentcl.theory import anchored_ridge


@pytest.mark.parametrize("n", [4, 20])
def test_a_step_is_the_dense_solution(n: int) -> None:
    torch.manual_seed(0)
    phi, y, f = (torch.randn(n, k, dtype=torch.float64) for k in (6, 3, 3))
    step = anchored_ridge(phi, y, f, 0.7)
    dual = torch.linalg.solve(phi @ phi.T + 0.7 * torch.eye(n, dtype=torch.float64), y - f)
    torch.testing.assert_close(step.dual, dual, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(step.change, phi.T @ dual, rtol=1e-10, atol=1e-12)
    assert step.radius == pytest.approx(float((dual * (phi @ phi.T @ dual)).sum().sqrt()), rel=1e-12)


def test_task_after_task_outputs_are_the_sum_over_tasks_of_kernel_times_dual() -> None:
    torch.manual_seed(1)
    tasks = [torch.randn(n, 5, dtype=torch.float64) for n in (4, 9, 6)]
    x, head = torch.randn(8, 5, dtype=torch.float64), torch.zeros(5, 2, dtype=torch.float64)
    outputs = torch.zeros(8, 2, dtype=torch.float64)
    for phi in tasks:
        y = torch.randn(len(phi), 2, dtype=torch.float64)
        step = anchored_ridge(phi, y, phi @ head, 0.3)
        # The gradient of the anchored loss vanishes where the step ends.
        after = head + step.change
        assert float((phi.T @ (phi @ after - y) + 0.3 * (after - head)).abs().max()) < 1e-12
        # What is left on the task itself is -lambda alpha.
        torch.testing.assert_close(phi @ after - y, -0.3 * step.dual, rtol=1e-9, atol=1e-11)
        head, outputs = after, outputs + (x @ phi.T) @ step.dual
    torch.testing.assert_close(x @ head, outputs, rtol=1e-10, atol=1e-12)


def test_what_cannot_be_solved_is_refused() -> None:
    with pytest.raises(ConfigError, match="positive"):
        anchored_ridge(torch.eye(2), torch.ones(2, 1), torch.zeros(2, 1), 0.0)
    with pytest.raises(DataError, match=r"\[2, C\]"):
        anchored_ridge(torch.eye(2), torch.ones(3, 1), torch.zeros(3, 1), 1.0)

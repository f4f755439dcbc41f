"""Leave-one-out against leaving one out, GCV against its definition, learning curves against simulation."""

from __future__ import annotations

import pytest
import torch

from tangentcl.errors import ConfigError, DataError
from tangentcl.linalg import gram_spectrum
from tangentcl.theory import learning_curve, risk_curve

RIDGES = torch.tensor([1e-3, 0.3, 20.0], dtype=torch.float64)


@pytest.mark.parametrize("n", [5, 14])
def test_leave_one_out_is_what_leaving_one_out_gives(n: int) -> None:
    torch.manual_seed(0)
    x, y = torch.randn(n, 8, dtype=torch.float64), torch.randn(n, 2, dtype=torch.float64)
    phi = torch.cat([x, torch.ones(n, 1, dtype=torch.float64)], dim=1)
    curve = risk_curve(gram_spectrum(x, constant=1.0), y, RIDGES)
    for ridge, loo, gcv in zip(RIDGES, curve.loo, curve.gcv):
        errors = []
        for i in range(n):
            rest = [j for j in range(n) if j != i]
            w = torch.linalg.solve(phi[rest].T @ phi[rest] + ridge * torch.eye(9), phi[rest].T @ y[rest])
            errors.append((y[i] - phi[i] @ w).square().sum())
        assert float(loo) == pytest.approx(float(torch.stack(errors).mean()), rel=1e-8)
        inverse = torch.linalg.inv(phi @ phi.T + ridge * torch.eye(n))
        dense = (ridge * inverse @ y).square().sum() / n / (ridge * inverse.trace() / n) ** 2
        assert float(gcv) == pytest.approx(float(dense), rel=1e-8)


def test_the_best_ridge_is_the_lowest_and_impossible_ones_are_refused() -> None:
    torch.manual_seed(0)
    x = torch.randn(40, 5, dtype=torch.float64)
    spectrum = gram_spectrum(x)
    assert risk_curve(spectrum, x @ torch.ones(5, 1, dtype=torch.float64), RIDGES).best == 0  # no noise: no shrinking
    assert risk_curve(spectrum, torch.randn(40, 1, dtype=torch.float64), RIDGES).best == 2  # nothing but noise
    with pytest.raises(ConfigError, match="positive"):
        risk_curve(spectrum, x[:, :1], torch.tensor([0.0]))
    with pytest.raises(DataError, match=r"\[40, C\]"):
        risk_curve(spectrum, x[:3], RIDGES)


@pytest.mark.parametrize(("n", "ridge", "noise"), [(60, 1.0, 0.0), (150, 0.1, 0.5), (400, 5.0, 0.2)])
def test_learning_curves_are_those_of_simulated_tasks(n: int, ridge: float, noise: float) -> None:
    d = 120
    eta = torch.arange(1, d + 1, dtype=torch.float64).pow(-1.2)
    generator = torch.Generator().manual_seed(0)
    w = torch.randn(d, generator=generator, dtype=torch.float64)
    risks = []
    for _ in range(60):
        x = torch.randn(n, d, generator=generator, dtype=torch.float64) * eta.sqrt()
        y = x @ w + noise**0.5 * torch.randn(n, generator=generator, dtype=torch.float64)
        found = torch.linalg.solve(x.T @ x + ridge * torch.eye(d), x.T @ y)
        risks.append(float(((found - w).square() * eta).sum()) + noise)
    expected, kappa = learning_curve(eta, w, n, ridge, noise=noise)
    simulated = torch.tensor(risks)
    assert expected == pytest.approx(float(simulated.mean()), rel=0.04)
    assert kappa == pytest.approx(ridge + kappa * float((eta / (n * eta + kappa)).sum()), rel=1e-12)


def test_leave_one_out_estimates_the_learning_curve() -> None:
    d, n = 80, 200
    eta = torch.arange(1, d + 1, dtype=torch.float64).pow(-1.0)
    generator = torch.Generator().manual_seed(3)
    w = torch.randn(d, generator=generator, dtype=torch.float64)
    found = []
    for _ in range(20):
        x = torch.randn(n, d, generator=generator, dtype=torch.float64) * eta.sqrt()
        y = x @ w + 0.5 * torch.randn(n, generator=generator, dtype=torch.float64)
        found.append(risk_curve(gram_spectrum(x), y[:, None], torch.tensor([2.0])).loo)
    expected, _ = learning_curve(eta, w, n, 2.0, noise=0.25)
    assert float(torch.stack(found).mean()) == pytest.approx(expected, rel=0.05)
    with pytest.raises(ConfigError, match="positive ridge"):
        learning_curve(eta, w, 0, 1.0)

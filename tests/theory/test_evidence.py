"""The evidence against the dense Gaussian density and against the rule of the heads."""

from __future__ import annotations

import pytest
import torch

from tangentcl.errors import ConfigError, DataError
from tangentcl.heads import NoLift, RidgeHead
from tangentcl.linalg import gram_spectrum
from tangentcl.theory import evidence_curve

RIDGES = torch.tensor([1e-2, 0.5, 30.0], dtype=torch.float64)


@pytest.mark.parametrize(("n", "d"), [(6, 9), (20, 4)])
def test_evidence_is_the_density_of_the_labels_at_the_best_noise(n: int, d: int) -> None:
    torch.manual_seed(0)
    x, y = torch.randn(n, d, dtype=torch.float64), torch.randn(n, 3, dtype=torch.float64)
    phi = torch.cat([x, torch.ones(n, 1, dtype=torch.float64)], dim=1)
    curve = evidence_curve(gram_spectrum(x, constant=1.0), y, RIDGES)
    for ridge, found, noise in zip(RIDGES, curve.log_evidence, curve.noise):
        covariance = phi @ phi.T + ridge * torch.eye(n, dtype=torch.float64)
        tau = float((y * torch.linalg.solve(covariance, y)).sum()) / (n * 3)
        zero = torch.zeros(n, dtype=torch.float64)

        def density(t: float, covariance: torch.Tensor = covariance, zero: torch.Tensor = zero) -> float:
            return float(torch.distributions.MultivariateNormal(zero, t * covariance).log_prob(y.T).sum())

        assert float(found) == pytest.approx(density(tau), rel=1e-10)
        assert float(noise) == pytest.approx(tau * float(ridge), rel=1e-10)
        assert density(tau) > max(density(0.98 * tau), density(1.02 * tau))  # it is the best one
    assert curve.best == int(curve.log_evidence.argmax())


def test_heads_choose_the_same_strength() -> None:
    torch.manual_seed(1)
    z, labels = torch.randn(40, 6, dtype=torch.float64), torch.arange(40) % 3
    head = RidgeHead(NoLift(6), strength="evidence").fit_task(z + 2.0 * labels[:, None], labels)
    h = z + 2.0 * labels[:, None]
    grid = float(h.square().sum()) / 40 * torch.logspace(-8, 4, 49, dtype=torch.float64)
    curve = evidence_curve(gram_spectrum(h), torch.nn.functional.one_hot(labels).double(), grid)
    assert head.strength.value == pytest.approx(float(grid[curve.best]), rel=1e-9)
    constant = -0.5 * 40 * 3 * float(1 + torch.log(torch.tensor(2 * torch.pi / (40 * 3), dtype=torch.float64)))
    assert float(curve.log_evidence.max()) == pytest.approx(constant - 1.5 * head.strength.error, rel=1e-10)


def test_impossible_ones_are_refused() -> None:
    spectrum = gram_spectrum(torch.randn(5, 2))
    with pytest.raises(ConfigError, match="positive"):
        evidence_curve(spectrum, torch.ones(5, 1), torch.tensor([-1.0]))
    with pytest.raises(DataError, match="not all zero"):
        evidence_curve(spectrum, torch.zeros(5, 1), RIDGES)

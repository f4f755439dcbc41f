"""The risk of ridge regression on new samples, without any: leave-one-out, generalised cross-validation (Q7)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tangentcl.errors import ConfigError, DataError
from tangentcl.linalg import Spectrum


@dataclass(frozen=True)
class RiskCurve:
    """Estimates of the squared error on a new sample, summed over outputs, for several strengths of the ridge.

    Attributes:
        ridges: strengths, float64 [m]. loo, gcv: estimates, float64 [m].
    """

    ridges: Tensor
    loo: Tensor
    gcv: Tensor

    @property
    def best(self) -> int:
        """Where the leave-one-out risk is lowest."""
        return int(self.loo.argmin())


def risk_curve(spectrum: Spectrum, targets: Tensor, ridges: Tensor) -> RiskCurve:
    r"""Q7: leave-one-out and generalised cross-validation, exact, from one decomposition.

    .. math:: e_i = \frac{\alpha_i}{[(K + \lambda I)^{-1}]_{ii}}, \qquad
        \mathrm{GCV} = \frac{\tfrac1n\|\lambda\alpha\|^2}{(\tfrac\lambda n \mathrm{tr}(K + \lambda I)^{-1})^2},
        \qquad \alpha = (K + \lambda I)^{-1} Y.

    Source: Golub, Heath and Wahba, "Generalized Cross-Validation as a Method for Choosing a Good Ridge Parameter",
    Technometrics 1979.

    Args:
        spectrum: of the kernel of n samples. targets: [n, C]; residual labels where the ridge starts somewhere.
        ridges: positive strengths [m].

    Raises:
        ConfigError: a strength that is not positive. DataError: targets of other samples.

    >>> from tangentcl.linalg import gram_spectrum
    >>> curve = risk_curve(gram_spectrum(torch.eye(2)), torch.ones(2, 1), torch.tensor([0.1, 1.0]))
    >>> curve.loo, curve.gcv
    (tensor([1., 1.], dtype=torch.float64), tensor([1., 1.], dtype=torch.float64))
    """
    if not bool((ridges > 0).all()) or ridges.ndim != 1 or not len(ridges):
        raise ConfigError(f"strengths of a ridge must be positive numbers [m], got {ridges.tolist()}")
    if targets.ndim != 2 or len(targets) != spectrum.n:
        raise DataError(f"expected targets [{spectrum.n}, C], got {list(targets.shape)}")
    y, s = targets.to(torch.float64), spectrum.values
    U = spectrum.modes(list(range(len(s))))  # [n, r]
    inside, squares = U.T @ y, U.square()
    loo, gcv = [], []
    for ridge in ridges.to(torch.float64):
        kept = s / (s + ridge)  # [r]
        residual = y - U @ (kept[:, None] * inside)  # lambda alpha, [n, C]
        own = 1 - squares @ kept  # lambda [(K + lambda I)^-1]_ii, [n]
        loo.append((residual / own[:, None]).square().sum(dim=1).mean())
        gcv.append(residual.square().sum(dim=1).mean() / (1 - kept.sum() / spectrum.n).square())
    return RiskCurve(ridges.to(torch.float64), torch.stack(loo), torch.stack(gcv))


def learning_curve(
    values: Tensor, coefficients: Tensor, n: int, ridge: float, *, noise: float = 0.0
) -> tuple[float, float]:
    r"""The expected risk of ridge regression on n samples, when the kernel's spectrum on the population is known.

    .. math:: \kappa = \lambda + \kappa \sum_i \frac{\eta_i}{n\eta_i + \kappa}, \quad
        \gamma = \sum_i \frac{n\eta_i^2}{(n\eta_i + \kappa)^2}, \quad
        E = \frac{1}{1 - \gamma}\Big(\sum_i \bar w_i^2 \eta_i \frac{\kappa^2}{(n\eta_i + \kappa)^2} + \sigma^2\Big).

    Source: Bordelon, Canatar and Pehlevan, "Spectrum Dependent Learning Curves in Kernel Regression and Wide Neural
    Networks", ICML 2020; Simon et al., "The Eigenlearning Framework", TMLR 2023. For large n and d.

    Args:
        values: eta, eigenvalues of the features' covariance, [m]. coefficients: of the target on them, [m] or [m, C].
        n: samples. ridge: lambda > 0, of the sum of squares. noise: variance of the labels, summed over outputs.

    Returns:
        The risk on a new noisy sample, and kappa, below which modes (n eta) are not learned.

    Raises:
        ConfigError: a ridge or n that is not positive.

    >>> risk, kappa = learning_curve(torch.ones(10), torch.ones(10), 1000, 1e-6)
    >>> risk < 1e-9
    True
    """
    if not ridge > 0 or n < 1:
        raise ConfigError(f"a learning curve needs a positive ridge and sample count, got {ridge} and {n}")
    eta = values.to(torch.float64)
    power = coefficients.to(torch.float64).reshape(len(eta), -1).square().sum(dim=1) * eta
    low, high = ridge, ridge + float(eta.sum())
    for _ in range(200):
        middle = (low * high) ** 0.5
        if ridge / middle + float((eta / (n * eta + middle)).sum()) > 1:
            low = middle
        else:
            high = middle
    kappa = (low * high) ** 0.5
    shrunk = n * eta + kappa
    gamma = float((n * eta.square() / shrunk.square()).sum())
    return (float((power * kappa**2 / shrunk.square()).sum()) + noise) / (1 - gamma), kappa

"""The strength of a ridge by the marginal likelihood of the labels (Q14)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from tangentcl.errors import ConfigError, DataError
from tangentcl.linalg import Spectrum


@dataclass(frozen=True)
class EvidenceCurve:
    """The log marginal likelihood of Bayesian linear regression for several strengths of the ridge.

    Attributes:
        ridges: strengths, float64 [m].
        log_evidence: natural logarithm of the labels' density over all samples and outputs, [m].
        noise: the best variance of the label noise at each strength, [m].
    """

    ridges: Tensor
    log_evidence: Tensor
    noise: Tensor

    @property
    def best(self) -> int:
        """Where the evidence is greatest."""
        return int(self.log_evidence.argmax())


def evidence_curve(spectrum: Spectrum, targets: Tensor, ridges: Tensor) -> EvidenceCurve:
    r"""Q14: how likely the labels are under a ridge as a Gaussian model, from one decomposition; no sample held out.

    Weights :math:`w_c \sim N(0, \tau I)` and noise of variance :math:`\tau\lambda` make
    :math:`y_c \sim N(0, \tau(K + \lambda I))`, whose mean given the labels is the ridge of strength
    :math:`\lambda`. With the best :math:`\hat\tau = \frac{1}{nC}\sum_c y_c^\top (K + \lambda I)^{-1} y_c` for each

    .. math:: \ln p(Y) = -\tfrac12\left[nC\,(1 + \ln 2\pi\hat\tau) + C \ln\det(K + \lambda I)\right].

    The same choice is the rule ``strength="evidence"`` of `tangentcl.heads.RidgeHead`. Source: MacKay, "Bayesian
    Interpolation", Neural Computation 1992. One-hot labels are not Gaussian: the number ranks strengths, kernels and
    layers for one set of labels, and is no probability of a classifier.

    Args:
        spectrum: of the kernel of n samples. targets: [n, C]; residual labels where the ridge starts somewhere.
        ridges: positive strengths [m].

    Raises:
        ConfigError: a strength that is not positive. DataError: targets of other samples, or none that is not zero.

    >>> from tangentcl.linalg import gram_spectrum
    >>> curve = evidence_curve(gram_spectrum(torch.eye(2)), torch.ones(2, 1), torch.tensor([1.0]))
    >>> round(float(curve.log_evidence), 4), float(curve.noise)  # y ~ N(0, 1) twice
    (-2.8379, 0.5)
    """
    if not bool((ridges > 0).all()) or ridges.ndim != 1 or not len(ridges):
        raise ConfigError(f"strengths of a ridge must be positive numbers [m], got {ridges.tolist()}")
    if targets.ndim != 2 or len(targets) != spectrum.n or not bool(targets.any()):
        raise DataError(f"expected targets [{spectrum.n}, C] that are not all zero, got {list(targets.shape)}")
    y, s, strengths = targets.to(torch.float64), spectrum.values, ridges.to(torch.float64)
    n, C = y.shape
    energy = spectrum.project(y).square().sum(dim=1)  # [r]
    outside = (y.square().sum() - energy.sum()).clamp(min=0)
    shifted = s + strengths[:, None]  # [m, r]
    tau = ((energy / shifted).sum(dim=1) + outside / strengths) / (n * C)
    determinant = shifted.log().sum(dim=1) + (n - len(s)) * strengths.log()
    evidence = -0.5 * (n * C * (1 + (2 * math.pi * tau).log()) + C * determinant)
    return EvidenceCurve(strengths, evidence, tau * strengths)

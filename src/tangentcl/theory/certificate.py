"""A PAC-Bayes certificate of one task, from how far its training moved the weights (Q15)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tangentcl.errors import ConfigError, DataError

SIGMAS = tuple(10.0 ** (k / 4) for k in range(-16, 3))  # fixed before any data; 1e-4 to 3.2
NODES = 96  # of the quadrature
BLOCK = 64  # samples at a time
LEAST = 8  # samples from which the theorem holds

Errors = Callable[[Sequence[tuple[float, int]]], Sequence[float]]


@dataclass(frozen=True)
class Certificate:
    r"""With probability :math:`1 - \delta` over the samples, the noisy classifier errs on new ones at most this often.

    Attributes:
        bound: on its error on new samples of the task; may exceed 1 and then says nothing.
        error: of the noisy classifier on the n samples: exact, or the upper end of what draws allow.
        measured: mean over the draws; ``error`` where it is exact.
        kl: :math:`\|W_t - W_{t-1}\|^2 / 2\sigma^2`. sigma: of the noise.
        n: samples. delta: as above. draws: of the noise; 0 where the error is exact.
    """

    bound: float
    error: float
    measured: float
    kl: float
    sigma: float
    n: int
    delta: float
    draws: int = 0

    @property
    def vacuous(self) -> bool:
        """Whether the bound says nothing: it is 1 or more."""
        return self.bound >= 1

    def to_dict(self) -> dict[str, Any]:
        """In plain values."""
        return {**asdict(self), "vacuous": self.vacuous}


def pac_bayes_bound(error: float, kl: float, n: int, delta: float) -> float:
    r""":math:`\hat L + \sqrt{(\mathrm{KL} + \ln(2\sqrt n/\delta)) / 2n}`, a bound on the mean error of a posterior.

    Source: McAllester, "PAC-Bayesian Model Averaging", COLT 1999, with the constant of Maurer, "A Note on the PAC
    Bayesian Theorem", 2004, for n >= 8.

    Raises:
        DataError: fewer than 8 samples. ConfigError: a delta outside (0, 1), or a divergence below 0.

    >>> round(pac_bayes_bound(0.1, 5.0, 200, 0.05), 4)
    0.2684
    """
    if n < LEAST:
        raise DataError(f"a PAC-Bayes bound needs at least {LEAST} samples, got {n}")
    if not 0 < delta < 1 or not kl >= 0:
        raise ConfigError(f"expected delta between 0 and 1 and a divergence of at least 0, got {delta!r} and {kl!r}")
    return error + math.sqrt((kl + math.log(2 * math.sqrt(n) / delta)) / (2 * n))


def mean_above(measured: float, draws: int, delta: float) -> float:
    r"""The largest mean that draws in [0, 1] allow: :math:`\max\{p : \mathrm{kl}(\hat p\,\|\,p) \le \ln(1/\delta)/S\}`.

    The mean of S independent draws is as low as measured with probability at most delta where the mean is above this
    (Chernoff). Source: Langford and Caruana, "(Not) Bounding the True Error", NeurIPS 2001.

    >>> round(mean_above(0.0, 100, 0.05), 4)  # 1 - delta^(1/S)
    0.0295
    """
    if draws < 1 or not 0 <= measured <= 1:
        raise ConfigError(f"expected at least one draw and a mean between 0 and 1, got {draws} and {measured!r}")
    room = math.log(1 / delta) / draws
    low, high = measured, 1.0
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if _binary_kl(measured, middle) <= room else (low, middle)
    return high


def gaussian_head_error(scores: Tensor, labels: Tensor, spread: Tensor) -> float:
    r"""The exact mean error of a linear head whose weights carry Gaussian noise.

    With noise :math:`N(0, \sigma^2)` on every weight, the scores of sample i are independent over classes, of
    standard deviation :math:`s_i = \sigma\|\varphi_i\|`, and

    .. math:: P(\text{right}) = E_{z \sim N(0, 1)} \prod_{c \ne y} \Phi\!\left(\frac{f_y - f_c}{s} + z\right),

    one integral for any number of classes, by Gauss-Hermite quadrature.

    Args:
        scores: f without noise, [n, C]. labels: [n]. spread: s > 0, [n].

    Raises:
        DataError: shapes that do not fit.

    >>> gaussian_head_error(torch.tensor([[1.0, 1.0]]), torch.tensor([0]), torch.tensor([2.0]))
    0.5
    """
    if scores.ndim != 2 or labels.shape != scores.shape[:1] or spread.shape != labels.shape or not len(scores):
        raise DataError(
            f"expected scores [n, C], labels [n] and spreads [n], got {list(scores.shape)}, {list(labels.shape)} and "
            f"{list(spread.shape)}"
        )
    nodes, weights = (torch.from_numpy(part) for part in np.polynomial.hermite_e.hermegauss(NODES))
    weights = weights / weights.sum()
    right = 0.0
    f, s = scores.to("cpu", torch.float64), spread.to("cpu", torch.float64).clamp(min=1e-300)
    for rows, y, width in zip(f.split(BLOCK), labels.cpu().split(BLOCK), s.split(BLOCK)):
        margins = (rows.gather(1, y[:, None]) - rows) / width[:, None]  # [b, C]
        below = torch.special.log_ndtr(margins[:, :, None] + nodes)  # [b, C, K]
        own = torch.special.log_ndtr(nodes)  # of the class itself, whose margin is 0
        right += float(((below.sum(dim=1) - own).exp() @ weights).sum())
    return round(1 - right / len(f), 12)


def exact_certificate(distance: float, n: int, error: Callable[[float], float], *, delta: float = 0.05) -> Certificate:
    r"""The certificate where the noisy classifier's error is known exactly, e.g. by `gaussian_head_error`.

    Posterior :math:`N(W_t, \sigma^2 I)` and prior :math:`N(W_{t-1}, \sigma^2 I)` over what trains, so that
    :math:`\mathrm{KL} = \|W_t - W_{t-1}\|^2 / 2\sigma^2`. The best :math:`\sigma` of a fixed grid, each of which holds
    with :math:`\delta / m`, m their number.

    **What it takes.** The prior must not know the task's data. Weights as the last task left them do not; a new row of
    a head is at its initialisation. Only what trains may differ between before and after, and samples count as drawn
    independently. **What it says** is of the classifier with noise, not of the weights themselves, and of the task
    alone, not of earlier ones. Weights move far in comparison with the noise they stand, so the bound is often vacuous:
    a number to compare tasks and recipes by, more than a promise.

    Args:
        distance: :math:`\|W_t - W_{t-1}\|` over all that trains. n: samples of the task. error: sigma -> mean error.
        delta: the certificate fails with at most this probability.

    >>> found = exact_certificate(0.5, 1000, lambda sigma: min(0.9, sigma))
    >>> found.sigma, round(found.bound, 3), found.vacuous
    (0.1, 0.206, False)
    """
    share = delta / len(SIGMAS)
    tried = []
    for sigma in SIGMAS:
        off, kl = error(sigma), distance**2 / (2 * sigma**2)
        tried.append(Certificate(pac_bayes_bound(off, kl, n, share), off, off, kl, sigma, n, delta))
    return min(tried, key=lambda found: found.bound)


def sampled_certificate(
    distance: float, n: int, errors: Errors, *, draws: int, delta: float = 0.05, seed: int = 0
) -> Certificate:
    r"""The certificate where the noisy classifier has to be run: see `exact_certificate` for what it says.

    One draw for each :math:`\sigma` whose bound can be below 1 says which is best; the error at that one is then
    bounded from fresh draws (`mean_above`) with :math:`\delta/2`, and the theorem has the other half.

    Args:
        errors: (sigma, seed) pairs -> the error on the n samples with noise drawn from that seed.
        draws: fresh ones. seed: from which seeds are counted.
    """
    share = delta / 2 / len(SIGMAS)
    kl = {sigma: distance**2 / (2 * sigma**2) for sigma in SIGMAS}
    penalty = {sigma: pac_bayes_bound(0.0, kl[sigma], n, share) for sigma in SIGMAS}
    candidates = [sigma for sigma in SIGMAS if penalty[sigma] < 1] or [SIGMAS[-1]]
    first = errors([(sigma, seed) for sigma in candidates])
    best = min(zip(candidates, first), key=lambda pair: pair[1] + penalty[pair[0]])[0]
    found = errors([(best, seed + 1 + draw) for draw in range(draws)])
    measured = sum(found) / len(found)
    above = mean_above(measured, draws, delta / 2)
    return Certificate(above + penalty[best], above, measured, kl[best], best, n, delta, draws)


def _binary_kl(p: float, q: float) -> float:
    if q >= 1:
        return 0.0 if p >= 1 else math.inf
    left = p * math.log(p / q) if p > 0 else 0.0
    return left + ((1 - p) * math.log((1 - p) / (1 - q)) if p < 1 else 0.0)

"""What a tangent kernel on some samples says of learning them: spectrum, labels on its modes, drift, norm."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from tangentcl.errors import ConfigError, DataError
from tangentcl.theory.laziness import kernel_change

ASYMMETRY = 1e-5  # relative; rounding of a product in float32 stays below it


def gram_spectrum(kernel: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues of a Gram matrix, descending, float64 [m], and its modes, the columns of [m, m].

    Raises:
        DataError: not square, not finite, or not symmetric. The kernel between *two* sets of samples is none of a
            Gram matrix: a symmetric solver reads one triangle of it and its numbers mean nothing.

    >>> gram_spectrum(torch.diag(torch.tensor([1.0, 4.0])))[0]
    tensor([4., 1.], dtype=torch.float64)
    """
    values, vectors = torch.linalg.eigh(_symmetric(kernel))
    return values.flip(0), vectors.flip(1)


def condition_number(values: Tensor) -> float:
    r""":math:`\kappa = s_1 / s_m`; infinite where the smallest is zero up to rounding.

    Gradient descent at the largest stable rate needs a number of steps of the order of it.

    Args:
        values: eigenvalues, descending.

    >>> condition_number(torch.tensor([4.0, 1.0])), condition_number(torch.tensor([1.0, 0.0]))
    (4.0, inf)
    """
    smallest = float(values[-1])
    return float(values[0]) / smallest if smallest > _rounding(values) else math.inf


def label_alignment(kernel: Tensor, targets: Tensor, k: int) -> float:
    r"""Share of the labels' energy in the k top modes, :math:`\|U_k^\top Y\|_F^2 / \|Y\|_F^2`; NaN for labels of zero.

    What gradient descent learns first; k / m for labels without any relation to the kernel.

    Args:
        kernel: of the samples, [n, n], or of n samples with C outputs each, sample-major, [n C, n C].
        targets: [n, C], centred by the caller if the kernel is.

    Raises:
        DataError: see `gram_spectrum`, or targets that do not fit. ConfigError: a k out of range.

    >>> label_alignment(torch.diag(torch.tensor([4.0, 1.0])), torch.tensor([[3.0], [4.0]]), 1)
    0.36
    """
    _, vectors = gram_spectrum(kernel)
    return _share(_projected(vectors, targets), k)


def rkhs_norm(kernel: Tensor, targets: Tensor) -> float:
    r""":math:`\sqrt{\mathrm{tr}(Y^\top K^{-1} Y) / n}` over n samples: how rough the smoothest interpolant is.

    The data-dependent part of the generalisation bound of wide networks (Arora et al., "Fine-Grained Analysis of
    Optimization and Generalization for Overparameterized Two-Layer Neural Networks", ICML 2019). Infinite where
    labels have energy, beyond rounding, on modes without an eigenvalue: no function of this kernel interpolates them.

    Args:
        kernel, targets: see `label_alignment`.

    >>> rkhs_norm(torch.diag(torch.tensor([4.0, 1.0])), torch.tensor([[2.0], [1.0]]))
    1.0
    """
    values, vectors = gram_spectrum(kernel)
    return _norm(values, _projected(vectors, targets), len(targets))


@dataclass(frozen=True)
class GramHealth:
    """The diagnostics of one symmetric kernel on one set of samples.

    Attributes:
        smallest, largest: eigenvalues. condition: their ratio.
        alignment: share of the labels' energy in the ``modes`` top modes.
        norm: see `rkhs_norm`.
        drift: relative change from the kernel at the start; None without one.

    >>> GramHealth.of(torch.eye(2), torch.eye(2), modes=1, start=2 * torch.eye(2))
    GramHealth(smallest=1.0, largest=1.0, condition=1.0, alignment=0.5, modes=1, norm=1.0, drift=0.5)
    """

    smallest: float
    largest: float
    condition: float
    alignment: float
    modes: int
    norm: float
    drift: float | None = None

    @staticmethod
    def of(kernel: Tensor, targets: Tensor, *, modes: int | None = None, start: Tensor | None = None) -> GramHealth:
        """One eigen-decomposition for all of them.

        Args:
            kernel, targets: see `label_alignment`.
            modes: k of the alignment; None takes as many as there are outputs.
            start: the kernel on the same samples before training, for the drift.

        Raises:
            DataError, ConfigError: see `label_alignment`.
        """
        values, vectors = gram_spectrum(kernel)
        energy = _projected(vectors, targets)
        k = min(targets.shape[1], len(values)) if modes is None else modes
        return GramHealth(
            smallest=float(values[-1]),
            largest=float(values[0]),
            condition=condition_number(values),
            alignment=_share(energy, k),
            modes=k,
            norm=_norm(values, energy, len(targets)),
            drift=None if start is None else kernel_change(_symmetric(start), _symmetric(kernel)),
        )

    def to_dict(self) -> dict[str, Any]:
        """By name; what is not finite is None."""
        return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in asdict(self).items()}


def _symmetric(kernel: Tensor) -> Tensor:
    if kernel.ndim != 2 or kernel.shape[0] != kernel.shape[1] or not kernel.numel():
        raise DataError(
            f"expected a Gram matrix K(X, X), [m, m], got {list(kernel.shape)}. A kernel between two sets of samples "
            "has singular values; eigenvalues are of the kernel of one set with itself."
        )
    matrix = kernel.detach().double()
    if not bool(matrix.isfinite().all()):
        raise DataError("the Gram matrix has entries that are not finite.")
    size = float(matrix.abs().max())
    gap = float((matrix - matrix.T).abs().max())
    if gap > ASYMMETRY * size:
        raise DataError(
            f"the Gram matrix is not symmetric: |K - K^T| reaches {gap:.3g} where |K| reaches {size:.3g}. Is it a "
            "kernel between two different sets of samples, or of outputs that are not deterministic (dropout)?"
        )
    return (matrix + matrix.T) / 2


def _projected(vectors: Tensor, targets: Tensor) -> Tensor:
    """Energy of the labels on each mode, [m]."""
    m, (n, width) = len(vectors), targets.shape if targets.ndim == 2 else (0, 0)
    rows = targets.detach().to(vectors)
    if n == m:
        return (vectors.T @ rows).square().sum(1)
    if n and n * width == m:
        return (vectors.T @ rows.reshape(m)).square()
    raise DataError(f"targets must be [n, C] for a kernel [n, n] or [n C, n C], got {list(targets.shape)} for {m}.")


def _share(energy: Tensor, k: int) -> float:
    if not 1 <= k <= len(energy):
        raise ConfigError(f"the number of modes must lie between 1 and {len(energy)}, got {k}")
    total = float(energy.sum())
    return float(energy[:k].sum()) / total if total > 0 else math.nan


def _norm(values: Tensor, energy: Tensor, n: int) -> float:
    kept = values > _rounding(values)
    outside = float(energy[~kept].sum())
    if outside > len(values) * torch.finfo(torch.float64).eps * float(energy.sum()):
        return math.inf
    return math.sqrt(float((energy[kept] / values[kept]).sum()) / n)


def _rounding(values: Tensor) -> float:
    """What an eigenvalue of zero may come out as."""
    return len(values) * torch.finfo(torch.float64).eps * max(float(values[0]), 0.0)

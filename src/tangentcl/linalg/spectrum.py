"""Eigenvalues and eigenvectors of Gram matrices, found in sample or in feature space, whichever is smaller."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tangentcl.errors import DataError
from tangentcl.linalg.operator import BLOCK


def with_constant(features: Tensor, constant: float) -> Tensor:
    """Features with a constant column appended, float64 [n, d + 1]; without one for ``constant = 0``."""
    features = features.to(torch.float64)
    if not constant:
        return features
    return torch.cat([features, features.new_full((len(features), 1), constant)], dim=1)


def second_moment(features: Tensor, constant: float = 0.0) -> Tensor:
    """The sum of ``phi phi^T`` over samples, float64 [d, d] (d + 1 with a constant), in blocks of rows."""
    d = features.shape[1] + bool(constant)
    total = torch.zeros(d, d, dtype=torch.float64, device=features.device)
    for block in features.split(BLOCK):
        rows = with_constant(block, constant)
        total.addmm_(rows.T, rows)
    return total


def gram_matrix(features: Tensor, constant: float = 0.0) -> Tensor:
    """Inner products of all samples, float64 [n, n]."""
    rows = with_constant(features, constant)
    return rows @ rows.T


@dataclass(frozen=True)
class Spectrum:
    r"""Eigen-decomposition of :math:`G = \Phi\Phi^\top = U \mathrm{diag}(s) U^\top` without its null space.

    Attributes:
        values: s, positive and descending, float64 [m].
        vectors: U [n, m] if ``in_samples``, else :math:`V` [d, m] of :math:`\Phi^\top\Phi`, with
            :math:`U = \Phi V s^{-1/2}`.
        features: [n, d], as given; constant: value of the constant feature, 0 for none.
    """

    values: Tensor
    vectors: Tensor
    in_samples: bool
    features: Tensor
    constant: float

    @property
    def n(self) -> int:
        """Number of samples, the size of G."""
        return len(self.features)

    def project(self, x: Tensor) -> Tensor:
        """Coefficients of vectors on the eigenvectors, ``U^T x``: [n, k] -> [m, k]."""
        if len(x) != self.n:
            raise DataError(f"expected vectors over the {self.n} samples of the spectrum, got {list(x.shape)}")
        if self.in_samples:
            return self.vectors.T @ x.to(torch.float64)
        d = self.vectors.shape[0]
        inner = torch.zeros(d, x.shape[1], dtype=torch.float64, device=x.device)  # Phi^T x
        for block, rows in zip(self.features.split(BLOCK), x.split(BLOCK)):
            inner.addmm_(with_constant(block, self.constant).T, rows.to(torch.float64))
        return (self.vectors.T @ inner) / self.values.sqrt()[:, None]

    def modes(self, indices: list[int]) -> Tensor:
        """Some eigenvectors over the samples, [n, k]."""
        chosen = self.vectors[:, indices]
        if self.in_samples:
            return chosen
        scaled = chosen / self.values[indices].sqrt()
        return torch.cat([with_constant(block, self.constant) @ scaled for block in self.features.split(BLOCK)])


def gram_spectrum(features: Tensor, constant: float = 0.0) -> Spectrum:
    """The spectrum of ``Phi Phi^T`` (with the constant feature), in O(n d min(n, d)).

    Eigenvalues below ``max(n, d) * 2.2e-16`` times the largest are rounding and are left out.

    >>> gram_spectrum(torch.tensor([[3.0, 0.0], [0.0, 2.0], [0.0, 0.0]])).values
    tensor([9., 4.], dtype=torch.float64)
    """
    n, d = len(features), features.shape[1] + bool(constant)
    in_samples = n <= d
    matrix = gram_matrix(features, constant) if in_samples else second_moment(features, constant)
    values, vectors = torch.linalg.eigh(matrix)
    values, vectors = values.flip(0), vectors.flip(1)
    kept = values > max(n, d) * torch.finfo(torch.float64).eps * values[:1].clamp(min=0)
    return Spectrum(values[kept], vectors[:, kept], in_samples, features, constant)

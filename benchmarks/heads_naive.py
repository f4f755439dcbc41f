"""Closed-form heads as they were published, written from their descriptions without any short cut.

RanPAC (McDonnell et al., NeurIPS 2023): whole products for the sums, a solve by LU for each of 17 ridges on every task
and one more on all. SLDA (Hayes and Kanan, CVPR-W 2020): a mean and a covariance that take in one sample at a time.
What `benchmarks.heads` compares with.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

RIDGES = tuple(10.0**k for k in range(-8, 9))
FITTED = 0.8  # of a task's samples; the others choose the ridge


class NaiveRanPAC:
    """Random ReLU units without scale, ridge regression on them, and a ridge chosen on the current task alone.

    Args:
        projection: R [d, M], in the precision of everything.
        n_outputs: all classes there will be.

    Attributes:
        gram: [M, M]. cross: [M, C]. weights: [M, C]. ridge: the last one chosen.
    """

    def __init__(self, projection: Tensor, n_outputs: int) -> None:
        n_units = projection.shape[1]
        self.projection, self.n_outputs = projection, n_outputs
        self.gram = projection.new_zeros(n_units, n_units)
        self.cross = projection.new_zeros(n_units, n_outputs)
        self.weights = projection.new_zeros(n_units, n_outputs)
        self.ridge = float("nan")

    @property
    def state_bytes(self) -> int:
        """What is kept between tasks, in bytes."""
        return sum(value.nbytes for value in (self.projection, self.gram, self.cross, self.weights))

    def fit_task(self, features: Tensor, labels: Tensor) -> None:
        """Features [n, d] in random order, labels [n]."""
        h = F.relu(features @ self.projection)  # [n, M]
        y = F.one_hot(labels, self.n_outputs).to(h)
        self.cross = self.cross + h.T @ y
        self.gram = self.gram + h.T @ h
        self.ridge = self._best_ridge(h, y)
        self.weights = torch.linalg.solve(self.gram + self.ridge * self._eye(), self.cross)

    def _best_ridge(self, h: Tensor, y: Tensor) -> float:
        cut = int(FITTED * len(h))
        cross, gram = h[:cut].T @ y[:cut], h[:cut].T @ h[:cut]
        errors = []
        for ridge in RIDGES:
            weights = torch.linalg.solve(gram + ridge * self._eye(), cross)
            errors.append(float(F.mse_loss(h[cut:] @ weights, y[cut:])))
        return RIDGES[min(range(len(RIDGES)), key=errors.__getitem__)]

    def _eye(self) -> Tensor:
        return torch.eye(len(self.gram), dtype=self.gram.dtype)

    def predict(self, features: Tensor) -> Tensor:
        """Scores [n, C]."""
        return F.relu(features @ self.projection) @ self.weights


class NaiveSLDA:
    """Running class means and one running covariance, a rank-one update for each sample.

    The published recursion weighs a deviation by the count of all samples and mixes in the identity as it is. With
    ``own_counts`` it weighs by the count of the sample's class and mixes in ``tr(Sigma)/d I``: at the same cost, the
    pooled covariance within classes, exactly.

    Args:
        width: d. n_outputs: all classes there will be. shrinkage: epsilon. dtype: of everything.
    """

    def __init__(
        self,
        width: int,
        n_outputs: int,
        *,
        shrinkage: float = 1e-4,
        own_counts: bool = False,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.means = torch.zeros(n_outputs, width, dtype=dtype)
        self.counts = torch.zeros(n_outputs, dtype=dtype)
        self.covariance = torch.zeros(width, width, dtype=dtype)
        self.shrinkage, self.own_counts, self.n = shrinkage, own_counts, 0

    @property
    def state_bytes(self) -> int:
        """What is kept between samples, in bytes."""
        return sum(value.nbytes for value in (self.means, self.counts, self.covariance))

    def fit_task(self, features: Tensor, labels: Tensor) -> None:
        """Features [n, d], labels [n], one after another."""
        for z, y in zip(features, labels.tolist()):
            deviation = (z - self.means[y])[None]  # [1, d]
            seen = float(self.counts[y]) if self.own_counts else self.n
            gain = deviation.T @ deviation * (seen / (seen + 1))
            self.covariance = (self.n * self.covariance + gain) / (self.n + 1)
            self.means[y] += deviation[0] / (self.counts[y] + 1)
            self.counts[y] += 1
            self.n += 1

    def predict(self, features: Tensor) -> Tensor:
        """Scores [n, C]."""
        eye = torch.eye(len(self.covariance), dtype=self.covariance.dtype)
        size = self.covariance.diagonal().mean() if self.own_counts else 1.0
        precision = torch.linalg.pinv((1 - self.shrinkage) * self.covariance + self.shrinkage * size * eye)
        weights = precision @ self.means.T  # [d, C]
        return features @ weights - 0.5 * (self.means.T * weights).sum(0)

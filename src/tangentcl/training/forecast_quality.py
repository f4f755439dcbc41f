"""How good a forecast of the drift was, beside what training did."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

from torch import Tensor

from tangentcl.errors import DataError


@dataclass(frozen=True)
class Quality:
    r"""Predicted drift :math:`\hat D` [n, C] against the real one D.

    Attributes:
        cosine: :math:`\langle\hat D, D\rangle / (\|\hat D\|\,\|D\|)` over all entries.
        r2: :math:`1 - \|D - \hat D\|^2 / \|D\|^2`; 1 for a perfect forecast, 0 for "nothing moves", below for worse.
        spearman: rank correlation over samples of the norms of predicted and real drift.
        relative_error: :math:`\|\hat D - D\| / \|D\|`.
        accuracy_error: predicted minus real accuracy.
        flip_auc: how well the predicted margins rank the samples that are right now by whether they really become
            wrong: the area under the ROC curve; 0.5 is chance. NaN where none or all do.

    NaN where a number is not defined, as a cosine with a drift of zero.
    """

    cosine: float
    r2: float
    spearman: float
    relative_error: float
    accuracy_error: float
    flip_auc: float

    def to_dict(self) -> dict[str, float | None]:
        """The numbers by name; None where one is not defined."""
        return {key: value if math.isfinite(value) else None for key, value in asdict(self).items()}


def drift_quality(predicted: Tensor, real: Tensor) -> tuple[float, float, float, float]:
    """Cosine, R^2, Spearman correlation and relative error of a drift, see `Quality`.

    Args:
        predicted, real: [n, C].

    Raises:
        DataError: drifts of different shapes.

    >>> import torch
    >>> real = torch.tensor([[3.0, 0.0], [0.0, 4.0]])
    >>> [round(value, 6) for value in drift_quality(real / 2, real)]
    [1.0, 0.75, 1.0, 0.5]
    """
    if predicted.shape != real.shape or real.ndim != 2:
        raise DataError(f"expected two drifts [n, C], got {list(predicted.shape)} and {list(real.shape)}")
    p, r = predicted.double(), real.double()
    size = float(r.norm())
    off = float((p - r).norm())
    return (
        _ratio(float((p * r).sum()), float(p.norm()) * size),
        1 - _ratio(off**2, size**2),
        spearman(p.norm(dim=1), r.norm(dim=1)),
        _ratio(off, size),
    )


def spearman(x: Tensor, y: Tensor) -> float:
    """Rank correlation of two [n]; ties get their mean rank; NaN where one is constant.

    >>> import torch
    >>> round(spearman(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1.0, 9.0, 4.0])), 6)
    0.5
    """
    a, b = (ranks(v) - (len(v) + 1) / 2 for v in (x, y))
    return _ratio(float((a * b).sum()), float(a.norm() * b.norm()))


def ranks(x: Tensor) -> Tensor:
    """Ranks from 1, float64 [n]; equal values share their mean rank.

    >>> import torch
    >>> ranks(torch.tensor([5.0, 1.0, 5.0])).tolist()
    [2.5, 1.0, 2.5]
    """
    _, group, counts = x.unique(return_inverse=True, return_counts=True)
    last = counts.cumsum(0).double()
    return (last - (counts.double() - 1) / 2)[group]


def roc_auc(scores: Tensor, positive: Tensor) -> float:
    """Chance that a positive has a higher score than a negative, a tie counting half; NaN without both kinds.

    >>> import torch
    >>> roc_auc(torch.tensor([0.1, 0.4, 0.35, 0.8]), torch.tensor([False, False, True, True]))
    0.75
    """
    n_positive = int(positive.sum())
    n_negative = len(positive) - n_positive
    above = float(ranks(scores)[positive].sum()) - n_positive * (n_positive + 1) / 2
    return _ratio(above, n_positive * n_negative)


def _ratio(numerator: float, denominator: float) -> float:
    return numerator / denominator if denominator else math.nan

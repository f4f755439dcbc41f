"""Second moments without the constant, around their mean."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tangentcl.errors import DataError
from tangentcl.forecast.moments import TaskMoments


def mean_features(moments: Sequence[TaskMoments]) -> Tensor:
    """Mean of the features of all samples of some tasks, exact for every sketch, float64 [d].

    Raises:
        DataError: no moments, or of no sample.
    """
    sums = [(m.means * m.counts[:, None]).sum(dim=0) for m in moments if m.n]
    if not sums:
        raise DataError("the mean of no sample was asked for")
    total = torch.stack(sums).sum(dim=0)
    return total[:-1] / total[-1]


def centred_moment(moments: Sequence[TaskMoments]) -> Tensor:
    r""":math:`\sum_k G_k - n\,\mu\mu^\top` without the constant column, float64 [d, d].

    Features of a pre-trained network share a large mean direction, next to which all tasks look alike. From a sketch
    that is not exact the matrix may have small negative eigenvalues.

    >>> moments = TaskMoments.empty(2, sketch="exact")
    >>> moments.add(torch.tensor([[5.0, 1.0], [5.0, -1.0]]), torch.tensor([0, 1]))
    >>> centred_moment([moments]).tolist()
    [[0.0, 0.0], [0.0, 2.0]]
    """
    mean = mean_features(moments)
    moment = torch.stack([m.features.matrix()[:-1, :-1] for m in moments if m.n]).sum(dim=0)
    return moment - sum(m.n for m in moments) * torch.outer(mean, mean)

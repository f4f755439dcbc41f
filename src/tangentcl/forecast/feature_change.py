"""How far training moves features that are gone, told from how far it moves those of the new samples."""

from __future__ import annotations

import torch
from torch import Tensor

from tangentcl.errors import DataError


def feature_change(before: Tensor, after: Tensor) -> Tensor:
    r"""A linear map of features that moves the new samples' features as training does.

    Their mean moves as it really does. Around it a ridge regression of the change on the features, whose strength is
    the mean eigenvalue of their covariance,

    .. math:: A = (\tilde H^\top \tilde H + s I)^{-1} \tilde H^\top \tilde\Delta, \qquad s = \|\tilde H\|_F^2 / d,

    with :math:`\tilde H` features and :math:`\tilde\Delta` their changes, both less their means. An old sample with
    features h is taken to move by :math:`A^\top h + b`: it is an extrapolation from the new samples to the old ones.

    Args:
        before: features of the new samples, [n, d]; after: of the same samples after training.

    Returns:
        A with b as the last row, float64 [d + 1, d].

    Raises:
        DataError: other shapes, or no samples.

    >>> h = torch.tensor([[0.0, 1.0], [2.0, 3.0]])
    >>> feature_change(h, h + torch.tensor([0.5, 0.0])).tolist()  # all move alike
    [[0.0, 0.0], [0.0, 0.0], [0.5, 0.0]]
    """
    if before.ndim != 2 or before.shape != after.shape or not len(before):
        raise DataError(
            f"expected features [n, d] of the same samples before and after, at least one; got {list(before.shape)} "
            f"and {list(after.shape)}"
        )
    start = before.detach().to("cpu", torch.float64)
    moved = after.detach().to("cpu", torch.float64) - start
    mean, shift = start.mean(dim=0), moved.mean(dim=0)
    centred, d = start - mean, start.shape[1]
    strength = centred.square().sum() / d
    if float(strength) == 0.0:  # one sample, or all of them equal
        return torch.cat([torch.zeros(d, d, dtype=torch.float64), shift[None]])
    gram = centred.T @ centred + strength * torch.eye(d, dtype=torch.float64)
    slope = torch.linalg.solve(gram, centred.T @ (moved - shift))
    return torch.cat([slope, (shift - mean @ slope)[None]])

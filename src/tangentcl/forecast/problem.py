"""What is about to be learned: a linear head on fixed features of new samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tangentcl.errors import ConfigError, DataError, nearest
from tangentcl.linalg import with_constant

LOSSES = ("cross_entropy", "squared_error")


def check_loss(loss: str) -> None:
    """Raise ConfigError for a loss without a known gradient."""
    if loss not in LOSSES:
        raise ConfigError(f"loss must be one of {', '.join(LOSSES)}, got {loss!r}.{nearest(str(loss), LOSSES)}")


def loss_residual(loss: str, outputs: Tensor, targets: Tensor) -> Tensor:
    r"""Gradient of one sample's loss in its outputs, [B, C].

    Cross-entropy :math:`-\sum_c y_c \log p_c`: :math:`p - y` with :math:`p = \mathrm{softmax}(f)`.
    Squared error :math:`\tfrac12\sum_c (f_c - y_c)^2`: :math:`f - y`.
    """
    return (outputs.softmax(dim=1) if loss == "cross_entropy" else outputs) - targets


@dataclass(frozen=True)
class LinearProblem:
    """New samples, the head before training, and the outputs that take part in the loss. All float64.

    Attributes:
        features: [n, d], with the constant column last where the head has a bias.
        weight: the whole head before training, [d, C].
        targets: [n, C_active], one-hot rows for labels.
        columns: outputs in the loss, int64 [C_active]; the others move by weight decay alone.
        samples: how many samples the rows stand for, where they are not one each (see `tangentcl.forecast.reduced`).
    """

    features: Tensor
    weight: Tensor
    targets: Tensor
    columns: Tensor
    samples: int | None = None

    @property
    def n(self) -> int:
        """Number of new samples."""
        return len(self.features) if self.samples is None else self.samples

    @property
    def active(self) -> Tensor:
        """Weights of the outputs in the loss, [d, C_active]."""
        return self.weight[:, self.columns]

    @property
    def residual(self) -> Tensor:
        """Outputs minus targets before training, [n, C_active]."""
        return self.features @ self.active - self.targets


def linear_problem(
    features: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    columns: Sequence[int] | None = None,
) -> LinearProblem:
    """The problem of a head ``features @ weight.T + bias`` on new samples.

    Args:
        features: [n, d]; weight: [C, d] as in torch.nn.Linear; bias: [C] or None.
        targets: labels int64 [n], or values [n, C_active].
        columns: outputs in the loss; None = all C.

    Raises:
        DataError: shapes that do not fit, values that are not finite, or labels outside ``columns``.
    """
    if features.ndim != 2 or weight.ndim != 2 or features.shape[1] != weight.shape[1] or not len(features):
        raise DataError(
            f"expected features [n, d] and a weight [C, d], got {list(features.shape)} and {list(weight.shape)}"
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise DataError(f"expected a bias [{len(weight)}], got {list(bias.shape)}")
    for name, tensor in (("features", features), ("weight", weight), ("bias", bias), ("targets", targets)):
        if tensor is not None and not bool(tensor.isfinite().all()):
            raise DataError(f"the {name} of the new samples' problem must be finite")
    chosen = check_columns(columns, len(weight)).to(features.device)
    return LinearProblem(
        features=with_constant(features.detach(), float(bias is not None)),
        weight=head_matrix(weight, bias).to(features.device),
        targets=check_targets(targets.to(features.device), chosen, len(features)),
        columns=chosen,
    )


def head_matrix(weight: Tensor, bias: Tensor | None) -> Tensor:
    """Weight [C, d] and bias [C] as one float64 matrix [d (+ 1), C]."""
    matrix = weight.detach().to(torch.float64).T
    return matrix if bias is None else torch.cat([matrix, bias.detach().to(torch.float64)[None]])


def check_columns(columns: Sequence[int] | None, n_outputs: int) -> Tensor:
    """Outputs in the loss, int64 [C_active]; None = all. Raises DataError for one that is not there, or there twice."""
    if columns is None:
        return torch.arange(n_outputs)
    chosen = [int(c) for c in columns]
    if not chosen or len(set(chosen)) != len(chosen) or not 0 <= min(chosen) <= max(chosen) < n_outputs:
        raise DataError(f"columns must be different outputs from 0 to {n_outputs - 1}, at least one; got {chosen}")
    return torch.tensor(chosen)


def check_targets(targets: Tensor, columns: Tensor, n: int) -> Tensor:
    """Labels int64 [n] as one-hot rows over ``columns``, or values [n, C_active], float64.

    Raises:
        DataError: other shapes, or a label outside the columns.
    """
    if targets.is_floating_point():
        if targets.shape != (n, len(columns)):
            raise DataError(f"expected targets [{n}, {len(columns)}], got {list(targets.shape)}")
        return targets.detach().to(torch.float64)
    if targets.shape != (n,):
        raise DataError(f"expected {n} labels, one per new sample, got {list(targets.shape)}")
    matches = targets[:, None] == columns[None, :]  # [n, C_active]
    found = matches.any(dim=1)
    if not bool(found.all()):
        stray = sorted({int(label) for label in targets[~found]})
        raise DataError(
            f"labels {stray[:10]} of the new samples are not among the outputs in the loss. "
            "A head has to be grown to the new classes first; columns must hold all of them."
        )
    return matches.to(torch.float64)

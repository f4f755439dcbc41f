"""What a task does to the outputs on earlier tasks: energies and forgetting vectors (Q1, Q2)."""

from __future__ import annotations

import torch
from torch import Tensor

from tangentcl.errors import DataError
from tangentcl.forecast.moments import TaskMoments
from tangentcl.linalg import LinearOperator, Sketch


def interplay_energy(old: Sketch, change: Tensor) -> float:
    r"""Q1: the energy of the drift of task k's outputs by task :math:`\tau`, from moments alone.

    .. math:: \|K_\tau(X_k, X_\tau)\,\alpha_\tau\|_F^2 = \mathrm{tr}(\Delta W^\top G_k\, \Delta W),
        \qquad G_k = \sum_{x \in X_k} \phi(x)\phi(x)^\top.

    Exact for an exact second moment and features that stay; see `Sketch.bounds` for the others. Source: the interplay
    terms of the bound of Bennani, Doan and Sugiyama, 2020.

    Args:
        old: second moment of the features of task k, of width d.
        change: of the head's weights by the task, [d, C].

    >>> from tangentcl.linalg import SecondMoment
    >>> moment = SecondMoment(2)
    >>> moment.update(torch.tensor([[1.0, 2.0], [0.0, 1.0]]))
    >>> interplay_energy(moment, torch.tensor([[1.0], [1.0]]))
    10.0
    """
    return float(old.energy(change).sum())


def forgetting_vector(kernel: LinearOperator, dual: Tensor) -> Tensor:
    r"""Q2: :math:`\Delta = K(X_k, X_\tau)\,\alpha_\tau`, the drift of every old sample, [n_k, C].

    It needs the features of the old samples, and is for those who have them; `class_forgetting` does not.

    Args:
        kernel: between the samples of two tasks, [n_k, n_tau] where outputs do not interact, else
            [n_k C, n_tau C], sample-major.
        dual: [n_tau, C].

    >>> from tangentcl.linalg import GramOperator
    >>> forgetting_vector(GramOperator(torch.eye(2), torch.ones(3, 2)), torch.ones(3, 1)).flatten()
    tensor([3., 3.])
    """
    n, C = dual.shape
    if kernel.shape[1] == n:
        return kernel @ dual
    if kernel.shape[1] != n * C:
        raise DataError(f"a kernel with {kernel.shape[1]} columns does not fit a dual of shape {list(dual.shape)}")
    return (kernel @ dual.reshape(-1)).reshape(-1, C)


def class_forgetting(old: TaskMoments, change: Tensor) -> Tensor:
    r"""Q2 without old data: the mean of the forgetting vector over each old class, :math:`\mu_c^\top \Delta W`, [K, C].

    Args:
        old: moments of task k, with K classes and features of width d (with their constant, d + 1).
        change: of the head, [d + 1, C].

    >>> moments = TaskMoments.empty(1, sketch="exact")
    >>> moments.add(torch.tensor([[1.0], [3.0]]), torch.tensor([4, 4]))
    >>> class_forgetting(moments, torch.tensor([[1.0], [0.5]]))
    tensor([[2.5000]], dtype=torch.float64)
    """
    if len(change) != old.features.d:
        raise DataError(f"a change of the head must be [{old.features.d}, C], got {list(change.shape)}")
    return old.means @ change.detach().to("cpu", torch.float64)

"""Keep a low-rank factor well-conditioned: no direction of an adapter takes over, and none dies."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

FLOOR = 1e-6  # of the largest eigenvalue of a Gram matrix; below it a direction counts as dead


def orthogonality_gap(factor: Tensor) -> Tensor:
    r"""How far a factor is from a multiple of an orthonormal one, in [0, r - 1].

    .. math:: \frac1r \|G / c - I\|_F^2, \qquad G = B^\top B \in R^{r \times r}, \quad c = \mathrm{tr}(G) / r:

    the variance of the eigenvalues of G over the square of their mean. It does not see a change of scale, and it is a
    polynomial of B over a scalar, so that a singular value of zero makes no gradient explode.

    Args:
        factor: a matrix of two dimensions; r is the smaller, whichever side it is on. Zero gives 0.

    >>> orthogonality_gap(torch.eye(3)[:2]).item(), orthogonality_gap(torch.tensor([[1.0, 0.0], [0.0, 0.0]])).item()
    (0.0, 1.0)
    """
    gram = _gram(factor)  # [r, r]
    mean = gram.diagonal().mean().clamp(min=torch.finfo(gram.dtype).tiny)
    eye = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    return (gram / mean - eye).square().sum() / len(gram) * bool(gram.any())


def log_condition(factor: Tensor) -> Tensor:
    r"""The logarithm of the condition number, from the r x r Gram matrix,

    .. math:: \log\frac{\sigma_1}{\sigma_r} = \tfrac12\log\frac{s_1 + \epsilon s_1}{s_r + \epsilon s_1},
        \qquad \epsilon = 10^{-6},

    at most 6.9. The raw ratio has a gradient that grows as :math:`\sigma_r^{-2}`; that of this one is bounded by the
    floor.

    Args:
        factor: see `orthogonality_gap`.

    >>> round(log_condition(torch.tensor([[10.0, 0.0], [0.0, 1.0]])).item(), 3)
    2.303
    """
    gram = _gram(factor)
    if not bool(gram.any()):
        return gram.sum()
    values = torch.linalg.eigvalsh(gram).clamp(min=0)  # ascending
    floor = FLOOR * values[-1]
    return 0.5 * ((values[-1] + floor).log() - (values[0] + floor).log())


SPECTRUM: dict[str, Callable[[Tensor], Tensor]] = {"orthogonality": orthogonality_gap, "log_condition": log_condition}


def spectrum_penalty(factors: Iterable[Tensor], form: str = "orthogonality") -> Tensor:
    """The mean of a form over factors, those that are zero left out; 0 if all are.

    Both forms are blind to scale, so their gradient grows as the factor shrinks: of a LoRA product B A give A, which
    keeps its size, and not B, which leaves zero in the first step.

    Args:
        factors: matrices. form: "orthogonality" or "log_condition".

    >>> spectrum_penalty([torch.eye(2), torch.zeros(3, 2)]).item()
    0.0
    """
    measure = SPECTRUM[form]
    terms = [measure(factor) for factor in factors if bool(factor.any())]
    return torch.stack(terms).mean() if terms else torch.zeros(())


def _gram(factor: Tensor) -> Tensor:
    """In the number of the shorter side, in float32 at least: half precision has no eigenvalues."""
    matrix = factor.float() if factor.dtype in (torch.bfloat16, torch.float16) else factor
    with torch.autocast(matrix.device.type, enabled=False):
        return matrix @ matrix.T if matrix.shape[0] <= matrix.shape[1] else matrix.T @ matrix

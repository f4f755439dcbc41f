"""In which few directions of its features each new sample will push, and be pushed."""

from __future__ import annotations

import torch
from torch import Tensor

from tangentcl.forecast.problem import LinearProblem, loss_residual

STEPS = 128  # of the head alone, from its start until it has nearly learned the new samples
MOMENTUM = 0.9


def feature_directions(
    problem: LinearProblem, loss: str, own: int, shared: int, *, width: int, trains: bool = True
) -> Tensor:
    r"""Orthonormal directions of the features of every new sample, [n, k, d] with k <= own + shared.

    Training pulls :math:`c_i(t) = W(t)^\top r_i(t)` back through the network, and nothing else. While only the head W
    learns, on frozen features, both are known exactly; their course is followed with heavy-ball descent at times
    0, 1, 2, 4, ... Each sample takes the ``own`` directions that hold most of its :math:`c_i`, and all samples the
    ``shared`` directions that hold most of everybody's. A direction in neither is one in which the features are
    treated as fixed. Replacing the full basis of d directions by eight makes derivatives d / 8 times cheaper.

    Args:
        problem: the head on the features of the new samples; loss: of the recipe.
        width: d, without the constant for a bias.
        trains: whether the head does; otherwise its weights join what is shared.
    """
    pulls = _pulls(problem, loss, width, trains)  # [n, times, d]
    n, times, d = pulls.shape
    parts = []
    if shared:
        rows = pulls.flatten(0, 1) if trains else torch.cat([pulls.flatten(0, 1), problem.active[:width].T])
        moment = rows.T @ rows
        top = torch.linalg.eigh(moment).eigenvectors.flip(1)[:, : min(shared, d)]
        parts.append(top.T.expand(n, -1, -1))
    if own:
        parts.append(torch.linalg.svd(pulls, full_matrices=False).Vh[:, : min(own, times, d)])
    return orthonormal(torch.cat(parts, dim=1))


def orthonormal(rows: Tensor) -> Tensor:
    """Orthonormal rows with the same span, [n, k, d] -> [n, min(k, d), d]."""
    return torch.linalg.qr(rows.transpose(1, 2)).Q.transpose(1, 2).contiguous()


def _pulls(problem: LinearProblem, loss: str, width: int, trains: bool) -> Tensor:
    """Gradients of each sample's loss in its features, while the head learns, [n, times, d]."""
    features, weight = problem.features, problem.active.clone()
    n = len(features)
    curvature = float(torch.linalg.matrix_norm(features, 2)) ** 2 / n
    rate = 1.0 / max(curvature, 1e-12) * (1.0 if loss == "cross_entropy" else 0.5)
    velocity = torch.zeros_like(weight)
    times = {0} if not trains else {0, *(2**k for k in range(STEPS.bit_length()))}
    pulls = []
    for step in range(max(times) + 1):
        residual = loss_residual(loss, features @ weight, problem.targets)
        if step in times:
            pulls.append(residual @ weight[:width].T)
        velocity = MOMENTUM * velocity + features.T @ residual / n
        weight = weight - rate * velocity
    return torch.stack(pulls, dim=1)


def output_directions(outputs: Tensor, residual: Tensor, columns: Tensor, most: int) -> Tensor:
    """Orthonormal directions of outputs [n, C] where no head is known, [n, k, C].

    All outputs in the loss where they are at most ``most``; else those with the largest residual [n, C_active] of each
    sample, one direction each.
    """
    n, C = outputs.shape
    every = torch.eye(C, dtype=outputs.dtype, device=outputs.device)[columns]  # [C_active, C]
    if len(columns) <= most:
        return every.expand(n, -1, -1).contiguous()
    return every[residual.abs().topk(most, dim=1).indices]

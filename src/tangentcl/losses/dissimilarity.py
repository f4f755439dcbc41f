"""Pull samples of one class together and push them from old prototypes."""

from __future__ import annotations

import torch
from torch import Tensor

TEMPERATURE = 0.1


def supcon_with_prototypes(z: Tensor, y: Tensor, prototypes: Tensor, labels: Tensor) -> Tensor:
    r"""Supervised contrastive loss with the prototypes of old classes as further negatives.

    .. math:: L = \operatorname{mean}_{i: P_i \neq \emptyset} \operatorname{mean}_{j \in P_i}
        -\Big[s_{ij} - \log \sum_{k \neq i} e^{s_{ik}}\Big], \qquad s = z z^\top / 0.1,

    over a batch; :math:`P_i` are the other samples of i's class, k runs over samples and prototypes (Khosla et al.,
    NeurIPS 2020, equation 2, with prototypes added). A prototype of the sample's own class, which a stream with
    returning classes has, is left out of its sum. Zero where no class has two samples.

    Args:
        z: unit rows ``[B, D]``. y: labels ``[B]``.
        prototypes: unit rows ``[M, D]``, M may be 0. labels: theirs, ``[M]``.

    >>> far = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    >>> near = torch.tensor([[1.0, 0.0], [0.8, 0.6]])
    >>> y, old = torch.tensor([4, 4]), torch.tensor([[0.0, -1.0]])
    >>> [round(supcon_with_prototypes(z, y, old, torch.tensor([0])).item(), 3) for z in (far, near)]
    [0.347, 0.0]
    """
    n = len(z)
    scores = z @ torch.cat([z, prototypes.to(z)]).T / TEMPERATURE  # [B, B + M]
    same = y[:, None] == torch.cat([y, labels])[None, :]  # [B, B + M]
    itself = torch.eye(n, scores.shape[1], dtype=torch.bool, device=z.device)
    own_prototype = same.clone()
    own_prototype[:, :n] = False
    positive = same & ~itself & ~own_prototype
    normaliser = scores.masked_fill(itself | own_prototype, -torch.inf).logsumexp(1, keepdim=True)  # [B, 1]
    partners = positive.sum(1)  # [B]
    has = partners > 0
    per_anchor = torch.where(positive, normaliser - scores, 0.0).sum(1) / partners.clamp(min=1)
    return (per_anchor * has).sum() / has.sum().clamp(min=1)


def released_dissimilarity(z: Tensor, y: Tensor, prototypes: Tensor) -> Tensor:
    r"""The term that the code of NTK-CL minimises: minus an InfoNCE value, so it drives same-class samples apart.

    .. math:: -N = \log \sum_{(i,j) \in P} e^{s_{ij}} - \operatorname{mean}_i \log \sum_{j \neq i} e^{s_{ij}}

    over samples and at most B prototypes drawn at random, with P the pairs of new samples of one class. One sum over
    all pairs rather than a mean over anchors, and prototypes among themselves count as well. Zero, with zero gradient,
    where no class has two samples. For comparison only.

    Args:
        z: unit rows ``[B, D]``. y: labels ``[B]``.
        prototypes: unit rows of old classes ``[M, D]``.
    """
    chosen = torch.randperm(len(prototypes), device=z.device)[: len(z)]
    rows = torch.cat([z, prototypes[chosen].to(z)])
    scores = rows @ rows.T / TEMPERATURE
    itself = torch.eye(len(rows), dtype=torch.bool, device=z.device)
    pair = torch.zeros_like(itself)
    pair[: len(z), : len(z)] = y[:, None] == y[None, :]
    pair &= ~itself
    if not bool(pair.any()):
        return z.sum() * 0.0
    positive = scores.masked_fill(~pair, -torch.inf).flatten().logsumexp(0)
    return positive - scores.masked_fill(itself, -torch.inf).logsumexp(1).mean()

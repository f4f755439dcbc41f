"""The tangent kernel of some old samples, decomposed."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tangentcl.forecast.old_kernel import JacobianModes
from tangentcl.forecast.setting import Setting
from tangentcl.kernels import EmpiricalNTK
from tangentcl.linalg import Spectrum

PROBES = 4  # random signs over outputs that stand for all of them, where there are more


def old_modes(setting: Setting) -> tuple[JacobianModes, float]:
    r"""Eigenspaces of the kernel of some old samples, averaged over outputs, and the forward passes it took.

    :math:`G_{ij} = \frac1C \sum_c K_{ic,jc}`, so that modes are over samples as those of a linear head, whose kernel
    is :math:`G \otimes I_C`. Near that structure the C eigenvalues that belong together are nearly equal, and their
    eigenvectors in :math:`R^{nC}` arbitrary mixtures. For more than `PROBES` outputs G is estimated without bias from
    as many vectors v of random signs, :math:`G \approx \frac{1}{sC}\sum_v (v^\top J)(v^\top J)^\top`: exact where the
    kernel has that structure.

    ``setting.modes`` samples, class by class in turn; both draws have a fixed seed.
    """
    positions = in_turn(len(setting.old), setting.old.labels, min(len(setting.old), setting.modes))
    network, C, m = setting.network, setting.n_outputs, len(positions)
    probes = min(C, PROBES)
    signs = torch.eye(C) if probes == C else _signs(probes, C)  # [s, C]

    def probed(model: nn.Module, x: Any) -> Tensor:
        f = network.output_function(model, x).flatten(1)
        return f @ signs.to(f).T

    kernel = EmpiricalNTK(network.model, probed, list(network.parameters), memory=setting.memory)
    K = kernel(setting.move(setting.old.take(positions))).to_dense().cpu()
    G = K.view(m, probes, m, probes).diagonal(dim1=1, dim2=3).sum(dim=2) / float(signs.square().sum())
    values, vectors = torch.linalg.eigh((G + G.T) / 2)
    values, vectors = values.flip(0), vectors.flip(1)
    kept = values > m * torch.finfo(torch.float32).eps * values[:1].clamp(min=0)
    spectrum = Spectrum(values[kept], vectors[:, kept], True, G, 0.0)
    return JacobianModes(spectrum, positions, None if probes == C else probes), m * (1.0 + probes)


def _signs(s: int, C: int) -> Tensor:
    """Random signs, [s, C]."""
    return torch.randint(0, 2, (s, C), generator=torch.Generator().manual_seed(0)) * 2.0 - 1.0


def in_turn(n: int, labels: Tensor | None, m: int) -> Tensor:
    """m of n positions, ascending: drawn at random with a fixed seed, one of each class in turn.

    >>> labels = torch.tensor([0, 0, 0, 0, 1, 1])
    >>> labels[in_turn(6, labels, 4)].tolist()
    [0, 0, 1, 1]
    """
    shuffled = torch.randperm(n, generator=torch.Generator().manual_seed(0))
    if labels is None or labels.is_floating_point():
        return shuffled[:m].sort().values
    place = torch.empty(n, dtype=torch.int64)
    for c in labels.unique():
        members = shuffled[labels[shuffled] == c]
        place[members] = torch.arange(len(members))
    order = shuffled[place[shuffled].argsort(stable=True)]
    return order[:m].sort().values

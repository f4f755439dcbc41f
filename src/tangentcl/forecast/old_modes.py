"""The tangent kernel of some old samples, decomposed."""

from __future__ import annotations

import torch
from torch import Tensor

from tangentcl.forecast.old_kernel import JacobianModes
from tangentcl.forecast.setting import Setting
from tangentcl.kernels import EmpiricalNTK
from tangentcl.linalg import Spectrum


def old_modes(setting: Setting) -> tuple[JacobianModes, float]:
    r"""Eigenspaces of the kernel of some old samples, averaged over outputs, and the forward passes it took.

    :math:`G_{ij} = \frac1C \sum_c K_{ic,jc}`, so that modes are over samples as those of a linear head, whose kernel
    is :math:`G \otimes I_C`. Near that structure the C eigenvalues that belong together are nearly equal, and their
    eigenvectors in :math:`R^{nC}` arbitrary mixtures.

    As many samples as make ``setting.modes`` rows of K, class by class in turn, with a fixed seed.
    """
    n, C = len(setting.old), setting.n_outputs
    positions = in_turn(n, setting.old.labels, min(n, max(1, setting.modes // C)))
    network = setting.network
    kernel = EmpiricalNTK(network.model, network.output_function, list(network.parameters), memory=setting.memory)
    K = kernel(setting.move(setting.old.take(positions))).to_dense().cpu()
    m = len(positions)
    G = K.view(m, C, m, C).diagonal(dim1=1, dim2=3).mean(dim=2)
    values, vectors = torch.linalg.eigh((G + G.T) / 2)
    values, vectors = values.flip(0), vectors.flip(1)
    kept = values > m * torch.finfo(torch.float32).eps * values[:1].clamp(min=0)
    spectrum = Spectrum(values[kept], vectors[:, kept], True, G, 0.0)
    return JacobianModes(spectrum, positions), m * (1.0 + C)


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

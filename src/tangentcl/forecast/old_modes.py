"""The tangent kernel of some old samples, decomposed."""

from __future__ import annotations

import torch
from torch import Tensor

from tangentcl.forecast.old_kernel import JacobianModes
from tangentcl.forecast.setting import Setting
from tangentcl.kernels import EmpiricalNTK
from tangentcl.linalg import Spectrum


def old_modes(setting: Setting) -> tuple[JacobianModes, float]:
    """Eigenspaces of the kernel of as many old samples as make ``setting.modes`` rows, and the forward passes it took.

    Samples are chosen class by class in turn, with a fixed seed.
    """
    n, C = len(setting.old), setting.n_outputs
    positions = in_turn(n, setting.old.labels, min(n, max(1, setting.modes // C)))
    network = setting.network
    kernel = EmpiricalNTK(network.model, network.output_function, list(network.parameters), memory=setting.memory)
    K = kernel(setting.move(setting.old.take(positions))).to_dense().cpu()
    values, vectors = torch.linalg.eigh((K + K.T) / 2)
    values, vectors = values.flip(0), vectors.flip(1)
    kept = values > len(K) * torch.finfo(torch.float32).eps * values[:1].clamp(min=0)
    spectrum = Spectrum(values[kept], vectors[:, kept], True, K, 0.0)
    return JacobianModes(spectrum, positions), len(positions) * (1.0 + C)


def in_turn(n: int, labels: Tensor | None, m: int) -> Tensor:
    """m of n positions, ascending: drawn at random with a fixed seed, one of each class in turn.

    >>> in_turn(6, torch.tensor([0, 0, 0, 0, 1, 1]), 4).tolist()
    [0, 2, 4, 5]
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

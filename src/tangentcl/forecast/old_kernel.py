"""The kernel of the old task, in whose eigenspaces a drift is seen."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from tangentcl.forecast.problem import LinearProblem
from tangentcl.forecast.vulnerability import Vulnerability, eigenspaces, rank_bound, vulnerability
from tangentcl.linalg import Spectrum, gram_spectrum, with_constant


@dataclass(frozen=True)
class Mode:
    """One eigenspace of the old kernel and what lies in it.

    Attributes:
        index: place of the eigenspace by descending eigenvalue.
        eigenvalue: of the kernel.
        share: of the drift's energy.
        loading: weight of each old sample in the eigenspace, squared and summing to 1, float64 [m].
    """

    index: int
    eigenvalue: float
    share: float
    loading: Tensor


class OldKernel(ABC):
    """Eigen-decomposition of an old task's kernel, over all old samples or some of them."""

    @property
    @abstractmethod
    def positions(self) -> Tensor:
        """Of the samples in it among the old samples, int64 [m]."""

    @property
    @abstractmethod
    def spectrum(self) -> Spectrum:
        """Of the kernel of one output, over samples."""

    @property
    def rank_bound(self) -> int | None:
        """Dimension of the space of all drifts that the new samples can cause; None where no rule tells it."""
        return None

    def vulnerability(self, drift: Tensor) -> Vulnerability:
        """Energy of a drift [n, C] in every eigenspace."""
        return vulnerability(self.spectrum, drift[self.positions.to(drift.device)])

    def modes(self, drift: Tensor, k: int) -> list[Mode]:
        """The k eigenspaces that hold most of a drift [n, C], most first."""
        found = self.vulnerability(drift)
        space = eigenspaces(self.spectrum.values, self.spectrum.n)
        modes = []
        for index in found.order[:k].tolist():
            members = (space == index).nonzero().flatten().tolist()
            loading = self.spectrum.modes(members).square().sum(dim=1) / len(members)
            share = float(found.energy[index]) / max(found.total, 1e-300)
            modes.append(Mode(index, float(found.values[index]), share, loading))
        return modes


@dataclass(frozen=True)
class FeatureModes(OldKernel):
    """The kernel of a linear head, :math:`(\\Phi\\Phi^\\top + b) \\otimes I_C`, decomposed when first asked for.

    Attributes:
        features: [n, d]; bias: whether the head has one.
        problem: the new samples, where the recipe is a function of the kernel; loss: of the recipe.
    """

    features: Tensor
    bias: bool
    problem: LinearProblem | None = None
    loss: str = "cross_entropy"

    @cached_property
    def rank_bound(self) -> int | None:
        if self.problem is None:
            return None
        old, new = with_constant(self.features, float(self.bias)), self.problem.features.to(self.features.device)
        return rank_bound(old, new, len(self.problem.columns), loss=self.loss, bias=False)

    @property
    def positions(self) -> Tensor:
        return torch.arange(len(self.features))

    @cached_property
    def spectrum(self) -> Spectrum:
        return gram_spectrum(self.features, float(self.bias))


@dataclass(frozen=True)
class JacobianModes(OldKernel):
    """The tangent kernel of some old samples, averaged over outputs (see `tangentcl.forecast.old_modes.old_modes`).

    Attributes:
        decomposed: the kernel [m, m]; chosen: positions of the m samples, int64 [m].
        probes: random vectors that stood for the outputs in the mean; None for all of them.
    """

    decomposed: Spectrum
    chosen: Tensor
    probes: int | None = None

    @property
    def positions(self) -> Tensor:
        return self.chosen

    @property
    def spectrum(self) -> Spectrum:
        return self.decomposed

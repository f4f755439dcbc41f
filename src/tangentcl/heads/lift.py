"""Wider features for a linear head: random ReLU units, or landmarks of the kernel that they stand for."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tangentcl.errors import ConfigError, DataError
from tangentcl.heads.head import FittedShapes

BLOCK = 4096  # samples lifted at once


def arc_cosine_kernel(x: Tensor, y: Tensor) -> Tensor:
    r"""What infinitely many random ReLU units see of two features,

    .. math:: k(x, y) = E_r[\mathrm{ReLU}(r \cdot x)\,\mathrm{ReLU}(r \cdot y)]
        = \frac{\|x\| \|y\|}{2\pi} \big(\sin\theta + (\pi - \theta)\cos\theta\big), \quad r \sim N(0, I).

    Source: Cho and Saul, "Kernel Methods for Deep Learning", NeurIPS 2009, order 1 (theirs is twice this).

    Args:
        x: [n, d]. y: [m, d].

    Returns:
        [n, m].

    >>> arc_cosine_kernel(torch.tensor([[2.0, 0.0]]), torch.tensor([[2.0, 0.0], [-1.0, 0.0]]))
    tensor([[2., 0.]])
    """
    norms = x.norm(dim=1)[:, None] * y.norm(dim=1)  # [n, m]
    cosine = ((x @ y.T) / norms.clamp(min=torch.finfo(norms.dtype).tiny)).clamp(-1, 1)
    angle = cosine.arccos()
    shape = (angle.sin() + (math.pi - angle) * cosine).clamp(min=0)
    return norms * shape / (2 * math.pi)


class Lift(nn.Module, ABC):
    """A fixed map of features [n, d] to wider ones [n, M].

    Attributes:
        width_in: d. width: M.
    """

    width_in: int
    width: int

    def fit(self, features: Tensor) -> None:
        """See the first features there are, once; most lifts do not look."""

    @abstractmethod
    def forward(self, features: Tensor) -> Tensor:
        """[n, d] -> [n, M]."""

    def extra_repr(self) -> str:
        return f"{self.width_in} -> {self.width}"


class NoLift(Lift):
    """The features as they are.

    >>> NoLift(3)(torch.ones(1, 3))
    tensor([[1., 1., 1.]])
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width_in = self.width = width

    def forward(self, features: Tensor) -> Tensor:
        return features


class RandomReLU(Lift):
    r""":math:`h(z) = \mathrm{ReLU}(z R) / \sqrt{M}` with :math:`R_{ij} \sim N(0, 1)`, drawn once.

    Inner products tend to `arc_cosine_kernel` as M grows, with a relative error near :math:`M^{-1/2}`. RanPAC leaves
    out :math:`1 / \sqrt M`; that only renames the strength of the ridge: scaled, it means the same for every M.

    Source: McDonnell et al., "RanPAC: Random Projections and Pre-trained Models for Continual Learning", NeurIPS 2023.

    Args:
        width: d. n_units: M. seed: of R.

    >>> RandomReLU(3, 8, seed=0)(torch.zeros(2, 3)).shape
    torch.Size([2, 8])
    """

    projection: Tensor

    def __init__(self, width: int, n_units: int, seed: int = 0) -> None:
        super().__init__()
        if n_units < 1:
            raise ConfigError(f"a lift needs at least one unit, got {n_units}")
        self.width_in, self.width = width, n_units
        drawn = torch.randn(width, n_units, generator=torch.Generator().manual_seed(seed))
        self.register_buffer("projection", drawn)

    def forward(self, features: Tensor) -> Tensor:
        projection = self.projection.to(features) / math.sqrt(self.width)
        if features.shape[0] <= BLOCK:
            return F.relu_(features @ projection)
        found = features.new_empty(len(features), self.width)
        for block, out in zip(features.split(BLOCK), found.split(BLOCK)):
            F.relu_(torch.mm(block, projection, out=out))
        return found


class NystromArcCosine(FittedShapes, Lift):
    r""":math:`h(z) = K_{LL}^{-1/2} k(L, z)` with landmarks L: the arc-cosine kernel itself in their span.

    Inner products of landmarks are exact, and so are those with anything in the span of their features; the error is
    orthogonal to it (Williams and Seeger, "Using the Nyström Method to Speed Up Kernel Machines", NeurIPS 2000).
    Landmarks are k-means centres of the first features, seeded far from each other (Arthur and Vassilvitskii,
    "k-means++", SODA 2007); where there are fewer features than ``n_landmarks``, the rest are drawn from the Gaussian
    with the features' mean and variances, so that the width never depends on the data.

    Args:
        width: d. n_landmarks: M. seed: of the centres. iterations: of k-means.

    >>> lift = NystromArcCosine(2, 4, seed=0)
    >>> lift.fit(torch.randn(50, 2))
    >>> lift(torch.randn(3, 2)).shape
    torch.Size([3, 4])
    """

    free = ("landmarks", "root")
    landmarks: Tensor
    root: Tensor

    def __init__(self, width: int, n_landmarks: int, seed: int = 0, iterations: int = 10) -> None:
        super().__init__()
        if n_landmarks < 1:
            raise ConfigError(f"a lift needs at least one landmark, got {n_landmarks}")
        self.width_in, self.width, self.seed, self.iterations = width, n_landmarks, seed, iterations
        self.register_buffer("landmarks", torch.zeros(0, width))
        self.register_buffer("root", torch.zeros(0, 0, dtype=torch.float64))  # K_LL^{-1/2}

    def fit(self, features: Tensor) -> None:
        """Choose the landmarks; later calls change nothing."""
        if len(self.landmarks):
            return
        generator = torch.Generator().manual_seed(self.seed)
        rows = features.detach().cpu()
        centres = k_means(rows, min(self.width, len(rows)), generator, self.iterations)
        spread = rows.std(0, correction=0)
        drawn = torch.randn(self.width - len(centres), self.width_in, generator=generator).to(rows)
        landmarks = torch.cat([centres, rows.mean(0) + spread * drawn])
        kernel = arc_cosine_kernel(landmarks.double(), landmarks.double())
        values, vectors = torch.linalg.eigh(kernel)
        floor = values[-1] * len(values) * torch.finfo(torch.float32).eps
        inverse = values.clamp(min=0).rsqrt().where(values > floor, 0)
        device = self.landmarks.device
        self.landmarks = landmarks.to(device)
        self.root = ((vectors * inverse) @ vectors.T).to(device)

    def forward(self, features: Tensor) -> Tensor:
        if not len(self.landmarks):
            raise DataError("the landmarks of a Nyström lift are chosen from the first features: call fit first.")
        landmarks = self.landmarks.double()  # float32 angles have half the digits, and the root multiplies what is lost
        blocks = [arc_cosine_kernel(block.double(), landmarks) @ self.root for block in features.split(BLOCK)]
        return torch.cat(blocks).to(features)


def k_means(rows: Tensor, k: int, generator: torch.Generator, iterations: int = 10) -> Tensor:
    """Centres [k, d] of rows [n, d]; an empty cluster keeps its centre.

    >>> k_means(torch.tensor([[0.0], [0.0], [9.0]]), 2, torch.Generator().manual_seed(0)).sort(0).values.flatten()
    tensor([0., 9.])
    """
    first = torch.randint(len(rows), (1,), generator=generator)
    centres = rows[first]
    nearest = (rows - centres).square().sum(1)
    for _ in range(k - 1):
        total = nearest.sum()
        weights = nearest if total > 0 else torch.ones_like(nearest)
        chosen = rows[torch.multinomial(weights.double(), 1, generator=generator)]
        centres = torch.cat([centres, chosen])
        nearest = torch.minimum(nearest, (rows - chosen).square().sum(1))
    for _ in range(iterations):
        owner = torch.cdist(rows, centres).argmin(1)
        counts = torch.bincount(owner, minlength=k)
        sums = torch.zeros_like(centres).index_add_(0, owner, rows)
        centres = torch.where(counts[:, None] > 0, sums / counts.clamp(min=1)[:, None], centres)
    return centres

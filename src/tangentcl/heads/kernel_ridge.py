"""Kernel ridge regression in the number of samples: the limit of infinitely many random units."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F
from typing_extensions import Self

from tangentcl.errors import ConfigError, DataError
from tangentcl.heads.head import AnalyticHead, FittedShapes
from tangentcl.heads.lift import arc_cosine_kernel
from tangentcl.heads.strength import by_spectrum, checked_rule

BLOCK = 4096


class ArcCosineRidge(FittedShapes, AnalyticHead):
    r""":math:`s(x) = k(x, Z)\,(k(Z, Z) + \lambda I)^{-1} Y` with the arc-cosine kernel of all features Z.

    What `RidgeHead` with `RandomReLU` tends to as its units grow, without their error, at n^2 d. The price is memory:
    it keeps every feature, 4 n d bytes in float32 (not the sample), and solves in n.

    Args:
        width: d. strength: in units of tr(K) / n, or ``"gcv"`` or ``"evidence"``.

    Raises:
        ConfigError: settings out of range.

    >>> head = ArcCosineRidge(2, strength=1e-6).fit_task(torch.eye(2), torch.tensor([0, 1]))
    >>> head.predict(torch.tensor([[0.0, 3.0]])).argmax(1)
    tensor([1])
    """

    free = ("seen", "labels")
    seen: Tensor
    labels: Tensor

    def __init__(self, width: int, *, strength: float | str = "gcv") -> None:
        super().__init__(width)
        checked_rule(strength)
        if strength in ("holdout", "task"):
            raise ConfigError(f"strength must be a number, 'gcv' or 'evidence' in the dual, got {strength!r}")
        self.rule = strength
        self.register_buffer("seen", torch.zeros(0, width))
        self.register_buffer("labels", torch.zeros(0, dtype=torch.int64))
        self._dual: Tensor | None = None
        self.relative = 0.0
        self.register_load_state_dict_post_hook(lambda head, _: head._append(0))

    def settings(self) -> dict[str, Any]:
        return {"strength": self.rule}

    def _append(self, n_new: int) -> None:
        self._dual = None

    def _absorb(self, features: Tensor, labels: Tensor, sign: int) -> None:
        self._dual = None
        if sign > 0:
            self.seen, self.labels = torch.cat([self.seen.to(features), features]), torch.cat([self.labels, labels])
            return
        kept = torch.ones(len(self.seen), dtype=torch.bool, device=self.seen.device)
        for feature, label in zip(features, labels):
            found = (kept & (self.labels == label) & (self.seen == feature).all(1)).nonzero()
            if not len(found):
                raise DataError(
                    f"a sample of class {int(label)} was not learned with this feature; it must be bit-equal."
                )
            kept[found[0]] = False
        self.seen, self.labels = self.seen[kept], self.labels[kept]

    def _take_in(self, other: Self) -> None:
        self._absorb(other.seen.to(self.seen), other.labels.to(self.labels), 1)

    @property
    def dual(self) -> Tensor:
        r""":math:`\alpha = (K + \lambda I)^{-1} Y`, float64 [n, C]."""
        if self._dual is None:
            self._dual = self._solve()
        return self._dual

    def _solve(self) -> Tensor:
        z = self.seen.double()
        kernel = arc_cosine_kernel(z, z)
        targets = F.one_hot(self.labels, self.n_outputs).double()
        unit, n = float(kernel.trace()) / max(len(z), 1), len(z)
        if not unit > 0:
            return torch.zeros_like(targets)
        values, vectors = torch.linalg.eigh(kernel)
        floor = n * torch.finfo(torch.float64).eps * float(values[-1])
        inside, kept = vectors.T @ targets, values > floor
        if isinstance(self.rule, str):
            energy, mass = inside[kept].square().sum(1), float(len(z))
            rule: Literal["gcv", "evidence"] = "evidence" if self.rule == "evidence" else "gcv"
            self.relative = by_spectrum(values[kept], energy, mass, n, unit, rule, floor).relative
        else:
            self.relative = float(self.rule)
        return vectors @ (inside / (values.clamp(min=0) + unit * self.relative)[:, None])

    def _scores(self, features: Tensor) -> Tensor:
        dual, seen = self.dual.to(features), self.seen.to(features)
        return torch.cat([arc_cosine_kernel(block, seen) @ dual for block in features.split(BLOCK)])

"""Nearest class mean as a closed-form head."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F
from typing_extensions import Self

from tangentcl.heads.head import AnalyticHead


class ClassMeans(AnalyticHead):
    """Cosine to the mean feature of each class, from float64 sums.

    >>> head = ClassMeans(2).fit_task(torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([0, 1]))
    >>> head.predict(torch.tensor([[3.0, 0.0]]))
    tensor([[1., 0.]])
    """

    sums: Tensor

    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.register_buffer("sums", torch.zeros(0, width, dtype=torch.float64))

    def _append(self, n_new: int) -> None:
        self.sums = torch.cat([self.sums, self.sums.new_zeros(n_new, self.width)])

    def _absorb(self, features: Tensor, labels: Tensor, sign: int) -> None:
        self.sums.index_add_(0, labels, sign * features.double())

    def _take_in(self, other: Self) -> None:
        self.sums += other.sums.to(self.sums)

    def _scores(self, features: Tensor) -> Tensor:
        return F.linear(F.normalize(features, dim=-1), F.normalize(self.sums, dim=-1).to(features))

"""Second moments of several layers, low rank plus diagonal."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Moment(NamedTuple):
    r"""Matrices :math:`S^\top S + \mathrm{diag}(r)` of L layers.

    Attributes:
        rows: S, [L, k, d].
        diagonal: r, [L, d].
    """

    rows: Tensor
    diagonal: Tensor

    def form(self, x: Tensor) -> Tensor:
        """Quadratic forms of vectors x [L, m, d], one for each: [L, m]."""
        rows, diagonal = self.rows.to(x), self.diagonal.to(x)
        return (x @ rows.transpose(1, 2)).square().sum(dim=2) + (x.square() * diagonal[:, None]).sum(dim=2)

    def gram(self, x: Tensor) -> Tensor:
        """The form between vectors x [L, q, d], [L, q, q]."""
        seen = x @ self.rows.to(x).transpose(1, 2)  # [L, q, k]
        return seen @ seen.transpose(1, 2) + (x * self.diagonal.to(x)[:, None]) @ x.transpose(1, 2)

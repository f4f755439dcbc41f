"""Second moments of several layers as buffers of fixed shape, so that a state dict holds them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tangentcl.linalg import Sketch, restored
from tangentcl.linalg.streamed_sketch import LowRankDiagonal
from tangentcl.protect.moment import Moment


class MomentStore(nn.Module):
    """Sketches of L layers, low rank plus diagonal; empty at first, and then rows of zeros.

    Args:
        n_layers: L. width: d of the rows. k: directions kept of each.
    """

    rows: Tensor  # [L, k, d]
    diagonal: Tensor  # [L, d]
    seen: Tensor  # [L, 3], float64: rows that went in, their sum of squares, and the bound on what was shed

    def __init__(self, n_layers: int, width: int, k: int) -> None:
        super().__init__()
        self.register_buffer("rows", torch.zeros(n_layers, min(k, width), width))
        self.register_buffer("diagonal", torch.zeros(n_layers, width))
        self.register_buffer("seen", torch.zeros(n_layers, 3, dtype=torch.float64))
        self._mean: tuple[tuple[Tensor, ...], list[int], Moment] | None = None

    @property
    def k(self) -> int:
        """Directions kept of each layer."""
        return self.rows.shape[1]

    def mean(self) -> Moment:
        """Second moments per row; zero where nothing went in. Every step of training asks for it."""
        content = self.rows, self.diagonal, self.seen
        versions = [tensor._version for tensor in content]
        known = self._mean is not None and all(a is b for a, b in zip(self._mean[0], content))
        if self._mean is None or not known or self._mean[1] != versions:
            n = self.seen[:, 0].clamp(min=1).to(self.rows)
            mean = Moment(self.rows * n.rsqrt()[:, None, None], self.diagonal / n[:, None])
            self._mean = content, versions, mean
        return self._mean[2]

    def sketches(self) -> list[Sketch]:
        """What is stored, to which rows can be added."""
        found: list[Sketch] = []
        for rows, diagonal, (n, total, shed) in zip(self.rows, self.diagonal, self.seen.tolist()):
            header = {
                "kind": LowRankDiagonal.kind,
                "d": rows.shape[1],
                "k": self.k,
                "n": n,
                "total": total,
                "shed": shed,
            }
            used = rows[rows.any(dim=1)]
            tensors = {"rows": used.detach().to("cpu", torch.float64), "diagonal": diagonal.to("cpu", torch.float64)}
            found.append(restored(header, tensors))
        return found

    @torch.no_grad()
    def put(self, sketches: Sequence[Sketch]) -> None:
        """Store these, one for each layer, in place of what there is."""
        for i, sketch in enumerate(sketches):
            rows, diagonal = sketch.factors()
            self.rows[i].zero_()
            self.rows[i, : len(rows)] = rows.to(self.rows)
            self.diagonal[i] = diagonal.to(self.diagonal)
            self.seen[i] = torch.tensor([sketch.n, sketch.total, sketch.shed], dtype=torch.float64)

    def merge(self, others: Sequence[Sketch]) -> None:
        """Add the rows of other sketches, of any kind, one for each layer."""
        together = self.sketches()
        for own, other in zip(together, others, strict=True):
            own.merge(as_low_rank(other, self.k))
        self.put(together)

    @torch.no_grad()
    def choose(self, changes: Tensor | None, rank: int) -> None:
        r"""Keep ``rank`` directions of each layer; what the others hold goes into the diagonal.

        Args:
            changes: :math:`\Delta` [L, d, C]; those with the largest :math:`\|\Delta^\top s_j\|^2` are kept. None:
                the largest :math:`\|s_j\|^2`.
        """
        moved = self.rows if changes is None else self.rows @ changes.to(self.rows)  # [L, k, C]
        order = moved.square().sum(dim=2).argsort(dim=1, descending=True, stable=True)
        kept, left = order[:, :rank].sort(dim=1).values, order[:, rank:]
        across = torch.arange(len(self.rows), device=self.rows.device)[:, None]
        self.diagonal += self.rows[across, left].square().sum(dim=1)
        self.rows = self.rows[across, kept].contiguous()


def as_low_rank(sketch: Sketch, k: int) -> LowRankDiagonal:
    """A sketch of any kind as low rank plus diagonal with k directions."""
    found = LowRankDiagonal(sketch.d, k)
    rows, diagonal = sketch.factors()
    found.update(rows)
    found._left = found._left + diagonal
    kept = found.tensors()
    header = {**found.header, "n": sketch.n, "total": sketch.total, "shed": found.shed + sketch.shed}
    return restored(header, kept)  # type: ignore[return-value]

"""Min-norm least squares on the leading singular directions of a very wide lift, kept up to date block by block."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from typing_extensions import Self

from tangentcl.errors import ConfigError, ModelError, nearest
from tangentcl.heads.head import AnalyticHead, FittedShapes
from tangentcl.heads.lift import Lift

ROWS = 4096  # of the M rows, taken to float64 at once
Update = Literal["svd", "gram"]


@dataclass(frozen=True)
class Flush:
    r"""What one block did to the kept spectrum.

    Attributes:
        n_seen: samples learned up to and with this block.
        rank: kept directions, k.
        condition: :math:`\kappa(S^2) = S_1^2 / S_k^2`; 1 for rank 0 (all features were zero).
        stable_rank: :math:`\sum_i S_i^2 / S_1^2`; 0 for rank 0.
        discarded: share of the energy :math:`\sum_i S_i^2` that was there before the cut and went with it.
    """

    n_seen: int
    rank: int
    condition: float
    stable_rank: float
    discarded: float


class TruncatedRidge(FittedShapes, AnalyticHead):
    r"""LoRanPAC: :math:`s(x) = W^\top h(x)` with :math:`W = U (S^2 + \lambda I)^{-1} U^\top H^\top Y`.

    U [M, k] and S [k] are the truncated left singular vectors and values of the lifted samples :math:`H^\top \in
    R^{M \times n}`; :math:`H^\top Y` is never truncated. A block F [M, b] of samples updates them by

    .. math:: P = U^\top F, \quad QR = F - U P, \quad
        U' S' V'^\top = \begin{pmatrix} \mathrm{diag}(S) & P \\ 0 & R \end{pmatrix}, \quad
        U \leftarrow [U\ Q]\,U'_{:, :k'}, \quad S \leftarrow S'_{:k'},

    .. math:: k' = \max(1, \min(\mathrm{round}((1 - p)\,n),\ \mathrm{round}((1 - p)\,M),\ \text{cap})).

    With p = 0 this is min-norm least squares on all samples (:math:`\lambda = 0`). A cut is not taken back: with p > 0
    the result depends on order and blocks, and nothing can be unlearned. For small M, or where order must not matter,
    `RidgeHead` is exact and cheaper; this head is for M in the tens of thousands, where M x M does not fit.

    Source: Peng et al., "LoRanPAC: Low-rank Random Features and Pre-trained Models for Bridging Theory and Practice in
    Continual Learning", ICLR 2025. Departures:

    - W is solved for when first asked for after an update, not for every batch of predictions.
    - Lifted features carry their :math:`1 / \sqrt M`, so that S and ``ridge`` mean the same for every M.
    - Singular values below ``cut`` times the largest are rounding, not data: :math:`1 / S^2` would make it the largest
      part of W. Repeated samples and constant features leave such values.
    - U is orthonormalised only where its defect exceeds ``tolerance``, and by a Cholesky factor of U^T U: the Q of a
      QR factorisation up to signs, at M k^2 instead of 4 M k^2. The check itself is one product, 2 M k^2.
    - Where k + b reaches M, [U S, F] has fewer rows than the small matrix, and is decomposed itself.

    Args:
        lift: of the features.
        truncation: p, the share of directions given up. rank_cap: most directions kept; None for no cap.
        block: samples per update, b. A task's last block may be smaller.
        ridge: lambda, added to S^2, in units of lifted features.
        update: ``"svd"`` is the recurrence above. ``"gram"`` decomposes the Gram matrix of [U S, F], of size k + b,
            without projection or QR, and in float64 whatever the features are. For float64 it is the cheaper one (1.5
            times, M = 20,000 and k = b = 800 on one core), for float32 the dearer one by as much, but its U and S are
            those of the block to all digits of float32. It squares the condition: directions below
            :math:`\sqrt{\max(M, n)\,\epsilon}` with the epsilon of float64 (5e-6 for M = 100,000) times the first
            cannot be told from rounding and are cut, whatever ``cut`` says.
        cut: relative size below which a singular value counts as zero; None for :math:`\max(M, n)\,\epsilon` with the
            precision's epsilon, the usual bound. It is a worst case: in float32 it reaches 1e-2 at M = 100,000, above
            directions that are data (`Flush.rank` then stays below the rule for k'); pass 1e-6 to 1e-5 there.
        tolerance: on the largest entry of :math:`|U^\top U - I|`, in epsilons; 0 orthonormalises after every block.

    Attributes:
        history: a `Flush` for each block learned or head merged; not in the state dict, and emptied by loading one.

    Raises:
        ConfigError: settings out of range.

    >>> from tangentcl.heads import NoLift
    >>> head = TruncatedRidge(NoLift(2), truncation=0.0).fit_task(torch.eye(2), torch.tensor([0, 1]))
    >>> head.predict(torch.tensor([[1.0, 0.0]])).argmax(1), head.history[0].rank
    (tensor([0]), 2)
    """

    free = ("left", "values")
    left: Tensor
    values: Tensor
    cross: Tensor

    def __init__(
        self,
        lift: Lift,
        *,
        truncation: float = 0.25,
        rank_cap: int | None = 10_000,
        block: int = 10_000,
        ridge: float = 0.0,
        update: Update = "svd",
        cut: float | None = None,
        tolerance: float = 100.0,
    ) -> None:
        super().__init__(lift.width_in)
        if not 0 <= truncation < 1:
            raise ConfigError(f"truncation must lie in [0, 1), got {truncation!r}")
        if block < 1 or (rank_cap is not None and rank_cap < 1):
            raise ConfigError(f"block and rank_cap must be at least 1, got {block!r} and {rank_cap!r}")
        if not 0 <= ridge < math.inf or not 0 <= tolerance < math.inf:
            raise ConfigError(f"ridge and tolerance must be finite and not negative, got {ridge!r} and {tolerance!r}")
        if cut is not None and not 0 <= cut < 1:
            raise ConfigError(f"cut must lie in [0, 1) or be None, got {cut!r}")
        if update not in get_args(Update):
            raise ConfigError(f"unknown update {update!r}.{nearest(update, get_args(Update))}")
        self.lift = lift
        self.truncation, self.rank_cap, self.block, self.ridge = truncation, rank_cap, block, float(ridge)
        self.update, self.cut, self.tolerance = update, cut, tolerance
        self.history: list[Flush] = []
        self.register_buffer("left", torch.zeros(lift.width, 0))
        self.register_buffer("values", torch.zeros(0))
        self.register_buffer("cross", torch.zeros(0, lift.width, dtype=torch.float64))  # (H^T Y)^T
        self._weights: Tensor | None = None
        self.register_load_state_dict_post_hook(_loaded)

    def settings(self) -> dict[str, Any]:
        return {
            "lift": f"{type(self.lift).__name__}({self.lift.extra_repr()})",
            "truncation": self.truncation,
            "rank_cap": self.rank_cap,
            "ridge": self.ridge,
        }

    @property
    def n_seen(self) -> int:
        """Samples learned, n."""
        return int(self.counts.sum())

    @property
    def rank(self) -> int:
        """Kept directions, k."""
        return len(self.values)

    @property
    def weights(self) -> Tensor:
        """W, [M, C], solved for when first asked for after an update."""
        if self._weights is None:
            self._weights = self._solve()
        return self._weights

    @torch.no_grad()
    def forget(self, features: Tensor, labels: Tensor) -> Self:
        """Refused: samples live on in directions that were cut with a part of them.

        Raises:
            ModelError: always.
        """
        raise ModelError(
            "a truncated head cannot forget: the directions it gave up took a part of each sample along, and that part "
            "cannot be taken out again. Use a RidgeHead with the same lift, whose sums can be subtracted from."
        )

    def _append(self, n_new: int) -> None:
        self.cross = torch.cat([self.cross, self.cross.new_zeros(n_new, self.lift.width)])
        self._weights = None

    def _absorb(self, features: Tensor, labels: Tensor, sign: int) -> None:
        self._weights = None
        self.lift.fit(features)
        n = self.n_seen - len(labels)
        for block, own in zip(features.split(self.block), labels.split(self.block)):
            rows = self.lift(block)  # [b, M]
            n += len(rows)
            self._flush(rows.T, n)
            for part, part_labels in zip(rows.split(ROWS), own.split(ROWS)):
                self.cross.index_add_(0, part_labels, part.double())

    def _take_in(self, other: Self) -> None:
        ours, theirs = self.lift.state_dict(), other.lift.state_dict()
        if any(ours[k].shape != v.shape or not torch.equal(ours[k], v.to(ours[k])) for k, v in theirs.items()):
            self.counts -= other.counts.to(self.counts)
            raise ModelError("heads with different lifts cannot be merged: give both the same seed and landmarks.")
        self._weights = None
        self.cross += other.cross.to(self.cross)
        if other.rank:  # (U S)(U S)^T is all that H^T H keeps of the other's samples
            self._flush((other.left * other.values).to(self.left.device), self.n_seen)

    def _scores(self, features: Tensor) -> Tensor:
        return self.lift(features) @ self.weights.to(features)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        self._weights = None  # no buffer, and so left behind by a move
        return super()._apply(fn, recurse)

    @torch.no_grad()
    def _solve(self) -> Tensor:
        inside = self.left.T @ self.cross.T.to(self.left)  # [k, C]
        return self.left @ (inside / (self.values.square() + self.ridge)[:, None])

    def _flush(self, columns: Tensor, n: int) -> None:
        """Put columns F [M, b] into U and S; ``n`` samples are in them then."""
        dtype = torch.promote_types(torch.promote_types(self.left.dtype, columns.dtype), torch.float32)
        columns, old, old_values = columns.to(dtype), self.left.to(dtype), self.values.to(dtype)
        p, width = 1 - self.truncation, self.lift.width
        limit = max(1, min(round(p * n), round(p * width), n if self.rank_cap is None else self.rank_cap))
        cut = max(width, n) * torch.finfo(dtype).eps if self.cut is None else self.cut
        if self.update == "gram":
            found, found_values, all_values = _by_gram(old * old_values, columns, limit, cut, n)
        elif self.rank + columns.shape[1] < width:
            found, found_values, all_values = _by_projection(old, old_values, columns, limit, cut)
        else:
            found, all_values, _ = torch.linalg.svd(torch.cat([old * old_values, columns], 1), full_matrices=False)
            k = _kept(all_values, limit, cut)
            found, found_values = found[:, :k], all_values[:k]
        self.left, self.values = self._orthonormal(found), found_values.contiguous()
        self.history.append(_flush_of(n, all_values.double(), self.rank))

    def _orthonormal(self, left: Tensor) -> Tensor:
        overlap = left.T @ left
        defect = overlap.clone()
        defect.diagonal().sub_(1)
        if not defect.numel() or float(defect.abs().max()) <= self.tolerance * torch.finfo(left.dtype).eps:
            return left.contiguous()
        factor, failed = torch.linalg.cholesky_ex(overlap)
        if bool(failed):  # far from orthonormal: cut is below what the precision can tell apart
            return torch.linalg.qr(left).Q.contiguous()
        return torch.linalg.solve_triangular(factor.T, left, upper=True, left=False).contiguous()


def _by_projection(left: Tensor, values: Tensor, columns: Tensor, limit: int, cut: float) -> tuple[Tensor, ...]:
    """The recurrence of `TruncatedRidge`: U [M, k'], S [k'], and all singular values before the cut."""
    k = len(values)
    inside = left.T @ columns  # P [k, b]
    q, r = torch.linalg.qr(columns - left @ inside)  # [M, b], [b, b]
    small = torch.cat([torch.cat([values.diag(), inside], 1), torch.cat([r.new_zeros(len(r), k), r], 1)])
    turn, found, _ = torch.linalg.svd(small)  # [k + b, k + b]
    kept = _kept(found, limit, cut)
    return left @ turn[:k, :kept] + q @ turn[k:, :kept], found[:kept], found


def _by_gram(scaled: Tensor, columns: Tensor, limit: int, cut: float, n: int) -> tuple[Tensor, ...]:
    """The same from the Gram matrix of A = [U S, F] in float64: A V / S with its eigenvectors V."""
    parts = list(zip(scaled.split(ROWS), columns.split(ROWS)))
    size = scaled.shape[1] + columns.shape[1]
    gram = scaled.new_zeros(size, size, dtype=torch.float64)
    for part in parts:
        rows = torch.cat(part, 1).double()
        gram.addmm_(rows.T, rows)
    squares, vectors = torch.linalg.eigh(gram)
    found, vectors = squares.clamp(min=0).sqrt().flip(0), vectors.flip(1)
    floor = math.sqrt(max(len(scaled), n) * torch.finfo(torch.float64).eps)
    kept = _kept(found, min(limit, len(scaled)), max(cut, floor))
    turn = vectors[:, :kept] / found[:kept]
    left = torch.cat([(torch.cat(part, 1).double() @ turn).to(scaled) for part in parts])
    return left, found[:kept].to(scaled), found


def _kept(values: Tensor, limit: int, cut: float) -> int:
    """How many of descending singular values to keep; those of zero features count as cut."""
    return min(limit, int((values > cut * values[:1]).sum()))


def _flush_of(n: int, values: Tensor, rank: int) -> Flush:
    energy = values.square()
    if not rank:
        return Flush(n, 0, 1.0, 0.0, 0.0)
    first, total = float(energy[0]), float(energy.sum())
    return Flush(
        n_seen=n,
        rank=rank,
        condition=first / float(energy[rank - 1]),
        stable_rank=float(energy[:rank].sum()) / first,
        discarded=float(energy[rank:].sum()) / total,
    )


def _loaded(head: nn.Module, _: object) -> None:
    assert isinstance(head, TruncatedRidge)
    head._weights = None
    head.history.clear()

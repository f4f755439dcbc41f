"""LoRA with fewer ranks at the end of a task: which rank-one parts go, and what exactly is lost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from tangentcl.errors import ConfigError, DataError, nearest
from tangentcl.forecast.lora_factors import LoraFactors, input_moment, lora_factors
from tangentcl.forecast.moments import TaskMoments

How = Literal["energy", "group"]
NOTHING = 1e-15  # of the largest squared score


@dataclass(frozen=True)
class LayerRanks:
    """What was kept of one layer.

    Attributes:
        layer: its name.
        kept: ranks that are left.
        scores: of all ranks, descending, float64 [r]; see `rank_scores`.
        lost: mean squared change of the layer's outputs over tokens. energy: that of the whole adapter, dropped.
    """

    layer: str
    kept: int
    scores: Tensor = field(repr=False)
    lost: float
    energy: float


@dataclass(frozen=True)
class PrunedRanks:
    """What `prune_ranks` did.

    Attributes:
        layers: one by one.
        values: the parameters as they are now, by their names in the model.
    """

    layers: tuple[LayerRanks, ...]
    values: Mapping[str, Tensor] = field(repr=False)

    @property
    def kept(self) -> int:
        """Ranks that are left, of all layers."""
        return sum(layer.kept for layer in self.layers)

    @property
    def share_lost(self) -> float:
        """Part of the adapters' energy, summed over layers, that is gone."""
        whole = sum(layer.energy for layer in self.layers)
        return sum(layer.lost for layer in self.layers) / whole if whole > 0 else 0.0

    def to_dict(self) -> dict[str, Any]:
        """In plain values."""
        rows = [{**vars(layer), "scores": layer.scores.tolist()} for layer in self.layers]
        return {"kept": self.kept, "share_lost": self.share_lost, "layers": rows}


def by_energy(factors: LoraFactors, moment: Tensor) -> tuple[LoraFactors, Tensor]:
    r"""The same product in the left singular vectors of :math:`\Delta W M^{1/2}`, and the singular values squared.

    With :math:`B = QR`, :math:`A M A^\top = L L^\top` and :math:`s R L = U \Sigma V^\top` the new factors are
    :math:`QU` and :math:`U^\top R A`: no root of M is taken, and a singular M does no harm. Columns of the new B are
    orthonormal, so that what rank-one parts put out on any data adds up in squares.

    Args:
        moment: M, of the layer's inputs per token, [d_in, d_in].

    Returns:
        factors of the same rank, and :math:`\sigma^2`, float64 descending [r].
    """
    up, down, r = factors.up, factors.down, factors.up.shape[1]
    q, triangle = torch.linalg.qr(up)
    values, vectors = torch.linalg.eigh(down @ moment @ down.T)
    root = vectors * values.clamp(min=0).sqrt()
    u, sigma, _ = torch.linalg.svd(factors.scale * triangle @ root, full_matrices=False)
    found = replace(factors, up=_padded(q @ u, r, 1), down=_padded(u.T @ triangle @ down, r, 0))
    return found, _padded(sigma.square(), r, 0)


def group_shrink(sizes: Tensor, k: int, strength: float) -> Tensor:
    r"""The proximal operator of :math:`\frac\lambda2\|\cdot\|_{k,sp}^2` on sizes of groups: at most about k stay.

    The half squared group k-support norm is the convex envelope of half the squared norm over groupings of at most k
    groups; its conjugate is half the sum of the k largest squares (Argyriou, Foygel and Srebro, "Sparse Prediction
    with the k-Support Norm", NeurIPS 2012). From :math:`\|x\|^2 = \min_\theta \sum_j x_j^2/\theta_j` over
    :math:`0 \le \theta \le 1, \sum\theta \le k`:

    .. math:: x_j = \frac{\theta_j}{\theta_j + \lambda} v_j, \qquad \theta_j = \min(1, \max(0, c\,|v_j| - \lambda)),

    with c such that :math:`\sum\theta = k`. Small groups vanish, and every other shrinks, by
    :math:`1/(1 + \lambda)` where it is large.

    Args:
        sizes: v >= 0, [r]. k: groups. strength: lambda > 0.

    Raises:
        ConfigError: a k below 1, or a strength that is not positive.

    >>> group_shrink(torch.tensor([4.0, 3.0, 0.1]), 2, 1.0)
    tensor([2.0000, 1.5000, 0.0000], dtype=torch.float64)
    """
    if k < 1 or not strength > 0:
        raise ConfigError(f"expected at least one group and a positive strength, got k={k} and {strength!r}")
    v = sizes.to(torch.float64).abs()
    if k >= int((v > 0).sum()):
        return v / (1 + strength)

    def theta(c: float) -> Tensor:
        return (c * v - strength).clamp(0, 1)

    low, high = 0.0, (1 + strength) / float(v[v > 0].min())
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if float(theta(middle).sum()) < k else (low, middle)
    found = theta(high)
    return found / (found + strength) * v


def rank_scores(model: nn.Module, moments: Sequence[TaskMoments] = (), *, how: How = "energy") -> dict[str, Tensor]:
    r"""How much each rank of every LoRA layer matters, descending, float64 [r] by layer.

    ``"energy"``: :math:`\sigma_j^2` of :math:`\Delta W M^{1/2}`, the mean squared output per token of each part of
    `by_energy`. ``"group"``: :math:`s\|b_j\|\|a_j\|`, the Frobenius norm of each rank-one part as it stands, which is
    what is left of both factors once they are balanced; it needs no moments, and does not see what comes in.

    Raises:
        ConfigError: another ``how``. DataError: moments without these layers. ModelError: see `lora_factors`.
    """
    _check_how(how)
    if how == "group":
        return {f.layer: _sizes(f).sort(descending=True).values for f in lora_factors(model)}
    return {f.layer: by_energy(f, input_moment(f.layer, moments))[1] for f in lora_factors(model)}


@torch.no_grad()
def prune_ranks(
    model: nn.Module, moments: Sequence[TaskMoments], *, keep: int | float, how: How = "energy", refit: bool = True
) -> PrunedRanks:
    r"""Keep the ranks that matter most in every LoRA layer of peft; the model is changed in place.

    ``"energy"`` writes the best approximation of :math:`\Delta W M^{1/2}` of lower rank (Eckart and Young): what is
    lost is exactly the discarded :math:`\sum_j \sigma_j^2` per token, as exact as the moments are. ``"group"`` keeps
    the largest rank-one parts as they stand (those `group_shrink` selects at a large strength, without its shrinkage)
    and, with ``refit``, makes the best of the rows of A that are left: least squares under M,
    :math:`B' = B A M A_K^\top (A_K M A_K^\top)^{+}`.

    The adapter stays a standard one of peft **with its rank in the config**: columns of B that go are set to zero, and
    rows of A behind them point where A pointed beside those that stay, so that later tasks can learn there again.
    Factors that stay are balanced, :math:`\|a_j\| = \|b_j\|`. An optimiser's memory from before means nothing any more.

    Args:
        model: e.g. ``method.backbone``.
        moments: of the tasks on which outputs are to stay, made with the adapters (`tangentcl.load_moments`).
        keep: most ranks of each layer, a whole number (those without any weight go in any case); or below 1 the
            share of the energy that is to be kept (``"group"``: of the squared sizes).
        how: ``"energy"`` or ``"group"``. refit: of ``"group"``.

    Raises:
        ConfigError: a ``keep`` or ``how`` out of range. DataError, ModelError: see `rank_scores`.
    """
    _check_how(how)
    if isinstance(keep, bool) or not (keep >= 0 and (isinstance(keep, int) or 0 < keep < 1)):
        raise ConfigError(f"keep must be a whole number of ranks, or a share between 0 and 1, got {keep!r}")
    layers: list[LayerRanks] = []
    values: dict[str, Tensor] = {}
    for factors in lora_factors(model):
        moment = input_moment(factors.layer, moments)
        if how == "energy":
            found, scores = by_energy(factors, moment)
            weights = scores
        else:
            order = _sizes(factors).argsort(descending=True)
            found = replace(factors, up=factors.up[:, order], down=factors.down[order])
            scores = _sizes(found)
            weights = scores.square()
        kept = min(_count(weights, keep), int((weights > NOTHING * weights.max()).sum()))
        found = balanced(cut(found, torch.arange(len(scores)) < kept, factors.down))
        if how == "group" and refit and kept:
            found = balanced(_refitted(found, factors, moment, kept))
        off = factors.change - found.change
        lost, energy = (float(((m @ moment) * m).sum()) for m in (off, factors.change))
        layers.append(LayerRanks(factors.layer, kept, scores, max(lost, 0.0), energy))
        values |= dict(zip(found.names, (found.up, found.down)))
    write(model, values)
    return PrunedRanks(tuple(layers), values)


def cut(factors: LoraFactors, kept: Tensor, rows: Tensor) -> LoraFactors:
    """Columns of B that are not ``kept``, bool [r], set to zero; behind them new rows of A, ready to learn.

    Args:
        rows: A before, [r, d_in]; the new rows are directions of these beside the kept ones, of their mean length.
    """
    basis = torch.linalg.qr(factors.down[kept].T).Q  # [d_in, k]
    beside = torch.linalg.svd(rows - rows @ basis @ basis.T, full_matrices=False).Vh
    free = int((~kept).sum())
    down = factors.down.clone()
    down[~kept] = _padded(beside[:free], free, 0) * rows.norm() / len(rows) ** 0.5
    return replace(factors, up=factors.up * kept.to(factors.up), down=down)


def balanced(factors: LoraFactors) -> LoraFactors:
    """The same product with columns of B and rows of A of one length, where neither is zero."""
    b, a = factors.up.norm(dim=0), factors.down.norm(dim=1)
    ratio = torch.where((a > 0) & (b > 0), (a / b.clamp(min=1e-300)).clamp(1e-150, 1e150).sqrt(), 1.0)
    return replace(factors, up=factors.up * ratio, down=factors.down / ratio[:, None])


@torch.no_grad()
def write(model: nn.Module, values: Mapping[str, Tensor]) -> None:
    """Set parameters by name, in their dtype."""
    known = dict(model.named_parameters())
    for name, value in values.items():
        if name not in known or known[name].shape != value.shape:
            raise DataError(f"the model has no parameter '{name}' of shape {list(value.shape)}.{nearest(name, known)}")
        known[name].copy_(value)


def _refitted(found: LoraFactors, before: LoraFactors, moment: Tensor, kept: int) -> LoraFactors:
    rows = found.down[:kept]  # [k, d_in]
    right = moment @ rows.T
    up = before.up @ (before.down @ right) @ torch.linalg.pinv(rows @ right, hermitian=True)
    return replace(found, up=_padded(up, found.up.shape[1], 1))


def _sizes(factors: LoraFactors) -> Tensor:
    return abs(factors.scale) * factors.up.norm(dim=0) * factors.down.norm(dim=1)


def _count(weights: Tensor, keep: int | float) -> int:
    if isinstance(keep, int):
        return keep
    total = float(weights.sum())
    return int((weights.cumsum(0) < keep * total * (1 - 1e-12)).sum()) + 1 if total > 0 else 0


def _padded(matrix: Tensor, size: int, dim: int) -> Tensor:
    missing = size - matrix.shape[dim]
    shape = [missing if i == dim else n for i, n in enumerate(matrix.shape)]
    return torch.cat([matrix, matrix.new_zeros(shape)], dim=dim) if missing else matrix


def _check_how(how: str) -> None:
    if how not in get_args(How):
        raise ConfigError(f"how must be one of {', '.join(get_args(How))}, got {how!r}.{nearest(how, get_args(How))}")

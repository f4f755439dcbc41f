"""How strong a ridge should be, from what is kept of all samples so far."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from tangentcl.errors import ConfigError, DataError, nearest
from tangentcl.heads.holdout import Curve

Rule = Literal["holdout", "gcv", "evidence", "task"]
LOWEST, HIGHEST = -8, 4  # decades of the strength, in units of the mean squared length of a feature
GRID = 8  # strengths in a decade to choose from where each costs a factorisation
FLAT = 1e-4  # share of the error that is not worth a factorisation
PLACE = math.log(10) / GRID  # of ln lambda, between two of them
STEPS = 4  # and where one decomposition serves all
TASK_SHARE = 0.8  # of a task's samples are fitted under the published rule


@dataclass(frozen=True)
class Strength:
    r"""A chosen strength.

    Attributes:
        value: lambda, added to the diagonal of G.
        relative: lambda in units of tr(G) / n, the mean squared length of a feature; comparable across widths.
        error: of the rule at this strength. at_edge: whether it lies at the end of what was tried.
    """

    value: float
    relative: float
    error: float
    at_edge: bool


def checked_rule(strength: float | str) -> None:
    """Raises ConfigError for what is neither a positive number nor the name of a rule."""
    if isinstance(strength, str):
        if strength not in get_args(Rule):
            known = get_args(Rule)
            raise ConfigError(f"strength must be a number or one of {', '.join(known)}.{nearest(strength, known)}")
    elif isinstance(strength, bool) or not 0 < strength < math.inf:
        raise ConfigError(f"the strength of a ridge must be a positive number, got {strength!r}")


def held_out(features: Tensor, share: float) -> Tensor:
    """Which samples are kept aside to choose the strength by, bool [n].

    Told by a hash of the feature itself: the same sample is kept aside in whatever order, batch or head it comes, so
    that merging and unlearning give what learning together would have given.

    >>> mask = held_out(torch.randn(1000, 4), 0.2)
    >>> 150 < int(mask.sum()) < 250
    True
    """
    if not share:
        return torch.zeros(len(features), dtype=torch.bool, device=features.device)
    bits = features.float().contiguous().view(torch.int32).to(torch.int64)  # [n, d]
    odd = torch.arange(features.shape[1], device=features.device, dtype=torch.int64) * 2654435761 + 40503
    mixed = ((bits ^ (bits >> 7)) * (2 * odd + 1)).sum(1)
    mixed = (mixed ^ ((mixed >> 31) & 0x1FFFFFFFF)) * 0x1B873593CC9E2D51
    fraction = ((mixed >> 11) & ((1 << 52) - 1)).double() / (1 << 52)
    return fraction < share


def by_holdout(curve: Callable[[float], Curve], unit: float, start: float | None, floor: float) -> Strength:
    r"""The strength with the least squared error on held-out samples, of eight in a decade.

    The error falls and rises once in :math:`\ln\lambda`. Newton's method on its slope, a decade at most in one step and
    by halves between two strengths where it would leave them, ends with a step of one place or none, at one
    factorisation where the last choice nearly holds. Places on a grid make the choice independent of where it began.
    The error of a place that the last step went to is that of the parabola through the one before.

    Args:
        curve: the error at a strength. unit: tr(G) / n over all samples.
        start: the last choice, relative. floor: the least strength that rounding lets through.
    """
    low, high = max(LOWEST * GRID, math.ceil(math.log10(floor / unit) * GRID)), HIGHEST * GRID
    seen: set[int] = set()
    below, above = low - 1, high + 1  # the error falls at the one and rises at the other
    at = min(max(round(math.log10(start) * GRID) if start else 0, low), high)
    while True:
        found = curve(unit * 10.0 ** (at / GRID))
        seen.add(at)
        step = _newton(found)
        below, above = (max(below, at) if step > 0 else below), (min(above, at) if step < 0 else above)
        if abs(step) <= 1 or above - below <= 1:
            break
        wanted = at + step
        at = wanted if below < wanted < above else (below + above) // 2
    end = at + step if below < at + step < above and at + step not in seen else at
    relative, along = 10.0 ** (end / GRID), (end - at) * PLACE
    error = found.error + along * found.slope + along**2 * found.bend / 2
    return Strength(unit * relative, relative, error, end in (low, high))


def _newton(curve: Curve) -> int:
    """Places on the grid to the minimum, as slope and bend have it; a decade towards it where they do not tell.

    None where a strength much smaller would gain nothing: as lambda vanishes the error falls to its limit in proportion
    to it, and Newton's steps would follow for ever.
    """
    if curve.bend > 0:
        if abs(curve.slope) <= FLAT * curve.error:
            return 0
        return round(min(max(-curve.slope / (curve.bend * PLACE), -GRID), GRID))
    return GRID if curve.slope < 0 else -GRID if curve.slope > 0 else 0


def by_spectrum(
    values: Tensor, energy: Tensor, mass: float, n: int, unit: float, rule: Literal["gcv", "evidence"], floor: float
) -> Strength:
    r"""The strength by one eigen-decomposition of all samples' kernel, without any held out.

    ``"gcv"``: the least :math:`\frac1n\|\lambda\alpha\|^2 / (\frac\lambda n \mathrm{tr}(K + \lambda I)^{-1})^2` (Golub,
    Heath and Wahba, Technometrics 1979). ``"evidence"``: the greatest marginal likelihood of labels
    :math:`y_c \sim N(0, \tau(K + \lambda I))`, with the best :math:`\tau` for each lambda: the least
    :math:`n \log \sum_c y_c^\top (K + \lambda I)^{-1} y_c + \log\det(K + \lambda I)`.

    Args:
        values: eigenvalues s of K, those that are not zero, [m]. energy: of the labels on each, [m].
        mass: of the labels in all, at least the sum of ``energy``. n: samples. unit: tr(K) / n.
        floor: the least strength that rounding lets through.
    """
    outside = max(mass - float(energy.sum()), 0.0)
    low = max(LOWEST, math.log10(floor / unit))
    relative = torch.logspace(low, HIGHEST, round((HIGHEST - low) * STEPS) + 1, dtype=torch.float64)
    errors = []
    for strength in (unit * relative).tolist():
        shrunk = strength / (values + strength)
        if rule == "gcv":
            residual = outside + float((energy * shrunk.square()).sum())
            errors.append(residual / n / ((n - len(values) + float(shrunk.sum())) / n) ** 2)
        else:
            quadratic = outside / strength + float((energy / (values + strength)).sum())
            determinant = float((values + strength).log().sum()) + (n - len(values)) * math.log(strength)
            errors.append(n * math.log(quadratic) + determinant)
    best = min(range(len(errors)), key=errors.__getitem__)
    chosen = float(relative[best])
    return Strength(unit * chosen, chosen, errors[best], best in (0, len(errors) - 1))


def by_task(rows: Tensor, targets: Tensor, unit: float, seed: int) -> Strength:
    """The published rule of RanPAC: four fifths of the current task are fitted, the others say which strength is best.

    The strength is then used on the sums of all tasks, which are another problem: with few samples in a task it can be
    off by orders of magnitude, and one such task spoils all.

    Args:
        rows: the task's features [n, M]. targets: one-hot [n, C].
    """
    n = len(rows)
    if n < 2:
        raise DataError(f"the strength is to be chosen on the current task alone, which has {n} sample. Try 'gcv'.")
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed)).to(rows.device)
    cut = max(1, min(n - 1, int(TASK_SHARE * n)))
    fit, held = rows[order[:cut]].double(), rows[order[cut:]].double()
    y_fit, y_held = targets[order[:cut]].double(), targets[order[cut:]].double()
    grid = [10.0**k for k in range(-8, 9)]
    if cut < fit.shape[1]:
        values, vectors = torch.linalg.eigh(fit @ fit.T)
        left, right = (held @ fit.T) @ vectors, vectors.T @ y_fit
    else:
        values, vectors = torch.linalg.eigh(fit.T @ fit)
        left, right = held @ vectors, vectors.T @ (fit.T @ y_fit)
    values = values.clamp(min=0)[:, None]
    errors = [float((y_held - left @ (right / (values + unit * r))).square().sum()) for r in grid]
    best = min(range(len(errors)), key=errors.__getitem__)
    return Strength(unit * grid[best], grid[best], errors[best], best in (0, len(grid) - 1))

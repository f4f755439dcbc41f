"""Runs compared seed by seed: intervals, paired tests that are exact for few seeds, and Holm's correction.

Student's distribution has whole degrees of freedom here, for which it is a finite sum (Abramowitz & Stegun 1964, 26.7.3
and 26.7.4), so that reports need neither torch nor scipy.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import DataError

MOST_EXACT = 20  # pairs whose 2^n signs are counted


@dataclass(frozen=True)
class Interval:
    """Mean of ``n`` values and the ends of its confidence interval; None for a single value, which tells no spread."""

    mean: float
    low: float | None
    high: float | None
    n: int

    @staticmethod
    def of(values: Sequence[float], level: float = 0.95) -> Interval:
        r"""Student's interval :math:`\bar x \pm t_{n-1} s / \sqrt n` for values that scatter normally.

        Raises:
            DataError: no value, or a level outside (0, 1).

        >>> round(Interval.of([1.0, 2.0, 3.0]).high, 3)
        4.484
        """
        if not 0 < level < 1:
            raise DataError(f"level must be between 0 and 1, as in 0.95, got {level}")
        x = _finite(values, "values")
        mean = float(x.mean())
        if len(x) == 1:
            return Interval(mean, None, None, 1)
        half = student_quantile(0.5 + level / 2, len(x) - 1) * float(x.std(ddof=1)) / math.sqrt(len(x))
        return Interval(mean, mean - half, mean + half, len(x))


@dataclass(frozen=True)
class Paired:
    """Two rows of runs with the same seeds, a less b.

    Attributes:
        difference: mean and interval of the differences.
        p_t: two-sided, paired t-test. Exact if differences scatter normally.
        p_sign_flip: two-sided, all 2^n signs of the differences, by their mean. Exact if a and b could be exchanged.
        p_signed_rank: two-sided, Wilcoxon's, likewise exact: ties share ranks, zeros are left out.
        least_p: the smallest value that the two exact tests can give for so many pairs, 2^(1 - n).
    """

    difference: Interval
    p_t: float | None
    p_sign_flip: float
    p_signed_rank: float
    least_p: float


def paired(a: Sequence[float], b: Sequence[float]) -> Paired:
    """Compare values of equal seeds.

    Raises:
        DataError: none, not as many a as b, values that are not finite, or more than `MOST_EXACT` pairs.

    >>> paired([3.0, 4.0, 6.0], [1.0, 1.0, 2.0]).p_sign_flip
    0.25
    """
    x, y = _finite(a, "a"), _finite(b, "b")
    if len(x) != len(y):
        raise DataError(f"pairs need as many a as b, got {len(x)} and {len(y)}")
    d = x - y
    return Paired(
        difference=Interval.of(d.tolist()),
        p_t=paired_t(d.tolist()),
        p_sign_flip=sign_flip(d.tolist()),
        p_signed_rank=signed_rank(d.tolist()),
        least_p=2.0 ** (1 - len(d)),
    )


def paired_t(differences: Sequence[float]) -> float | None:
    """Two-sided p of the t-test that the mean difference is 0; None for a single one, 1 if all are 0.

    >>> round(paired_t([1.0, 2.0, 3.0]), 4)
    0.0742
    """
    d = _finite(differences, "differences")
    if len(d) < 2:
        return None
    error = float(d.std(ddof=1)) / math.sqrt(len(d))
    if error == 0:
        return 1.0 if d.mean() == 0 else 0.0
    return 1 - _within(abs(float(d.mean())) / error, len(d) - 1)


def sign_flip(differences: Sequence[float]) -> float:
    """Share of the 2^n choices of signs whose mean is at least as far from 0 as that of the differences.

    The test of Fisher (1935) for pairs. Sums that differ by rounding only count as equal.

    >>> sign_flip([0.5, 1.0, 2.0, 0.25, 0.125])
    0.0625
    """
    d = _finite(differences, "differences")
    if len(d) > MOST_EXACT:
        raise DataError(f"an exact test over {len(d)} pairs counts 2^{len(d)} signs; give at most {MOST_EXACT} pairs")
    sums = np.zeros(1)
    for value in d:
        sums = np.concatenate([sums + value, sums - value])  # [2^i]
    slack = 1e-12 * np.abs(d).sum()
    return float((np.abs(sums) >= abs(d.sum()) - slack).mean())


def signed_rank(differences: Sequence[float]) -> float:
    """Two-sided p of Wilcoxon's signed-rank test (1945) from its exact distribution; 1 if all differences are 0.

    >>> signed_rank([0.5, 1.0, -2.0, 0.25, 0.125])
    0.625
    """
    d = _finite(differences, "differences")
    d = d[d != 0]
    if not len(d):
        return 1.0
    size = np.abs(d)
    ranks = np.array([(size < s).sum() + ((size == s).sum() + 1) / 2 for s in size])
    return sign_flip((ranks * np.sign(d)).tolist())


def holm(p: Sequence[float]) -> list[float]:
    """Holm's (1979) adjusted p of several tests: comparing each with alpha keeps the family-wise error below it.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    values = _finite(p, "p", empty=True)
    adjusted, largest = [0.0] * len(values), 0.0
    for place, i in enumerate(np.argsort(values, kind="stable").tolist()):
        largest = max(largest, min(1.0, float(values[i]) * (len(values) - place)))
        adjusted[i] = largest
    return adjusted


def student_cdf(t: float, dof: int) -> float:
    """P(T <= t) of Student's distribution with a whole number of degrees of freedom.

    >>> student_cdf(1.0, 1)
    0.75
    """
    inside = _within(abs(t), dof) / 2
    return 0.5 + inside if t >= 0 else 0.5 - inside


def student_quantile(p: float, dof: int) -> float:
    """The t with P(T <= t) = p, by bisection to the last digit.

    >>> round(student_quantile(0.975, 4), 4)
    2.7764
    """
    if not 0 < p < 1:
        raise DataError(f"p must be between 0 and 1, got {p}")
    if p < 0.5:
        return -student_quantile(1 - p, dof)
    low, high = 0.0, 1.0
    while student_cdf(high, dof) < p:
        low, high = high, 2 * high
    while low < (middle := (low + high) / 2) < high:
        low, high = (middle, high) if student_cdf(middle, dof) < p else (low, middle)
    return high


def _within(t: float, dof: int) -> float:
    """P(-t <= T <= t) for t >= 0, with theta = atan(t / sqrt dof)."""
    if isinstance(dof, bool) or not isinstance(dof, (int, np.integer)) or dof < 1:
        raise DataError(f"degrees of freedom must be a whole number of at least 1, got {dof!r}")
    theta = math.atan2(t, math.sqrt(dof))
    sine, squared = math.sin(theta), math.cos(theta) ** 2
    odd = dof % 2
    term = math.cos(theta) if odd else 1.0
    terms = [term] if dof > 1 else []
    for k in range(2 + odd, dof - 1, 2):  # even: 1/2, 3/4, ... odd: 2/3, 4/5, ...
        term *= squared * (k - 1) / k
        terms.append(term)
    total = sine * math.fsum(terms)
    return 2 / math.pi * (theta + total) if odd else total


def _finite(values: Sequence[float], name: str, *, empty: bool = False) -> np.ndarray:
    x = np.asarray(values, dtype=np.float64)
    if x.ndim != 1 or not (len(x) or empty) or not np.isfinite(x).all():
        raise DataError(f"{name} must be a row of finite numbers, got {list(values)}")
    return x

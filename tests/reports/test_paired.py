"""Paired comparisons against scipy, and by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from tangentcl.errors import DataError
from tangentcl.reports.paired import (
    Interval,
    holm,
    paired,
    paired_t,
    sign_flip,
    signed_rank,
    student_cdf,
    student_quantile,
)


@pytest.mark.parametrize("dof", [1, 2, 3, 4, 5, 6, 9, 10, 29, 100])
def test_student_is_scipys(dof) -> None:
    for t in (-30.0, -2.5, -0.1, 0.0, 0.3, 1.0, 4.0, 12.7):
        assert student_cdf(t, dof) == pytest.approx(stats.t.cdf(t, dof), abs=1e-14)
    for p in (0.001, 0.2, 0.5, 0.9, 0.975, 0.9995):
        assert student_quantile(p, dof) == pytest.approx(stats.t.ppf(p, dof), rel=1e-9, abs=1e-12)


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 9), st.integers(0, 10_000))
def test_tests_are_scipys(n, seed) -> None:
    rng = np.random.default_rng(seed)
    a, b = rng.normal(0.3, 1, n), rng.normal(0, 1, n)
    found = paired(a.tolist(), b.tolist())
    assert found.p_t == pytest.approx(stats.ttest_rel(a, b).pvalue, abs=1e-12)
    assert found.p_signed_rank == pytest.approx(stats.wilcoxon(a, b, method="exact").pvalue, abs=1e-12)
    flips = stats.permutation_test(
        (a, b), lambda x, y, axis: np.abs((x - y).mean(axis=axis)), permutation_type="samples", vectorized=True,
        n_resamples=np.inf, alternative="greater",
    )  # fmt: skip
    assert found.p_sign_flip == pytest.approx(flips.pvalue, abs=1e-12)
    expected = stats.t.interval(0.95, n - 1, (a - b).mean(), stats.sem(a - b))
    assert (found.difference.low, found.difference.high) == pytest.approx(expected, abs=1e-10)
    assert found.least_p == 2 / 2**n


def test_ties_share_ranks_and_zeros_are_left_out() -> None:
    # |d| = 1, 1, 2 have the ranks 1.5, 1.5, 3; the sum of the signed ones is 6 at most, reached by 2 of 8 signs.
    assert signed_rank([1.0, 1.0, 2.0, 0.0]) == 2 / 8
    # -1.5 + 1.5 + 3 = 3: sums are 6, 3, 3, 0 and their opposites, of which 6 are at least 3 away from 0.
    assert signed_rank([-1.0, 1.0, 2.0]) == 6 / 8
    assert signed_rank([0.0, 0.0]) == 1.0


def test_sums_equal_but_for_rounding_count() -> None:
    assert sign_flip([0.1, 0.2, -0.3]) == 1.0  # 0.1 + 0.2 - 0.3 is not 0 in floating point


def test_five_seeds_cannot_fall_below_a_sixteenth() -> None:
    found = paired([10.0, 11.0, 12.0, 13.0, 14.0], [0.0, 0.1, 0.2, 0.3, 0.4])
    assert found.p_sign_flip == found.p_signed_rank == found.least_p == 0.0625
    assert found.p_t is not None
    assert found.p_t < 1e-4


def test_holm_by_hand() -> None:
    # Sorted 0.005, 0.01, 0.03, 0.04 times 4, 3, 2, 1 is 0.02, 0.03, 0.06, 0.04; the last takes the largest before it.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_one_seed_tells_no_spread() -> None:
    found = paired([1.0], [0.5])
    assert (found.difference, found.p_t, found.p_sign_flip) == (Interval(0.5, None, None, 1), None, 1.0)


def test_no_spread_at_all() -> None:
    assert paired_t([0.0, 0.0]) == 1.0
    assert paired_t([0.5, 0.5]) == 0.0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: paired([1.0], [1.0, 2.0]), "as many a as b, got 1 and 2"),
        (lambda: paired([], []), "finite numbers"),
        (lambda: sign_flip([float("nan")]), "finite numbers"),
        (lambda: sign_flip([1.0] * 21), "at most 20 pairs"),
        (lambda: Interval.of([1.0, 2.0], level=95), "between 0 and 1"),
        (lambda: student_quantile(1.0, 3), "between 0 and 1"),
        (lambda: student_cdf(1.0, 0), "at least 1, got 0"),
    ],
)
def test_what_cannot_be_used(call, message) -> None:
    with pytest.raises(DataError, match=message):
        call()

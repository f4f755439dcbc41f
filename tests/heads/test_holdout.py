"""The error on held-out samples along the strength: its derivatives, and the walk to its minimum."""

from __future__ import annotations

import math

import pytest
import torch

from tangentcl.heads import NoLift, RidgeHead
from tangentcl.heads.holdout import Curve, HeldOut
from tangentcl.heads.strength import by_holdout
from tangentcl.heads.sums import RidgeSums

CASES = {"rows": (40, 12, 60), "rows, more than the width": (50, 20, 60), "dense": (200, 30, 20), "both": (200, 60, 20)}
CASES["held out dense"] = (15, 40, 20)


def sums(n: int, width: int, seed: int) -> RidgeSums:
    g = torch.Generator().manual_seed(seed)
    found = RidgeSums(width)
    found.append(3)
    labels = torch.arange(n) % 3
    rows = torch.randn(n, width, generator=g).double() + 2 * torch.eye(3, width).double()[labels]
    for part in torch.arange(n).split(n // 2 + 1):  # kernels grow
        found.add(rows[part], labels[part], torch.linspace(0.5, 2, n).double()[part])
        _ = None if found.is_dense else found.kernel
    return found


def direct(fitted: RidgeSums, held: RidgeSums, n: tuple[int, int, int], strength: float) -> float:
    """From samples, without a sum."""
    h, x, width = n
    rows, targets = [], []
    for count, seed in ((h, 0), (x, 1)):
        g = torch.Generator().manual_seed(seed)
        labels, root = torch.arange(count) % 3, torch.linspace(0.5, 2, count).double().sqrt()[:, None]
        z = torch.randn(count, width, generator=g).double() + 2 * torch.eye(3, width).double()[labels]
        rows.append(root * z)
        targets.append(root * torch.nn.functional.one_hot(labels, 3).double())
    w = torch.linalg.solve(rows[0].T @ rows[0] + strength * torch.eye(width).double(), rows[0].T @ targets[0])
    return float((rows[1] @ w - targets[1]).square().sum())


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("strength", [0.3, 40.0])
def test_the_curve_is_the_error_and_its_derivatives(case: str, strength: float) -> None:
    n = CASES[case]
    fitted, held = sums(n[0], n[2], 0), sums(n[1], n[2], 1)
    both = HeldOut(fitted, held)
    assert both.dual == case.startswith("rows")
    found = both.curve(strength)

    def at(step: float) -> float:
        return direct(fitted, held, n, strength * math.exp(step))

    h = 1e-3
    assert found.error == pytest.approx(at(0), rel=1e-9)
    assert found.slope == pytest.approx((at(h) - at(-h)) / (2 * h), rel=1e-4)
    assert found.bend == pytest.approx((at(h) - 2 * at(0) + at(-h)) / h**2, rel=1e-3, abs=1e-4)
    expected = fitted.joined(held).weights(strength)
    torch.testing.assert_close(both.weights(strength), expected, rtol=1e-9, atol=1e-12)
    assert both.trace == pytest.approx(fitted.joined(held).trace, rel=1e-12)
    assert both.largest(3000) == pytest.approx(float(fitted.joined(held).spectrum()[0].max()), rel=1e-6)


def valley(minimum: float, steep: float = 1.0) -> tuple[list[float], object]:
    """E = steep (1 - exp(-(t - minimum)^2 / 8)) with t = log10 of the strength: flat far away, where it bends down."""
    asked: list[float] = []

    def curve(strength: float) -> Curve:
        asked.append(strength)
        t = math.log10(strength) - minimum
        e = math.exp(-(t**2) / 8)
        slope, bend = t / 4 * e, (1 / 4 - t**2 / 16) * e  # in t
        return Curve(steep * (1 - e), steep * slope / math.log(10), steep * bend / math.log(10) ** 2)

    return asked, curve


@pytest.mark.parametrize("minimum", [-6.3, -1.0, 0.06, 2.6])
@pytest.mark.parametrize("start", [None, 1e-8, 3e-2, 1e4])
def test_the_walk_ends_at_the_same_place_from_wherever(minimum: float, start: float | None) -> None:
    asked, curve = valley(minimum)
    found = by_holdout(curve, 1.0, start, 1e-12)  # type: ignore[arg-type]
    assert math.log10(found.relative) == pytest.approx(round(minimum * 8) / 8, abs=1e-12)
    assert not found.at_edge
    assert len(asked) <= 16


def test_one_factorisation_where_the_last_choice_holds() -> None:
    asked, curve = valley(-1.02)
    found = by_holdout(curve, 5.0, 10.0**-1.75, 1e-12)  # type: ignore[arg-type]
    assert found.value == pytest.approx(10**-1.0, rel=0.2)
    assert len(asked) <= 2
    asked.clear()
    assert by_holdout(curve, 5.0, found.relative, 1e-12) == found  # type: ignore[arg-type]
    assert len(asked) == 1


@pytest.mark.parametrize(("minimum", "edge"), [(-11.0, -8.0), (7.0, 4.0)])
def test_a_minimum_outside_is_found_at_the_edge(minimum: float, edge: float) -> None:
    _, curve = valley(minimum)
    found = by_holdout(curve, 1.0, None, 1e-12)  # type: ignore[arg-type]
    assert math.log10(found.relative) == pytest.approx(edge)
    assert found.at_edge


def test_the_floor_of_rounding_is_the_least_strength() -> None:
    _, curve = valley(-6.0)
    found = by_holdout(curve, 2.0, None, 2e-3)  # type: ignore[arg-type]
    assert found.relative == pytest.approx(1e-3)
    assert found.at_edge


def test_the_walk_does_not_follow_an_error_that_falls_no_more() -> None:
    asked: list[float] = []

    def curve(strength: float) -> Curve:
        asked.append(strength)
        return Curve(5 + strength, strength, strength)

    found = by_holdout(curve, 1.0, None, 1e-12)
    assert 1e-5 < found.value < 5e-4
    assert len(asked) < 15


def test_a_flat_error_ends_the_walk_where_it_began() -> None:
    found = by_holdout(lambda _: Curve(1.0, 0.0, 0.0), 1.0, None, 1e-12)
    assert found.relative == 1.0


def test_rows_that_came_in_parts_give_what_they_give_at_once() -> None:
    g = torch.Generator().manual_seed(3)
    y = torch.arange(300) % 5  # classes apart: where labels are noise the error hardly depends on the strength
    z = torch.randn(300, 400, generator=g) + 2 * torch.eye(5, 400)[y]
    whole = RidgeHead(NoLift(400)).fit_task(z, y)
    parts = RidgeHead(NoLift(400))
    for chunk in torch.arange(300).split(45):
        parts.fit_task(z[chunk], y[chunk])
        _ = parts.weights  # kernels are kept between solves
    assert parts.strength.value == pytest.approx(whole.strength.value, rel=1e-12)
    torch.testing.assert_close(parts.weights, whole.weights, rtol=1e-10, atol=1e-12)

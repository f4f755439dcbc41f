"""Ridge heads against joint solves, order, unlearning, and the exact formula of what an update forgets; float64."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from tangentcl.errors import ConfigError, DataError, ModelError
from tangentcl.heads import (
    AnalyticHead,
    ArcCosineRidge,
    FeCAM,
    Lift,
    NoLift,
    NystromArcCosine,
    RandomReLU,
    RecursiveRidge,
    RidgeHead,
    SharedGaussian,
    TruncatedRidge,
    arc_cosine_kernel,
)
from tangentcl.heads import sums as sums_module
from tangentcl.heads.holdout import HeldOut
from tangentcl.heads.strength import held_out
from tangentcl.heads.sums import Factored, add_gram
from tangentcl.linalg import gram_spectrum, ridge
from tangentcl.theory import risk_curve

D = 6


def data(n: int = 120, n_classes: int = 6, seed: int = 0, width: int = D) -> tuple[Tensor, Tensor]:
    """Gaussian classes, float64 [n, width], labels in blocks of classes."""
    rng = np.random.default_rng(seed)
    labels = np.sort(np.arange(n) % n_classes)
    centres = np.random.default_rng(99).normal(size=(n_classes, width)) * 2
    return torch.from_numpy(centres[labels] + rng.normal(size=(n, width))), torch.from_numpy(labels)


def tasks(n: int = 120, n_tasks: int = 3) -> list[tuple[Tensor, Tensor]]:
    z, y = data(n)
    return list(zip(z.chunk(n_tasks), y.chunk(n_tasks)))


def joint_weights(head: RidgeHead, z: Tensor, y: Tensor, n_classes: int) -> Tensor:
    h = head.lifted(z)
    targets = torch.nn.functional.one_hot(y, n_classes).double()
    return torch.linalg.solve(h.T @ h + head.strength.value * torch.eye(h.shape[1]).double(), h.T @ targets)


LIFTS = {
    "none": lambda: NoLift(D),
    "dense": lambda: RandomReLU(D, 40, seed=1),
    "rows": lambda: RandomReLU(D, 300, seed=1),
}


@pytest.mark.parametrize("lift", LIFTS)
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_sequential_weights_equal_joint_ones_in_any_order(lift: str, order: tuple[int, ...]) -> None:
    head, parts = RidgeHead(LIFTS[lift](), strength=1e-2), tasks()
    for t in order:
        head.fit_task(*parts[t])
    z, y = data()
    expected = joint_weights(head, z, y, 6)
    assert float((head.weights - expected).norm() / expected.norm()) < 1e-10
    assert head.fitted.is_dense == (lift != "rows")
    unit = float(head.lifted(z).square().sum()) / len(z)
    assert head.strength.value == pytest.approx(1e-2 * unit, rel=1e-12)
    assert torch.equal(head.counts, torch.bincount(y))


def test_the_joint_solve_equals_the_library_s_ridge() -> None:
    z, y = data()
    head = RidgeHead(NoLift(D), strength=0.3).fit_task(z, y)
    expected, _ = ridge(z, torch.nn.functional.one_hot(y).double(), head.strength.value)
    torch.testing.assert_close(head.weights, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("lift", LIFTS)
@pytest.mark.parametrize("rule", [1e-2, "holdout", "gcv", "evidence"])
def test_learning_and_forgetting_is_the_identity(lift: str, rule: float) -> None:
    first, second, third = tasks()
    head = RidgeHead(LIFTS[lift](), strength=rule).fit_task(*first).fit_task(*third)
    head.grow(6)
    same = copy.deepcopy(head).fit_task(*second).forget(*second)
    torch.testing.assert_close(same.weights, head.weights, rtol=1e-6, atol=1e-8)
    assert same.strength.relative == pytest.approx(head.strength.relative, rel=1e-6)
    x = data(seed=5)[0]
    assert bool((same.predict(x)[:, 2:4] == -torch.inf).all()), "forgotten classes compete no more"
    assert bool(same.predict(x)[:, :2].isfinite().all())


@pytest.mark.parametrize("lift", LIFTS)
@pytest.mark.parametrize("rule", [1e-2, "holdout", "gcv"])
def test_merging_equals_learning_together(lift: str, rule: float) -> None:
    first, second, third = tasks()
    one = RidgeHead(LIFTS[lift](), strength=rule).fit_task(*second)
    other = RidgeHead(LIFTS[lift](), strength=rule).fit_task(*first)
    before = other.weights.clone()
    one.merge(other).fit_task(*third)
    together = RidgeHead(LIFTS[lift](), strength=rule)
    for part in (first, second, third):
        together.fit_task(*part)
    torch.testing.assert_close(one.weights, together.weights, rtol=1e-8, atol=1e-10)
    assert torch.equal(other.weights, before)
    assert other.n_outputs == 2


def test_heads_that_differ_are_not_merged() -> None:
    head = RidgeHead(RandomReLU(D, 20, seed=0), strength=0.1).fit_task(*data())
    with pytest.raises(ModelError, match="same settings"):
        head.merge(RidgeHead(RandomReLU(D, 20, seed=0), strength=0.2))
    with pytest.raises(ModelError, match="different lifts"):
        head.merge(RidgeHead(RandomReLU(D, 20, seed=7), strength=0.1).fit_task(*data()))
    assert torch.equal(head.counts, torch.bincount(data()[1])), "a refused merge changes nothing"


@pytest.mark.parametrize("lift", LIFTS)
@pytest.mark.parametrize("balanced", [False, True])
def test_the_drift_of_an_update_is_known_before_it(lift: str, balanced: bool) -> None:
    first, second, third = tasks()
    head = RidgeHead(LIFTS[lift](), strength=1e-2, balanced=balanced).fit_task(*first).fit_task(*second)
    before, kept = head.predict(first[0]), head.strength.value
    drift, values = head.update_drift(first[0], *third)
    assert torch.equal(head.predict(first[0]), before), "nothing was learned"
    head.fit_task(*third)
    everything = head.fitted
    real = head.lifted(first[0]) @ everything.weights(kept)  # the same strength, which the formula is for
    real[:, :4] -= before[:, :4]
    assert float((drift - real).norm() / real.norm()) < 1e-10
    assert float(real[:, :4].norm()) > 1e-3, "the update moves old scores"
    assert bool((values[:-1] >= values[1:]).all())
    assert len(values) == len(third[0])


def test_a_forecast_is_the_update_itself_with_its_new_strength() -> None:
    first, second, third = tasks()
    head = RidgeHead(RandomReLU(D, 40), strength="holdout").fit_task(*first).fit_task(*second)
    forecast = head.forecast(first[0], *third)
    assert head.n_outputs == 4
    head.fit_task(*third)
    torch.testing.assert_close(forecast.outputs + forecast.drift, head.predict(first[0]), rtol=1e-12, atol=1e-12)
    now, after = forecast.accuracy(first[1], known=4)
    assert after == float((head.predict(first[0]).argmax(1) == first[1]).double().mean())
    assert now >= after


@pytest.mark.parametrize("lift", LIFTS)
def test_the_held_out_error_from_sums_is_the_direct_one(lift: str) -> None:
    z, y = data(400)
    aside = held_out(z, 0.3)
    head = RidgeHead(LIFTS[lift](), strength="holdout", holdout=0.3).fit_task(z, y)
    assert int(head.held.n) == int(aside.sum())
    h, targets = head.lifted(z), torch.nn.functional.one_hot(y).double()
    unit = float(h.square().sum()) / len(z)
    errors = []
    grid = [unit * 10.0 ** (k / 8) for k in range(-8 * 8, 4 * 8 + 1)]  # eight in a decade
    for strength in grid:
        w, _ = ridge(h[~aside], targets[~aside], strength)
        errors.append(float((h[aside] @ w - targets[aside]).square().sum()))
        assert head.held.squared_error(head.fitted.weights(strength)) == pytest.approx(errors[-1], rel=1e-9)
        assert HeldOut(head.fitted, head.held).curve(strength).error == pytest.approx(errors[-1], rel=1e-8)
    assert head.strength.value == pytest.approx(grid[int(np.argmin(errors))], rel=1e-9)
    assert head.strength.error == pytest.approx(min(errors), rel=1e-3)  # of a parabola, where the last step went
    expected = joint_weights(head, z, y, 6)  # weights are of all samples, those kept aside too
    torch.testing.assert_close(head.weights, expected, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("lift", LIFTS)
def test_gcv_is_that_of_the_theory_report_and_evidence_that_of_the_gaussian(lift: str) -> None:
    z, y = data()
    targets = torch.nn.functional.one_hot(y).double()
    head = RidgeHead(LIFTS[lift](), strength="gcv").fit_task(z, y)
    h = head.lifted(z)
    unit = float(h.square().sum()) / len(z)
    grid = unit * torch.logspace(-8, 4, 49, dtype=torch.float64)
    curve = risk_curve(gram_spectrum(h), targets, grid)
    assert head.strength.error == pytest.approx(float(curve.gcv.min()), rel=1e-6)
    assert head.strength.value == pytest.approx(float(grid[curve.gcv.argmin()]), rel=1e-6)

    head = RidgeHead(LIFTS[lift](), strength="evidence").fit_task(z, y)
    kernel, n = h @ h.T, len(z)

    def negative_log(strength: float) -> float:
        covariance = kernel + strength * torch.eye(n)
        quadratic = float((targets * torch.linalg.solve(covariance, targets)).sum())
        tau = quadratic / (n * 6)
        normal = torch.distributions.MultivariateNormal(torch.zeros(n).double(), tau * covariance)
        return -float(normal.log_prob(targets.T).sum())

    values = [negative_log(float(s)) for s in grid[grid > unit * 1e-6]]
    best = float(grid[grid > unit * 1e-6][int(np.argmin(values))])
    assert head.strength.value == pytest.approx(best, rel=1e-6)


def test_what_is_held_out_depends_on_the_sample_alone() -> None:
    z, _ = data(3000)
    mask = held_out(z, 0.1)
    order = torch.randperm(len(z))
    assert torch.equal(held_out(z[order], 0.1), mask[order])
    assert torch.equal(held_out(z[5:9], 0.1), mask[5:9])
    assert 240 < int(mask.sum()) < 360
    one_hot = torch.eye(400)
    assert 20 < int(held_out(one_hot, 0.1).sum()) < 65, "features of few distinct numbers are spread, too"
    assert not held_out(z, 0.0).any()


def test_one_class_that_weighs_the_same_as_another_however_few_its_samples() -> None:
    z, y = data()
    keep = (y != 0) | (torch.arange(len(y)) < 4)  # class 0 has four samples left
    head = RidgeHead(NoLift(D), strength=1e-2, balanced=True).fit_task(z[keep], y[keep])
    weights = 1.0 / torch.bincount(y[keep])[y[keep]].double()
    h, targets = z[keep], torch.nn.functional.one_hot(y[keep]).double()
    g = (h * weights[:, None]).T @ h + head.strength.value * torch.eye(D)
    torch.testing.assert_close(
        head.weights, torch.linalg.solve(g, (h * weights[:, None]).T @ targets), rtol=1e-9, atol=1e-11
    )
    plain = RidgeHead(NoLift(D), strength=1e-2).fit_task(z[keep], y[keep])
    x, of = data(seed=3)[0][:20], 0
    assert (head.predict(x).argmax(1) == of).sum() >= (plain.predict(x).argmax(1) == of).sum()


def test_a_constant_feature_is_a_bias() -> None:
    z, y = data()
    head = RidgeHead(NoLift(D), strength=1e-10, constant=1.0).fit_task(z + 100, y)
    apart = float((head.predict(z + 100).sum(1) - 1).abs().max())  # with a bias least squares sum to one
    without = RidgeHead(NoLift(D), strength=1e-10).fit_task(z + 100, y)
    assert apart < 1e-2 * float((without.predict(z + 100).sum(1) - 1).abs().max())


@pytest.mark.parametrize("rule", ["holdout", "gcv", "evidence", 0.1])
def test_awkward_samples(rule: float) -> None:
    z, y = data()
    constant = RidgeHead(NoLift(D), strength=rule).fit_task(torch.ones_like(z), y)
    assert bool(constant.predict(z).isfinite().all())
    zero = RidgeHead(NoLift(D), strength=rule).fit_task(torch.zeros_like(z), y)
    assert bool((zero.predict(z) == 0).all())
    single = RidgeHead(RandomReLU(D, 50), strength=rule).fit_task(z[:1], y[:1])
    assert bool(single.predict(z).isfinite().all())
    alone = RidgeHead(RandomReLU(D, 50), strength=rule).fit_task(z, y).fit_task(z[:1] * 9, torch.tensor([6]))
    assert bool(alone.predict(z).isfinite().all())
    if rule in ("holdout", "gcv"):
        assert int(alone.predict(z[:1] * 9).argmax()) == 6
    repeated = RidgeHead(RandomReLU(D, 50), strength=rule).fit_task(z[:2].repeat(40, 1), y[[0, -1]].repeat(40))
    assert bool(repeated.predict(z).isfinite()[:, [0, 5]].all())


def test_a_strength_at_the_end_of_the_grid_is_said() -> None:
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(200, D, generator=generator).double()
    labels = torch.randint(2, (200,), generator=generator)
    targets_free = noise - noise.mean(0)
    assert RidgeHead(NoLift(D), strength="gcv").fit_task(targets_free, labels).strength.at_edge
    z, y = data(600)
    assert not RidgeHead(NoLift(D), strength="gcv").fit_task(z, y).strength.at_edge


@pytest.mark.parametrize(
    "features, labels, message",
    [
        (torch.zeros(3, D + 1), torch.zeros(3, dtype=torch.int64), r"expected features \[n, 6\]"),
        (torch.zeros(3, D), torch.zeros(2, dtype=torch.int64), r"labels \[n\]"),
        (torch.zeros(0, D), torch.zeros(0, dtype=torch.int64), "no sample"),
        (torch.full((2, D), torch.nan), torch.zeros(2, dtype=torch.int64), "not finite; the first is that of sample 0"),
        (torch.zeros(2, D), torch.tensor([0, -1]), "from 0"),
        (torch.zeros(2, D), torch.zeros(2), "whole numbers"),
    ],
)
def test_bad_samples_are_refused_and_nothing_is_lost(features: Tensor, labels: Tensor, message: str) -> None:
    head = RidgeHead(NoLift(D), strength=0.1).fit_task(*data())
    before = head.weights.clone()
    with pytest.raises(DataError, match=message):
        head.fit_task(features, labels)
    assert torch.equal(head.weights, before)


def test_bad_settings_are_refused() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'holdout'"):
        RidgeHead(NoLift(D), strength="holdut")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="positive"):
        RidgeHead(NoLift(D), strength=0.0)
    with pytest.raises(ConfigError, match="between 0 and 1"):
        RidgeHead(NoLift(D), holdout=1.0)
    with pytest.raises(DataError, match="class 0 was learned from 20 samples, 21"):
        RidgeHead(NoLift(D)).fit_task(*data()).forget(data()[0][:21], torch.zeros(21, dtype=torch.int64))
    with pytest.raises(ModelError, match="never shrinks"):
        RidgeHead(NoLift(D)).grow(3).grow(2)
    with pytest.raises(ConfigError, match="in the dual"):
        ArcCosineRidge(D, strength="holdout")


def test_state_goes_into_a_fresh_head(monkeypatch: pytest.MonkeyPatch) -> None:
    for lift in LIFTS.values():
        head = RidgeHead(lift())
        for part in tasks():
            head.fit_task(*part)
        fresh = RidgeHead(lift()).grow(6)
        fresh.load_state_dict(head.state_dict())
        assert torch.equal(fresh.weights, head.weights)
        fresh.fit_task(*data(seed=8))
        head.fit_task(*data(seed=8))
        assert torch.equal(fresh.weights, head.weights)


def test_weights_are_solved_for_once_after_an_update(monkeypatch: pytest.MonkeyPatch) -> None:
    head = RidgeHead(NoLift(D), strength=0.1).fit_task(*data())
    solved = []
    real = Factored.solve
    monkeypatch.setattr(Factored, "solve", lambda self, *a: solved.append(self) or real(self, *a))
    head.predict(data()[0])
    head.predict(data()[0])
    assert len(solved) == 1


def test_the_blocked_gram_matrix_is_the_plain_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sums_module, "COLUMNS", 7)
    rows = torch.randn(30, 20, dtype=torch.float64)
    total = torch.eye(20, dtype=torch.float64)
    add_gram(total, rows)
    torch.testing.assert_close(total, torch.eye(20).double() + rows.T @ rows, rtol=1e-13, atol=1e-13)
    add_gram(total, rows, -1)
    torch.testing.assert_close(total, torch.eye(20).double(), rtol=0, atol=1e-12)
    assert torch.equal(total, total.T)


def test_a_float32_factor_with_refinement_is_as_good_as_a_float64_one() -> None:
    rows = torch.randn(80, 60, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    matrix, right = rows.T @ rows, torch.randn(60, 4, dtype=torch.float64)
    exact = torch.linalg.solve(matrix + 1e-3 * torch.eye(60).double(), right)
    refined = Factored(matrix, 1e-3, single=True).solve(right)
    assert float((refined - exact).norm() / exact.norm()) < 1e-10
    hard = rows[:30].T @ rows[:30]  # of rank 30: no factor in float32 at this strength
    exact = torch.linalg.solve(hard + 1e-9 * torch.eye(60).double(), right)
    assert float((Factored(hard, 1e-9, single=True).solve(right) - exact).norm() / exact.norm()) < 1e-5
    with pytest.raises(DataError, match="singular"):
        Factored(-matrix, 1e-3, single=True).solve(right)


def test_wide_heads_in_float32_agree_with_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    z, y = data(500)
    exact = RidgeHead(RandomReLU(D, 100, seed=2), strength=1e-2).fit_task(z, y)
    monkeypatch.setattr(sums_module, "EXACT_WIDTH", 10)
    single = RidgeHead(RandomReLU(D, 100, seed=2), strength=1e-2).fit_task(z.float(), y)
    x = data(seed=4)[0]
    apart = (single.predict(x.float()).double() - exact.predict(x)).norm() / exact.predict(x).norm()
    assert 1e-9 < float(apart) < 1e-4


def test_recursive_least_squares_are_the_same_ridge() -> None:
    first, second, third = tasks()
    lift = RandomReLU(D, 40, seed=1)
    recursive = RecursiveRidge(lift, strength=0.5)
    plain = RidgeHead(lift, strength=1.0)
    for part in (first, second, third):
        recursive.fit_task(*part)
        plain.fit_task(*part)
        expected = plain.fitted.weights(0.5)
        assert float((recursive.weights - expected).norm() / expected.norm()) < 1e-10
    inverse = torch.linalg.inv(plain.fitted.gram + 0.5 * torch.eye(40).double())
    torch.testing.assert_close(recursive.covariance, inverse, rtol=1e-8, atol=1e-10)
    h = lift(first[0])
    torch.testing.assert_close(recursive.posterior_kernel(first[0], first[0]), h @ inverse @ h.T, rtol=1e-8, atol=1e-10)
    with_all = copy.deepcopy(recursive)
    recursive.forget(*second)
    other = RecursiveRidge(lift, strength=0.5).fit_task(*first).fit_task(*third)
    torch.testing.assert_close(recursive.weights, other.weights, rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(
        other.merge(RecursiveRidge(lift, strength=0.5).fit_task(*second)).weights,
        with_all.weights,
        rtol=1e-7,
        atol=1e-9,
    )
    with pytest.raises(DataError, match="not learned"):
        RecursiveRidge(lift, strength=1e-3).fit_task(*first).forget(100 * first[0][:1], first[1][:1])


def test_random_units_tend_to_the_arc_cosine_kernel() -> None:
    z = data(30)[0]
    kernel = arc_cosine_kernel(z, z)
    errors = []
    for n_units in (1000, 16000):
        h = RandomReLU(D, n_units, seed=0)(z)
        errors.append(float((h @ h.T - kernel).norm() / kernel.norm()))
    assert errors[1] < 0.05
    assert errors[1] < errors[0] / 2.5  # a quarter, up to chance
    generator = np.random.default_rng(0)
    r = generator.normal(size=(400_000, D))
    sampled = np.maximum(r @ z[0].numpy(), 0) * np.maximum(r @ z[-1].numpy(), 0)
    assert float(kernel[0, -1]) == pytest.approx(sampled.mean(), abs=4 * sampled.std() / len(r) ** 0.5)


def test_the_dual_is_the_limit_of_wide_lifts_and_of_all_landmarks() -> None:
    z, y = data()
    x = data(seed=6)[0]
    dual = ArcCosineRidge(D, strength=0.05).fit_task(z[:60], y[:60]).fit_task(z[60:], y[60:])
    kernel = arc_cosine_kernel(z, z)
    strength = 0.05 * float(kernel.trace()) / len(z)
    alpha = torch.linalg.solve(kernel + strength * torch.eye(len(z)).double(), torch.nn.functional.one_hot(y).double())
    expected = arc_cosine_kernel(x, z) @ alpha
    torch.testing.assert_close(dual.predict(x), expected, rtol=1e-8, atol=1e-10)

    landmarks = NystromArcCosine(D, len(z), iterations=0)
    landmarks.fit(z)
    nystrom = RidgeHead(landmarks, strength=0.05).fit_task(z, y)
    assert float((nystrom.predict(x) - expected).norm() / expected.norm()) < 0.02
    wide = RidgeHead(RandomReLU(D, 20_000, seed=0), strength=0.05).fit_task(z, y)
    assert float((wide.predict(x) - expected).norm() / expected.norm()) < 0.05

    other = ArcCosineRidge(D, strength=0.05).fit_task(z[60:], y[60:])
    torch.testing.assert_close(
        other.merge(ArcCosineRidge(D, strength=0.05).fit_task(z[:60], y[:60])).predict(x), expected
    )
    extra = data(seed=7)
    torch.testing.assert_close(dual.fit_task(*extra).forget(*extra).predict(x), expected)
    with pytest.raises(DataError, match="bit-equal"):
        dual.forget(z[:1] + 1, y[:1])
    fresh = ArcCosineRidge(D, strength=0.05).grow(6)
    fresh.load_state_dict(dual.state_dict())
    torch.testing.assert_close(fresh.predict(x), expected)


def test_landmarks_have_their_number_whatever_the_first_task_brings() -> None:
    z, y = data(12)
    lift: Lift = NystromArcCosine(D, 30, seed=3)
    with pytest.raises(DataError, match="call fit first"):
        lift(z)
    head = RidgeHead(lift, strength=1e-2).fit_task(z, y)
    assert head.lifted(z).shape == (12, 30)
    kernel = arc_cosine_kernel(z, z)
    h = head.lifted(z)
    assert float((h @ h.T - kernel).norm() / kernel.norm()) < 1e-4, "every sample is a landmark"


def test_digits_are_learned_and_a_strength_from_all_tasks_does_not_collapse() -> None:
    datasets = pytest.importorskip("sklearn.datasets")
    x, y = (torch.from_numpy(a) for a in datasets.load_digits(return_X_y=True))
    x = x / 16 + 0.0
    test = torch.arange(len(x)) % 4 == 0
    head = RidgeHead(RandomReLU(64, 500, seed=0))
    for t in range(5):
        now = ~test & (y // 2 == t)
        head.fit_task(x[now], y[now])
    accuracy = float((head.predict(x[test]).argmax(1) == y[test]).double().mean())
    assert accuracy > 0.96
    small = RidgeHead(RandomReLU(64, 500, seed=0), strength="task")
    for t in range(5):
        now = (~test & (y // 2 == t)).nonzero().flatten()[:40]
        small.fit_task(x[now], y[now])
    assert small.strength.relative in [pytest.approx(10.0**k) for k in range(-8, 9)]


@pytest.mark.parametrize("name", ["ridge", "ridge-wide", "truncated", "recursive", "shared", "fecam", "arc-cosine"])
def test_autocast_changes_nothing(name: str) -> None:
    """A run in bf16 learns and predicts under autocast; sums and solves must not be of eight bits."""
    makes: dict[str, Callable[[], AnalyticHead]] = {
        "ridge": lambda: RidgeHead(RandomReLU(D, 40, seed=0)),
        "ridge-wide": lambda: RidgeHead(RandomReLU(D, 2100, seed=0), strength=0.1),
        "truncated": lambda: TruncatedRidge(RandomReLU(D, 40, seed=0), block=50),
        "recursive": lambda: RecursiveRidge(RandomReLU(D, 40, seed=0), strength=0.1),
        "shared": lambda: SharedGaussian(D),
        "fecam": lambda: FeCAM(D),
        "arc-cosine": lambda: ArcCosineRidge(D, strength=0.1),
    }
    z, y = data(200)
    z = z.float()
    plain, half = makes[name]().fit_task(z, y), makes[name]()
    with torch.autocast("cpu", torch.bfloat16):
        half.fit_task(z, y)
        found = half.predict(z)
        drift = half.forecast(z[:5], z[5:9], y[5:9]).drift
    assert found.dtype in (torch.float32, torch.float64)
    torch.testing.assert_close(found, plain.predict(z), rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(drift, plain.forecast(z[:5], z[5:9], y[5:9]).drift, rtol=1e-4, atol=1e-6)

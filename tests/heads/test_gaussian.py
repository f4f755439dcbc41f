from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
from sklearn.covariance import oas
from sklearn.datasets import load_digits
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from torch import Tensor, nn

from tangentcl.errors import ConfigError, DataError, ModelError
from tangentcl.heads.gaussian import FeCAM, SharedGaussian, oas_strength, shrunk_correlation, tukey_transform, whitening
from tangentcl.heads.head import AnalyticHead

Make = Callable[[int], AnalyticHead]
HEADS: dict[str, Make] = {
    "slda": lambda d: SharedGaussian(d, shrinkage=1e-2, prior=True),
    "slda-oas": lambda d: SharedGaussian(d, shrinkage="oas"),
    "fecam": lambda d: FeCAM(d),
    "fecam-double": lambda d: FeCAM(d).double(),
    "fecam-shared": lambda d: FeCAM(d, shared=True),
    "fecam-signed": lambda d: FeCAM(d, tukey=1.0, gamma1=0.1, gamma2=0.0),
}
ROUNDING = {"fecam": 1e-4, "fecam-signed": 1e-4}  # a float32 scatter; all else is float64
every_head = pytest.mark.parametrize("name", HEADS)


def samples(
    n: int = 120, d: int = 6, c: int = 4, seed: int = 0, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, ...]:
    """Correlated features of classes with means of their own; every class has samples."""
    g = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=g, dtype=torch.float64)  # noqa: E731
    y = torch.arange(n) % c
    means, mixing = 2 * draw(c, d) + 1, draw(c, d, d)
    z = means[y] + torch.einsum("nd,nde->ne", draw(n, d), mixing[y])
    order = torch.randperm(n, generator=g)
    return z[order].to(dtype), y[order]


def same(a: Tensor, b: Tensor, name: str) -> None:
    tolerance = ROUNDING.get(name, 1e-9)
    assert torch.allclose(a, b, rtol=tolerance, atol=tolerance), (a - b).abs().max()


def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    x, y = load_digits(return_X_y=True)
    z, labels = torch.tensor(x, dtype=torch.float32) / 16, torch.tensor(y)
    return z[:1200], labels[:1200], z[1200:], labels[1200:]


def test_slda_is_sklearn_discriminant_analysis() -> None:
    z, y = samples()
    head = SharedGaussian(6, shrinkage=0.05, prior=True)
    for part, labels in zip(z.split(17), y.split(17)):
        head.fit_task(part, labels)
    reference = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=0.05).fit(z.numpy(), y.numpy())
    assert np.abs(head(z).numpy() - reference.decision_function(z.numpy())).max() < 1e-10
    flat = SharedGaussian(6, shrinkage=0.05).fit_task(z, y)
    assert torch.allclose(head(z) - flat(z), (y.bincount() / len(y)).double().log().expand(len(z), 4))


def test_slda_is_the_recursion_over_samples() -> None:
    z, y = samples()
    means, counts, sigma = np.zeros((4, 6)), np.zeros(4), np.zeros((6, 6))
    for t, (row, c) in enumerate(zip(z.numpy(), y.tolist())):
        deviation = row - means[c]
        sigma = (t * sigma + counts[c] / (counts[c] + 1) * np.outer(deviation, deviation)) / (t + 1)
        means[c] += deviation / (counts[c] + 1)
        counts[c] += 1
    head = SharedGaussian(6).fit_task(z, y)
    assert np.abs(head.covariance.numpy() - sigma).max() < 1e-12 * np.abs(sigma).max() * len(z)
    precision = np.linalg.inv((1 - 1e-4) * sigma + 1e-4 * np.trace(sigma) / 6 * np.eye(6))
    scores = z.numpy() @ precision @ means.T - np.einsum("cd,de,ce->c", means, precision, means) / 2
    assert np.abs(head(z).numpy() - scores).max() < 1e-10 * np.abs(scores).max()


def test_slda_oas_strength_is_that_of_sklearn() -> None:
    z, y = samples(n=30)
    head = SharedGaussian(6, shrinkage="oas").fit_task(z, y)
    centred = (z - head.means[y]).numpy()
    shrunk, strength = oas(centred, assume_centered=True)
    assert abs(oas_strength(head.covariance, len(z)) - strength) < 1e-12
    assert 0.01 < strength < 0.99
    weight = np.linalg.solve(shrunk, head.means.numpy().T)
    scores = z.numpy() @ weight - (head.means.numpy().T * weight).sum(0) / 2
    assert np.abs(head(z).numpy() - scores).max() < 1e-10 * np.abs(scores).max()


def test_slda_survives_features_far_from_zero() -> None:
    z, y = samples()
    near = SharedGaussian(6).fit_task(z, y)(z)
    far = SharedGaussian(6).fit_task(z + 1e4, y)(z + 1e4)
    assert torch.equal(near.argmax(1), far.argmax(1))
    assert torch.allclose(far - far[:, :1], near - near[:, :1], rtol=1e-4, atol=1e-4)


def test_slda_decisions_do_not_depend_on_the_scale_of_features() -> None:
    z, y = samples()
    expected = SharedGaussian(6, shrinkage=0.1).fit_task(z, y)(z)
    assert torch.allclose(SharedGaussian(6, shrinkage=0.1).fit_task(1e-3 * z, y)(1e-3 * z), expected)


def test_slda_shrinkage_matters() -> None:
    z, y = samples(n=12, d=20)  # fewer samples than features: without shrinkage nothing can be solved
    scores = [SharedGaussian(20, shrinkage=eps).fit_task(z, y)(z) for eps in (1e-4, 1e-2, 1.0)]
    assert not torch.allclose(scores[0], scores[1], rtol=0.1)
    assert not torch.allclose(scores[1], scores[2], rtol=0.1)


def dense_fecam(
    z: np.ndarray, y: np.ndarray, x: np.ndarray, power: float, g1: float, g2: float, shared: bool
) -> np.ndarray:
    """Scores from the formulas of the paper, one class after the other, by pseudo-inverse."""

    def transform(v: np.ndarray) -> np.ndarray:
        return np.sign(v) * np.abs(v) ** power

    def unit(v: np.ndarray) -> np.ndarray:
        return v / np.linalg.norm(v, axis=-1, keepdims=True)

    d, classes = z.shape[1], range(y.max() + 1)
    covariances = [np.cov(transform(z[y == c]).T) for c in classes]
    if shared:
        pooled = sum((np.sum(y == c) - 1) * covariances[c] for c in classes) / (len(y) - len(classes))
        covariances = [pooled for _ in classes]
    scores = []
    for c, sigma in zip(classes, covariances):
        v1, v2 = np.trace(sigma) / d, sigma[~np.eye(d, dtype=bool)].mean()
        sigma = sigma + g1 * v1 * np.eye(d) + g2 * v2 * (1 - np.eye(d))
        deviations = np.sqrt(np.diag(sigma))
        inverse = np.linalg.pinv(sigma / np.outer(deviations, deviations), hermitian=True, rcond=d * 2e-16)
        gap = unit(transform(x)) - unit(transform(z[y == c].mean(0)))
        scores.append(-np.einsum("nd,de,ne->n", gap, inverse, gap))
    return np.stack(scores, 1)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("power, g1, g2", [(0.5, 1.0, 1.0), (1.0, 1.0, 0.0), (0.3, 0.5, 0.2), (0.5, 0.0, 0.0)])
@pytest.mark.parametrize("nonnegative", [False, True])
def test_fecam_is_the_formula_of_the_paper(shared: bool, power: float, g1: float, g2: float, nonnegative: bool) -> None:
    z, y = samples()
    z = z.abs() if nonnegative else z
    x = samples(seed=1)[0].abs()
    head = FeCAM(6, tukey=power, gamma1=g1, gamma2=g2, shared=shared)
    expected = torch.tensor(dense_fecam(z.numpy(), y.numpy(), x.numpy(), power, g1, g2, shared))
    for each, tolerance in ((copy.deepcopy(head), 1e-10 if shared else 1e-3), (head.double(), 1e-10)):
        for part, labels in zip(z.split(17), y.split(17)):
            each.fit_task(part, labels)
        assert torch.allclose(each(x), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("without", [{"gamma1": 0.0}, {"gamma2": 0.0}, {"tukey": 1.0}, {"shared": True}])
def test_every_part_of_fecam_matters(without: dict[str, float]) -> None:
    z, y = samples()
    assert not torch.allclose(FeCAM(6).fit_task(z, y)(z), FeCAM(6, **without).fit_task(z, y)(z), rtol=0.01)  # type: ignore[arg-type]


def test_fecam_shrinks_twice_with_larger_gammas() -> None:
    scatter = torch.cov(samples()[0].T)
    v1, v2 = scatter.trace() / 6, (scatter.sum() - scatter.trace()) / 30
    once = scatter + v1 * torch.eye(6) + v2 * (1 - torch.eye(6))
    assert torch.allclose(shrunk_correlation(once, 1, 1), shrunk_correlation(scatter, 3, 3))


def test_correlation_has_a_unit_diagonal_whatever_the_units() -> None:
    scatter = torch.cov(samples()[0].T)
    correlation = shrunk_correlation(scatter, 0, 0)
    assert torch.allclose(correlation, torch.corrcoef(samples()[0].T))
    assert torch.allclose(shrunk_correlation(1e-8 * scatter, 1, 1), shrunk_correlation(scatter, 1, 1))
    units = torch.tensor([1.0, 10, 100, 1, 1, 1]).double()
    assert torch.allclose(shrunk_correlation(scatter * units * units[:, None], 0, 0), correlation)


def test_fecam_leaves_out_directions_that_no_sample_has() -> None:
    z, y = samples()
    z = z - z.mean(1, keepdim=True)  # sums of zero: shrunk by gammas of 1, the covariance is singular
    expected = dense_fecam(z.numpy(), y.numpy(), z.numpy(), 1.0, 1.0, 1.0, False)
    head = FeCAM(6, tukey=1.0).fit_task(z, y)
    assert torch.allclose(head(z), torch.tensor(expected), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("rank", [1, 3, 6])
def test_whitening_squares_to_the_pseudo_inverse(rank: int) -> None:
    z = samples(n=40)[0][:, :rank] @ samples(n=rank, seed=3)[0]
    matrix = torch.corrcoef(z.T)
    factor = whitening(matrix, 1e-14)
    assert torch.allclose(factor @ factor.T, torch.linalg.pinv(matrix, hermitian=True, rtol=1e-12), atol=1e-8)


@every_head
def test_order_of_samples_and_tasks_does_not_matter(name: str) -> None:
    z, y = samples()
    expected = HEADS[name](6).fit_task(z, y)(z)
    by_class = HEADS[name](6)
    for c in (2, 0, 3, 1):
        by_class.fit_task(z[y == c], y[y == c])
    one_by_one = HEADS[name](6)
    for i in torch.randperm(len(z)).tolist():
        one_by_one.fit_task(z[i : i + 1], y[i : i + 1])
    same(by_class(z), expected, name)
    same(one_by_one(z), expected, name)


@every_head
@pytest.mark.parametrize("parts", ["random", "classes", "overlap"])
def test_merging_is_learning_from_all(name: str, parts: str) -> None:
    z, y = samples()
    left = {"random": torch.arange(len(z)) < 50, "classes": y >= 2, "overlap": y != 3}[parts]
    if parts == "overlap":
        left &= torch.arange(len(z)) % 3 > 0
    a, b = HEADS[name](6).fit_task(z[left], y[left]), HEADS[name](6).fit_task(z[~left], y[~left])
    a(z), b(z)  # merging must not leave old factors
    before = copy.deepcopy(b.state_dict())
    joint = HEADS[name](6).fit_task(z, y)
    same(a.merge(b)(z), joint(z), name)
    assert torch.equal(a.counts, joint.counts)
    assert all(torch.equal(v, before[k]) for k, v in b.state_dict().items())


@every_head
def test_a_head_merged_with_itself_has_learned_twice(name: str) -> None:
    z, y = samples()
    head, twice = HEADS[name](6).fit_task(z, y), HEADS[name](6).fit_task(torch.cat([z, z]), torch.cat([y, y]))
    same(head.merge(head)(z), twice(z), name)


@every_head
@pytest.mark.parametrize("kind", ["some", "class"])
def test_forgetting_takes_back_learning(name: str, kind: str) -> None:
    z, y = samples()
    gone = torch.arange(len(z)) % 3 == 0 if kind == "some" else y == 1
    head = HEADS[name](6).fit_task(z[~gone], y[~gone])
    expected, state = head(z), copy.deepcopy(head.state_dict())
    head.fit_task(z[gone], y[gone])
    assert not torch.allclose(head(z), expected)
    same(head.forget(z[gone], y[gone])(z), expected, name)
    for key, value in head.state_dict().items():
        same(value, state[key], name)


@every_head
def test_forgetting_everything_leaves_nothing(name: str) -> None:
    z, y = samples()
    head = HEADS[name](6).fit_task(z, y)
    head.forget(z[:50], y[:50]).forget(z[50:], y[50:])
    assert all(not value.any() for value in head.state_dict().values())
    assert head(z).eq(-torch.inf).all()
    same(head.fit_task(z, y)(z), HEADS[name](6).fit_task(z, y)(z), name)


@every_head
def test_one_sample_of_each_class_gives_the_nearest_mean(name: str) -> None:
    z, y = samples()
    first = torch.stack([z[y == c][0] for c in range(4)])
    scores = HEADS[name](6).fit_task(first, torch.arange(4))(z)
    power = 1.0 if name.endswith("signed") else 0.5
    if name.startswith("slda"):
        nearest = torch.cdist(z, first).argmin(1)
    else:
        unit = [nn.functional.normalize(tukey_transform(v, power), dim=1) for v in (z, first)]
        nearest = torch.cdist(*unit).argmin(1)
    assert torch.equal(scores.argmax(1), nearest)


@every_head
def test_a_class_of_one_sample_joins_others(name: str) -> None:
    z, y = samples()
    head = HEADS[name](6).fit_task(z, y).fit_task(-3 * z[:1], torch.tensor([4]))
    scores = head(torch.cat([z, -3 * z[:1]]))
    assert scores.isfinite().all()
    assert int(scores[-1].argmax()) == 4


@every_head
@pytest.mark.parametrize("value", [0.0, 0.1, 300.0])
def test_constant_features(name: str, value: float) -> None:
    z, y = samples(d=8)
    z[:, 2] = value
    assert HEADS[name](8).fit_task(z, y)(z).isfinite().all()
    same_sample = z[:1].expand(30, 8)
    scores = HEADS[name](8).fit_task(same_sample, y[:30])(z)
    assert scores.isfinite().all()


@every_head
def test_fewer_samples_than_features(name: str) -> None:
    z, y = samples(n=20, d=50)
    scores = HEADS[name](50).fit_task(z, y)(z)
    assert scores.isfinite().all()
    assert float((scores.argmax(1) == y).double().mean()) > 0.9


@every_head
def test_float32_features_give_the_scores_of_float64(name: str) -> None:
    z, y = samples()
    double, single = HEADS[name](6).fit_task(z, y), HEADS[name](6).fit_task(z.float(), y)
    expected, scores = double(z), single(z.float())
    assert torch.allclose(scores.double(), expected, rtol=1e-3, atol=1e-3)
    assert single(z.bfloat16()).dtype in (torch.float32, torch.float64)
    assert torch.equal(scores.argmax(1), expected.argmax(1))


@every_head
def test_bad_input_is_refused_and_changes_nothing(name: str) -> None:
    z, y = samples()
    head = HEADS[name](6).fit_task(z, y)
    before = copy.deepcopy(head.state_dict())
    broken = z.clone()
    broken[3, 1] = torch.nan
    for features, labels, message in [
        (broken, y, "sample 3"),
        (z[:, :5], y, r"expected features \[n, 6\]"),
        (z[:0], y[:0], "empty"),
        (z, y - 1, "whole numbers from 0"),
        (z, y.double(), "whole numbers from 0"),
        (z, y[:-1], "expected features"),
    ]:
        with pytest.raises(DataError, match=message):
            head.fit_task(features, labels)
        with pytest.raises(DataError, match=message):
            head.forget(features, labels)
    with pytest.raises(DataError, match="class 0 was learned from 30 samples, 31"):
        head.forget(z[:1].expand(31, 6), torch.zeros(31, dtype=torch.int64))
    with pytest.raises(DataError, match="class 7 was learned from 0"):
        head.forget(z[:1], torch.tensor([7]))
    with pytest.raises(DataError, match="expected features"):
        head.predict(z[:, :3])
    assert all(torch.equal(v, before[k]) for k, v in head.state_dict().items())


@pytest.mark.parametrize("shrinkage", [0.0, -1.0, 1.5, float("nan"), "ledoit"])
def test_slda_refuses_other_shrinkages(shrinkage: float | str) -> None:
    with pytest.raises(ConfigError, match="shrinkage"):
        SharedGaussian(3, shrinkage=shrinkage)


@pytest.mark.parametrize("wrong", [{"tukey": 0.0}, {"tukey": 1.5}, {"gamma1": -1.0}, {"gamma2": float("nan")}])
def test_fecam_refuses_other_settings(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        FeCAM(3, **wrong)  # type: ignore[arg-type]


def test_heads_of_other_settings_are_not_merged() -> None:
    with pytest.raises(ModelError, match="same settings"):
        FeCAM(3).merge(FeCAM(3, tukey=1.0))
    with pytest.raises(ModelError, match="same settings"):
        SharedGaussian(3).merge(SharedGaussian(3, shrinkage="oas"))


def test_slda_says_when_something_was_forgotten_that_it_had_never_learned() -> None:
    z, y = samples()
    head = SharedGaussian(6).fit_task(z, y).forget(torch.cat([90 * z[:1], -90 * z[:1]]), y[:1].expand(2))
    with pytest.raises(DataError, match="never been learned"):
        head(z)


@every_head
def test_state_round_trip(name: str) -> None:
    z, y = samples()
    head, other = HEADS[name](6).fit_task(z, y), HEADS[name](6).fit_task(-z[:60], y[:60])
    stale = other(z)
    other.load_state_dict(head.state_dict())
    assert torch.equal(other(z), head(z))
    assert not torch.allclose(other(z), stale)
    empty = nn.ModuleDict({"head": HEADS[name](6).grow(4)})
    empty.load_state_dict({f"head.{k}": v for k, v in head.state_dict().items()})
    assert torch.equal(empty["head"](z), head(z))


@every_head
def test_a_copy_lives_on_its_own(name: str) -> None:
    z, y = samples()
    head = HEADS[name](6).fit_task(z[:60], y[:60])
    before = head(z)
    twin = copy.deepcopy(head).fit_task(z[60:], y[60:])
    assert torch.equal(head(z), before)
    twin.load_state_dict(head.state_dict())
    assert torch.equal(twin(z), before)


@every_head
def test_forecast_is_exact(name: str) -> None:
    z, y = samples()
    head = HEADS[name](6).fit_task(z[y < 2], y[y < 2])
    forecast = head.forecast(z, z[y >= 2], y[y >= 2])
    after = head.fit_task(z[y >= 2], y[y >= 2])(z)
    assert torch.allclose(forecast.outputs + forecast.drift, after, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["fecam", "fecam-double"])
def test_fecam_of_a_class_does_not_see_other_classes(name: str) -> None:
    z, y = samples()
    head = HEADS[name](6).fit_task(z[y < 2], y[y < 2])
    old = head(z)
    assert torch.equal(head.fit_task(z[y >= 2], y[y >= 2])(z)[:, :2], old)


def test_sizes_of_the_states() -> None:
    z, y = samples()
    assert SharedGaussian(6).fit_task(z, y).state_bytes == 8 * (4 + 4 * 6 + 36)
    assert FeCAM(6).fit_task(z, y).state_bytes == 8 * (4 + 2 * 4 * 6) + 4 * 4 * 36
    assert FeCAM(6, shared=True).fit_task(z, y).state_bytes == 8 * (4 + 2 * 4 * 6 + 36)


def test_moving_a_head_renews_what_it_computed() -> None:
    z, y = samples()
    head = FeCAM(6).fit_task(z, y)
    head(z)
    head.double()
    assert torch.equal(head(z), copy.deepcopy(head)(z))
    assert head._factor(0).dtype == torch.float64


@pytest.mark.parametrize(
    "make, bound",
    [
        (lambda: SharedGaussian(64), 0.90),
        (lambda: SharedGaussian(64, shrinkage="oas"), 0.90),
        (lambda: FeCAM(64), 0.96),
        (lambda: FeCAM(64, shared=True), 0.90),
    ],
)
def test_digits_in_five_tasks(make: Callable[[], AnalyticHead], bound: float) -> None:
    z, y, test, labels = digits()
    head, nearest_mean = make(), SharedGaussian(64, shrinkage=1.0).fit_task(z, y)
    for task in range(5):
        mine = y // 2 == task
        head.fit_task(z[mine], y[mine])
    accuracy, below = (float((h(test).argmax(1) == labels).double().mean()) for h in (head, nearest_mean))
    assert accuracy > bound > below

"""The truncated head against dense decompositions and its own recurrence in plain numpy; float64 unless said."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from torch import Tensor, nn

from tangentcl.errors import ConfigError, DataError, ModelError
from tangentcl.heads import NoLift, NystromArcCosine, RandomReLU, RidgeHead
from tangentcl.heads.truncated import Flush, TruncatedRidge
from tangentcl.linalg import minimum_norm

Array = NDArray[np.float64]
D, UNITS = 6, 80
UPDATES = ("svd", "gram")
EPS = torch.finfo(torch.float64).eps


def data(n: int = 60, n_classes: int = 6, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Gaussian classes, float64 [n, D], labels in blocks of classes."""
    rng = np.random.default_rng(seed)
    labels = np.sort(np.arange(n) % n_classes)
    centres = np.random.default_rng(99).normal(size=(n_classes, D)) * 2
    return torch.from_numpy(centres[labels] + rng.normal(size=(n, D))), torch.from_numpy(labels)


def make(n_units: int = UNITS, seed: int = 1, **settings: Any) -> TruncatedRidge:
    return TruncatedRidge(RandomReLU(D, n_units, seed=seed), **settings)


def one_hot(labels: Tensor, n_classes: int = 6) -> Tensor:
    return nn.functional.one_hot(labels, n_classes).double()


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def dense_weights(h: Array, targets: Array, k: int, ridge: float = 0.0) -> Array:
    """From the k leading singular vectors of all lifted samples, [n, M] -> [M, C]."""
    u, s, _ = np.linalg.svd(h.T, full_matrices=False)
    return u[:, :k] @ ((u[:, :k].T @ h.T @ targets) / (s[:k, None] ** 2 + ridge))


def recurrence(blocks: list[tuple[Array, Array]], p: float, cap: int) -> tuple[Array, list[Flush]]:
    """LoRanPAC as published, block by block with a QR after each: W [M, C], and what each block did."""
    h, _ = blocks[0]
    u, s, _ = np.linalg.svd(h.T, full_matrices=False)
    everything, cross, n, found = s, np.zeros((h.shape[1], blocks[0][1].shape[1])), 0, []
    for i, (h, targets) in enumerate(blocks):
        n += len(h)
        if i:
            inside = u.T @ h.T
            q, r = np.linalg.qr(h.T - u @ inside)
            small = np.block([[np.diag(s), inside], [np.zeros((len(r), len(s))), r]])
            turn, everything, _ = np.linalg.svd(small)
            u = np.hstack([u, q]) @ turn
        k = max(1, min(round((1 - p) * n), round((1 - p) * len(u)), cap))
        u, s = np.linalg.qr(u[:, :k])[0], everything[:k]
        cross = cross + h.T @ targets
        kept, total = (s**2).sum(), (everything**2).sum()
        found.append(Flush(n, k, float((s[0] / s[-1]) ** 2), float(kept / s[0] ** 2), float(1 - kept / total)))
    return u @ ((u.T @ cross) / s[:, None] ** 2), found


def same_history(found: list[Flush], expected: list[Flush]) -> None:
    assert [(f.n_seen, f.rank) for f in found] == [(f.n_seen, f.rank) for f in expected]
    for a, b in zip(found, expected):
        assert a.condition == pytest.approx(b.condition, rel=1e-6)
        assert a.stable_rank == pytest.approx(b.stable_rank, rel=1e-9)
        assert a.discarded == pytest.approx(b.discarded, rel=1e-6, abs=1e-12)


@pytest.mark.parametrize("block", [7, 60])
@pytest.mark.parametrize("n_units", [30, UNITS])
@pytest.mark.parametrize("update", UPDATES)
def test_without_truncation_the_weights_are_the_min_norm_ones(update: Any, n_units: int, block: int) -> None:
    z, y = data()
    head = make(n_units, truncation=0.0, block=block, update=update).fit_task(z, y)
    expected, _ = minimum_norm(head.lift(z), one_hot(y))
    assert relative(head.weights, expected) < 1e-8
    assert head.rank == min(60, n_units)
    assert torch.equal(head.predict(z), head.lift(z) @ head.weights)


@pytest.mark.parametrize("ridge", [0.0, 0.3])
@pytest.mark.parametrize("n_units", [30, UNITS])
@pytest.mark.parametrize("update", UPDATES)
def test_one_block_is_a_dense_truncated_decomposition(update: Any, n_units: int, ridge: float) -> None:
    z, y = data()
    head = make(n_units, truncation=0.6, ridge=ridge, update=update).fit_task(z, y)
    h = head.lift(z).numpy()
    k = min(24, round(0.4 * n_units))
    assert head.rank == k
    assert relative(head.weights, torch.from_numpy(dense_weights(h, one_hot(y).numpy(), k, ridge))) < 1e-9
    np.testing.assert_allclose(head.values, np.linalg.svd(h, compute_uv=False)[:k], rtol=1e-9)
    s = np.linalg.svd(h, compute_uv=False) ** 2
    (flush,) = head.history
    assert (
        flush
        == Flush(
            n_seen=60,
            rank=k,
            condition=pytest.approx(s[0] / s[k - 1], rel=1e-8),  # type: ignore[arg-type]
            stable_rank=pytest.approx(s[:k].sum() / s[0], rel=1e-10),  # type: ignore[arg-type]
            discarded=pytest.approx(s[k:].sum() / s.sum(), rel=1e-8),  # type: ignore[arg-type]
        )
    )


@pytest.mark.parametrize("update", UPDATES)
def test_blocks_tasks_and_their_order_do_not_matter_without_truncation(update: Any) -> None:
    z, y = data()
    once = make(truncation=0.0, update=update).fit_task(z, y)
    streamed = make(truncation=0.0, update=update, block=8)
    for t in (2, 0, 1):
        streamed.fit_task(z.chunk(3)[t], y.chunk(3)[t])
    assert relative(streamed.weights, once.weights) < 1e-8
    torch.testing.assert_close(streamed.values, once.values, rtol=1e-9, atol=0)
    torch.testing.assert_close(streamed.cross, (once.lift(z).T @ one_hot(y)).T, rtol=1e-12, atol=1e-12)
    assert [f.n_seen for f in streamed.history] == [8, 16, 20, 28, 36, 40, 48, 56, 60]
    assert torch.equal(streamed.counts, torch.bincount(y))


@pytest.mark.parametrize("tolerance", [0.0, 100.0])
@pytest.mark.parametrize("cap", [10_000, 9])
@pytest.mark.parametrize("n_units", [16, UNITS])
@pytest.mark.parametrize("update", UPDATES)
def test_truncated_blocks_follow_the_published_recurrence(
    update: Any, n_units: int, cap: int, tolerance: float
) -> None:
    z, y = data()
    order = torch.from_numpy(np.random.default_rng(3).permutation(60))
    z, y = z[order], y[order]
    head = make(n_units, truncation=0.5, rank_cap=cap, block=10, update=update, tolerance=tolerance)
    head.grow(6).fit_task(z[:30], y[:30]).fit_task(z[30:], y[30:])
    h, targets = head.lift(z).numpy(), one_hot(y).numpy()
    expected, history = recurrence([(h[i : i + 10], targets[i : i + 10]) for i in range(0, 60, 10)], 0.5, cap)
    assert relative(head.weights, torch.from_numpy(expected)) < 1e-8
    same_history(head.history, history)
    joint = dense_weights(h, targets, head.rank)
    assert relative(head.weights, torch.from_numpy(joint)) > 1e-3, "what was cut on the way is missing"


def test_a_recurrence_done_by_hand() -> None:
    """Samples on axes of R^4 of lengths 4, 1, 2, 3 in blocks of two; p = 1/2 keeps 4 of {4, 1}, then 4 and 3."""
    z = torch.diag(torch.tensor([4.0, 1.0, 2.0, 3.0]).double())
    head = TruncatedRidge(NoLift(4), truncation=0.5, block=2).fit_task(z, torch.tensor([0, 1, 0, 1]))
    assert head.values.tolist() == pytest.approx([4.0, 3.0])
    expected = torch.zeros(4, 2).double()
    expected[0, 0], expected[3, 1] = 1 / 4, 1 / 3  # U S^-2 U^T H^T Y
    torch.testing.assert_close(head.weights, expected)
    same_history(head.history, [Flush(2, 1, 1.0, 1.0, 1 / 17), Flush(4, 2, 16 / 9, 25 / 16, 4 / 29)])


@pytest.mark.parametrize(
    ("settings", "n", "rank"),
    [
        ({"truncation": 0.25}, 40, 30),
        ({"truncation": 0.0}, 40, 40),
        ({"truncation": 0.5, "rank_cap": 7}, 40, 7),
        ({"truncation": 0.5, "rank_cap": None}, 60, 20),  # half the units
        ({"truncation": 0.99}, 20, 1),
        ({"truncation": 0.25}, 1, 1),
    ],
)
@pytest.mark.parametrize("update", UPDATES)
def test_the_rank_rule(update: Any, settings: dict[str, Any], n: int, rank: int) -> None:
    z, y = data(60)
    head = make(40, update=update, **settings).fit_task(z[:n], y[:n])
    assert head.rank == head.history[-1].rank == rank
    assert head.left.shape == (40, rank)
    assert head.n_seen == n


def test_the_rank_grows_with_samples_and_the_basis_stays_orthonormal() -> None:
    z, y = data()
    for tolerance, bound in ((0.0, 20), (100.0, 100)):
        head = make(truncation=0.25, block=5, tolerance=tolerance)
        head.fit_task(z, y)
        assert [f.rank for f in head.history] == [round(0.75 * n) for n in range(5, 61, 5)]
        assert float((head.left.T @ head.left - torch.eye(head.rank)).abs().max()) <= bound * EPS


def test_a_lost_basis_is_orthonormalised_and_spans_the_same() -> None:
    skewed = torch.linalg.qr(torch.from_numpy(np.random.default_rng(0).normal(size=(UNITS, 5)))).Q
    skewed = skewed @ (torch.eye(5) + 1e-4 * torch.ones(5, 5)).double()
    expected = torch.linalg.qr(skewed).Q
    found = make()._orthonormal(skewed)
    torch.testing.assert_close(found @ found.T, expected @ expected.T, rtol=0, atol=1e-13)
    torch.testing.assert_close(found.abs(), expected.abs(), rtol=0, atol=1e-13)  # Q up to signs
    assert make(tolerance=1e13)._orthonormal(skewed) is skewed
    collapsed = torch.ones(UNITS, 3).double()
    found = make()._orthonormal(collapsed)
    torch.testing.assert_close(found.T @ found, torch.eye(3).double(), rtol=0, atol=1e-13)


@pytest.mark.parametrize("update", UPDATES)
def test_fewer_samples_than_directions_and_a_class_with_one(update: Any) -> None:
    z, y = data(13, 6)
    z, y = torch.cat([z, -z[:1]]), torch.cat([y, y.new_tensor([6])])
    head = make(truncation=0.0, update=update)
    for block, own in zip(z.split(1), y.split(1)):
        head.fit_task(block, own)
    assert head.rank == 14
    assert torch.equal(head.predict(z).argmax(1), y), "more directions than samples: all are fitted"
    torch.testing.assert_close(head.predict(z), one_hot(y, 7), rtol=0, atol=1e-8)


@pytest.mark.parametrize("update", UPDATES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_repeated_samples_add_no_direction(dtype: torch.dtype, update: Any) -> None:
    z, y = data(12, 3)
    z = z.to(dtype)
    head = make(truncation=0.0, update=update)
    repeats = (12, 7, 12, 5)
    for n in repeats:
        head.fit_task(z[:n], y[:n])
    assert head.rank == 12
    seen = torch.cat([torch.arange(n) for n in repeats])
    expected, _ = minimum_norm(head.lift(z.double())[seen], one_hot(y, 3)[seen])
    assert relative(head.weights.double(), expected) < (1e-8 if dtype == torch.float64 else 1e-2)
    assert torch.equal(head.predict(z).argmax(1), y)


@pytest.mark.parametrize("update", UPDATES)
@pytest.mark.parametrize("value", [0.0, 3.0])
def test_constant_features(value: float, update: Any) -> None:
    z, y = torch.full((20, D), value), torch.arange(20) % 4 // 3  # three of class 0 to one of class 1
    head = make(truncation=0.0, block=6, update=update).fit_task(z, y).fit_task(z, y)
    assert head.rank == (1 if value else 0)
    scores = head.predict(z[:1])[0].tolist()
    assert scores == pytest.approx([0.75, 0.25] if value else [0.0, 0.0], abs=1e-5)
    if not value:
        assert head.history[-1] == Flush(40, 0, 1.0, 0.0, 0.0)


def test_an_explicit_cut_replaces_the_usual_one() -> None:
    z = torch.diag(torch.tensor([1.0, 1e-3, 1e-9]).double())
    y = torch.arange(3)
    assert TruncatedRidge(NoLift(3), truncation=0.0).fit_task(z, y).rank == 3
    assert TruncatedRidge(NoLift(3), truncation=0.0, cut=1e-6).fit_task(z, y).rank == 2
    squared = TruncatedRidge(NoLift(3), truncation=0.0, cut=0.0, update="gram").fit_task(z, y)
    assert squared.rank == 2, "a Gram matrix cannot tell 1e-9 from rounding"


def test_half_precision_and_single_features_are_worked_in_single_and_double_stays() -> None:
    z, y = data()
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        assert make().fit_task(z.to(dtype), y).left.dtype == torch.float32
    head = make(truncation=0.0).fit_task(z[:30].float(), y[:30]).fit_task(z[30:], y[30:])
    assert head.left.dtype == head.values.dtype == head.weights.dtype == torch.float64
    assert head.fit_task(z.float(), y).left.dtype == torch.float64
    assert head.predict(z.float()).dtype == torch.float32
    single = make(truncation=0.5, block=10).fit_task(z.float(), y)
    double = make(truncation=0.5, block=10).fit_task(z, y)
    assert relative(single.predict(z.float()).double(), double.predict(z)) < 1e-3


def test_what_cannot_be_learned_is_refused() -> None:
    z, y = data()
    head = make()
    for features, labels, match in (
        (z[:, 1:], y, "expected features"),
        (z, y[1:], "expected features"),
        (z[:0], y[:0], "no sample"),
        (z, y.double(), "whole numbers"),
        (z, y - 1, "whole numbers"),
        (z / 0, y, "not finite"),
    ):
        with pytest.raises(DataError, match=match):
            head.fit_task(features, labels)
    assert head.n_seen == head.rank == 0
    assert not head.history
    with pytest.raises(DataError, match="expected features"):
        head.fit_task(z, y).predict(z[:, 1:])


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"truncation": 1.0}, "truncation"),
        ({"truncation": -0.1}, "truncation"),
        ({"truncation": float("nan")}, "truncation"),
        ({"rank_cap": 0}, "rank_cap"),
        ({"block": 0}, "block"),
        ({"ridge": -1.0}, "ridge"),
        ({"ridge": float("inf")}, "ridge"),
        ({"tolerance": -1.0}, "tolerance"),
        ({"cut": 1.0}, "cut"),
        ({"update": "gramm"}, "Did you mean 'gram'"),
    ],
)
def test_settings_out_of_range(settings: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        make(**settings)


def test_forgetting_is_refused_and_changes_nothing() -> None:
    z, y = data()
    head = make().fit_task(z, y)
    before, counts = head.predict(z), head.counts.clone()
    with pytest.raises(ModelError, match="RidgeHead"):
        head.forget(z[:3], y[:3])
    assert torch.equal(head.counts, counts)
    assert torch.equal(head.predict(z), before)


@pytest.mark.parametrize("n_units", [30, UNITS])
@pytest.mark.parametrize("update", UPDATES)
def test_merging_without_truncation_equals_learning_together(update: Any, n_units: int) -> None:
    z, y = data()
    one = make(n_units, truncation=0.0, update=update).fit_task(z[20:40], y[20:40])
    other = make(n_units, truncation=0.0, update=update).fit_task(z[:20], y[:20])
    kept = other.predict(z)
    one.predict(z)
    one.merge(other).fit_task(z[40:], y[40:])
    together = make(n_units, truncation=0.0, update=update).fit_task(z, y)
    assert relative(one.weights, together.weights) < 1e-8
    assert [f.n_seen for f in one.history] == [20, 40, 60]
    assert one.n_seen == 60
    assert torch.equal(other.predict(z), kept)
    fresh = make(n_units, truncation=0.0, update=update).merge(together).merge(make(n_units, truncation=0.0))
    assert relative(fresh.weights, together.weights) < 1e-8
    assert fresh.left.dtype == torch.float64


def test_merging_truncated_heads_cuts_by_the_sum_of_samples() -> None:
    z, y = data()
    one, other = make(truncation=0.5).fit_task(z[:30], y[:30]), make(truncation=0.5).fit_task(z[30:], y[30:])
    both = torch.cat([head.left * head.values for head in (one, other)], 1).numpy()
    s = np.linalg.svd(both, compute_uv=False)
    one.merge(other)
    assert one.rank == 30
    np.testing.assert_allclose(one.values, s[:30], rtol=1e-9)


def test_heads_that_differ_are_not_merged_and_stay_as_they_were() -> None:
    z, y = data()
    head = make().fit_task(z, y)
    for other, match in (
        (make(truncation=0.5), "same settings"),
        (make(rank_cap=3), "same settings"),
        (make(seed=7).fit_task(z, y), "different lifts"),
    ):
        with pytest.raises(ModelError, match=match):
            head.merge(other)
    with pytest.raises(ModelError, match="one kind"):
        head.merge(RidgeHead(RandomReLU(D, UNITS, seed=1)))  # type: ignore[arg-type]
    assert head.n_seen == 60
    assert len(head.history) == 1


def test_a_state_dict_loads_into_a_fresh_head_of_as_many_classes() -> None:
    z, y = data()
    head = make(truncation=0.5, block=20).fit_task(z[:40], y[:40])
    fresh = make(seed=5, truncation=0.5, block=20).fit_task(z[:5], y[:5]).grow(head.n_outputs)
    fresh.predict(z)
    fresh.load_state_dict(head.state_dict())
    assert torch.equal(fresh.predict(z), head.predict(z))
    assert fresh.history == []
    assert fresh.n_seen == 40
    assert torch.equal(fresh.fit_task(z[40:], y[40:]).predict(z), head.fit_task(z[40:], y[40:]).predict(z))
    assert fresh.history == head.history[-1:]
    assert head.state_bytes == sum(t.numel() * t.element_size() for t in head.state_dict().values())


def test_a_lift_is_fitted_on_the_first_features() -> None:
    z, y = data()
    head = TruncatedRidge(NystromArcCosine(D, 10), truncation=0.0).fit_task(z[:30], y[:30])
    landmarks = head.lift.landmarks.clone()  # type: ignore[union-attr]
    head.fit_task(z[30:], y[30:])
    assert torch.equal(head.lift.landmarks, landmarks)  # type: ignore[arg-type]
    assert relative(head.weights, minimum_norm(head.lift(z), one_hot(y))[0]) < 1e-7


def test_weights_are_solved_for_once_after_each_change(monkeypatch: pytest.MonkeyPatch) -> None:
    z, y = data()
    solved = []
    original = TruncatedRidge._solve
    monkeypatch.setattr(TruncatedRidge, "_solve", lambda head: (solved.append(1), original(head))[1])
    head = make().fit_task(z[:30], y[:30])
    assert len(solved) == 0
    for _ in range(3):
        head.predict(z)
    assert len(solved) == 1
    changes = (
        lambda: head.fit_task(z[30:], y[30:]),
        lambda: head.grow(8),
        lambda: head.merge(copy.deepcopy(head)),
        lambda: head.load_state_dict(head.state_dict()),
        lambda: head.to("cpu"),
    )
    for i, change in enumerate(changes):
        change()
        head.predict(z)
        assert head.predict(z).shape[1] == head.n_outputs
        assert len(solved) == i + 2


def test_a_forecast_is_the_update_itself() -> None:
    z, y = data()
    head = make(truncation=0.5).fit_task(z[:40], y[:40])
    before = head.predict(z[:40])
    forecast = head.forecast(z[:40], z[40:], y[40:])
    assert torch.equal(head.predict(z[:40]), before)
    assert len(head.history) == 1
    after = head.fit_task(z[40:], y[40:]).predict(z[:40])
    torch.testing.assert_close(forecast.outputs + forecast.drift, after)


@pytest.mark.parametrize("update", UPDATES)
def test_digits_in_five_tasks(update: Any) -> None:
    x, y = (torch.from_numpy(a) for a in load_digits(return_X_y=True))
    order = torch.from_numpy(np.random.default_rng(0).permutation(len(x)))
    x, y = x[order].float(), y[order]
    head = TruncatedRidge(RandomReLU(64, 2000), truncation=0.5, update=update)
    for t in range(5):
        own = (y[:900] // 2) == t
        head.fit_task(x[:900][own], y[:900][own])
    accuracy = float((head.predict(x[900:]).argmax(1) == y[900:]).double().mean())
    assert accuracy > 0.96
    assert head.rank == 450

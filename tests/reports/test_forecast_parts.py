"""What figures of a forecast draw, against arrays worked out another way."""

from __future__ import annotations

import numpy as np
import pytest

from tangentcl.reports.forecast_parts import class_changes, energy, points


def brute_margin(outputs: np.ndarray, label: int) -> float:
    return float(outputs[label] - max(o for c, o in enumerate(outputs) if c != label))


def test_points_are_sizes_and_margins_of_the_drift(forecast):
    f = forecast(2, n=40)
    found = points(f)
    assert found.n == 40
    assert found.position.tolist() == list(range(40))
    for i in range(40):
        before, label = f.arrays["outputs"][i].astype(float), int(f.arrays["labels"][i])
        for k, name in enumerate(("drift", "real_drift")):
            d = f.arrays[name][i].astype(float)
            assert found.rms[k, i] == pytest.approx(np.linalg.norm(d) / len(d) ** 0.5, rel=1e-12)
            moved = brute_margin(before + d, label) - brute_margin(before, label)
            assert found.margin[k, i] == pytest.approx(moved, rel=1e-9, abs=1e-12)


def test_margins_where_only_the_own_task_competes(forecast):
    f = forecast(3, n=30, per_task=2)
    f.summary["competing"] = "own task"
    found = points(f, 20)
    for k, i in enumerate(found.position):
        label = int(f.arrays["labels"][i])
        other = label ^ 1  # tasks are (0, 1), (2, 3), (4, 5)
        for row, name in zip(found.margin, ("drift", "real_drift")):
            d = f.arrays[name][i].astype(float)
            assert row[k] == pytest.approx(d[label] - d[other], rel=1e-9, abs=1e-12)


def test_points_beyond_the_limit_are_drawn_the_same_way_twice(forecast):
    f = forecast(2, n=90)
    a, b, other = points(f, 30), points(f, 30), points(f, 30, seed=1)
    assert a.position.tolist() == b.position.tolist() != other.position.tolist()
    assert len(set(a.position.tolist())) == 30
    assert a.n == 90
    assert a.labels.tolist() == f.arrays["labels"][a.position].tolist()
    assert a.rms[0].tolist() == points(f).rms[0][a.position].tolist()


def test_no_points_before_the_truth_and_no_margin_with_one_output(forecast):
    assert points(forecast(1, truth=False)) is None
    f = forecast(1, n=4)
    for name in ("outputs", "drift", "real_drift"):
        f.arrays[name] = f.arrays[name][:, :1]
    f.arrays["labels"] = np.zeros(4, dtype=np.int64)
    assert np.isnan(points(f).margin).all()


def test_classes_come_worst_first_by_the_larger_of_two_losses(forecast):
    f = forecast(1)
    rows = [
        ("kept", 0.9, 0.9, 0.9),
        ("foreseen", 0.9, 0.4, 0.5),
        ("unforeseen", 0.9, 0.9, 0.1),
        ("gain", 0.5, 0.9, 0.7),
    ]
    f.summary["classes"] = [
        {"class": i, "name": name, "n": 10, "now": now, "predicted": p, "real": r}
        for i, (name, now, p, r) in enumerate(rows)
    ]
    found = class_changes(f)
    assert [c.name for c in found] == ["unforeseen", "foreseen", "kept", "gain"]
    assert [c.loss for c in found] == pytest.approx([0.8, 0.5, 0.0, -0.2])
    f.summary["classes"] = [{"class": 0, "name": "a", "n": 1, "now": 1.0, "predicted": 0.25, "real": None}]
    assert class_changes(f)[0].loss == 0.75


def test_energy_counts_what_lies_outside(forecast):
    f = forecast(1)
    f.arrays["energy"] = np.array([1.0, 6.0, 0.0, 3.0])
    f.summary["modes"]["outside_share"] = 0.2
    found = energy(f)
    assert found.shares == pytest.approx([0.08, 0.48, 0.0, 0.24])
    assert found.cumulative == pytest.approx([0.48, 0.72, 0.8, 0.8])
    assert [found.rank(s) for s in (0.4, 0.48, 0.5, 0.8, 0.81)] == [1, 1, 2, 3, None]


def test_no_energy_without_drift_or_kernel(forecast):
    f = forecast(1)
    f.arrays["energy"] = np.zeros(3)
    assert energy(f) is None
    del f.arrays["energy"]
    assert energy(f) is None

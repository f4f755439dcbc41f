"""Closed-form heads of the library score as the published procedures do, and the measurement runs."""

from __future__ import annotations

import benchmarks.heads
import pytest
import torch

TINY = {
    **{"width": 16, "classes": 6, "test": 60, "samples": 240, "tasks": 3, "units": 60},
    **{"small-samples": 40, "small-tasks": 3, "small-units": 200, "stream": 120},
}


@pytest.fixture
def bench():
    threads = torch.get_num_threads()
    yield benchmarks.heads
    torch.set_num_threads(threads)


@pytest.fixture
def data(bench):
    return bench.stream(240, 3, n_classes=6, width=16, n_test=300, separation=4.0)


def test_tasks_bring_classes_in_turn_and_the_same_seed_the_same_features(bench, data) -> None:
    assert [sorted(set(labels.tolist())) for _, labels in data.tasks] == [[0, 1], [2, 3], [4, 5]]
    assert (data.n_samples, data.width, data.n_outputs) == (240, 16, 6)
    again = bench.stream(240, 3, n_classes=6, width=16, n_test=300, separation=4.0)
    assert torch.equal(again.test[0], data.test[0])
    assert data.tasks[0][1].tolist() != sorted(data.tasks[0][1].tolist())


@pytest.mark.parametrize("n_units", [40, 400])
def test_ridge_scores_equal_the_published_ones(bench, data, n_units: int) -> None:
    assert bench.ridge_difference(data, n_units) < bench.EQUAL


def test_gaussian_scores_equal_the_recursion_with_exact_weights(bench, data) -> None:
    assert bench.gaussian_difference(data) < bench.EQUAL


def test_a_difference_would_be_found(bench, data, monkeypatch: pytest.MonkeyPatch) -> None:
    class Published(bench.NaiveSLDA):
        def __init__(self, width: int, n_outputs: int, *, own_counts: bool, dtype: torch.dtype) -> None:
            super().__init__(width, n_outputs, own_counts=False, dtype=dtype)

    monkeypatch.setattr(bench, "NaiveSLDA", Published)
    assert bench.gaussian_difference(data) > 1e-4


def test_accuracies_are_equal(bench, data) -> None:
    labels = data.test[1]
    naive, ours = (bench.run(head, data) for head in bench.ridge_heads(data, 60))
    assert naive.accuracy(labels) > 0.8
    assert ours.accuracy(labels) == pytest.approx(naive.accuracy(labels), abs=0.03)
    naive, ours = (bench.run(head, data) for head in (bench.NaiveSLDA(16, 6), bench.SharedGaussian(16)))
    assert naive.accuracy(labels) > 0.8
    assert ours.accuracy(labels) == pytest.approx(naive.accuracy(labels), abs=0.03)


def test_the_published_ridge_is_one_of_seventeen_and_its_error_the_least(bench, data) -> None:
    naive, _ = bench.ridge_heads(data, 40)
    features, labels = data.tasks[0]
    naive.fit_task(features, labels)
    h = (features @ naive.projection).relu()
    y = torch.nn.functional.one_hot(labels, 6).float()
    fit, held = h[:64].double(), h[64:].double()

    def error(ridge: float) -> float:
        eye = torch.eye(40, dtype=torch.float64)
        weights = torch.linalg.solve(fit.T @ fit + ridge * eye, fit.T @ y[:64].double())
        return float((held @ weights - y[64:]).square().mean())

    assert naive.ridge == min((10.0**k for k in range(-8, 9)), key=error)


def test_all_cases_are_measured(bench, capsys: pytest.CaptureFixture[str]) -> None:
    bench.main([word for name, value in TINY.items() for word in (f"--{name}", str(value))])
    printed = capsys.readouterr().out
    for line in ("wide: 240 samples in 3 tasks", "small: 120 samples in 3 tasks", "gaussian: 120 samples"):
        assert line in printed
    assert printed.count("times is ") == 3
    assert printed.count("published  ") == 3


def test_nothing_is_timed_where_the_computations_differ(bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "EQUAL", -1.0)
    with pytest.raises(SystemExit, match="differ"):
        bench.main(["--cases", "gaussian"])

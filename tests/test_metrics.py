"""Metrics against numbers computed by hand, and what must hold for every matrix."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from tangentcl import metrics
from tangentcl.errors import DataError
from tangentcl.metrics import NotEvaluated

NAN = float("nan")
# After task 1: 0.9; after 2: 0.7, 0.8; after 3: 0.6, 0.5, 1.0. Test samples 100, 100, 200.
R3 = np.array([[0.9, NAN, NAN], [0.7, 0.8, NAN], [0.6, 0.5, 1.0]])
N3 = [100, 100, 200]
JOINT = [0.8, 0.7, 0.9]
ONLY_LAST = np.array([[NAN, NAN, NAN], [NAN, NAN, NAN], [0.8, 0.7, 0.9]])


def matrices(min_tasks: int = 1):
    fractions = st.floats(0, 1, allow_subnormal=False)
    return st.integers(min_tasks, 6).flatmap(lambda t: arrays(np.float64, (t, t), elements=fractions)).map(lower)


def lower(full):
    return np.where(np.tril(np.ones_like(full)) > 0, full, np.nan)


def test_hand_computed_numbers():
    np.testing.assert_allclose(metrics.session_accuracy(R3, N3), [0.9, 0.75, (60 + 50 + 200) / 400])
    assert metrics.average_accuracy(R3, N3) == pytest.approx((0.9 + 0.75 + 0.775) / 3)
    assert metrics.last_accuracy(R3, N3) == pytest.approx(0.775)
    assert metrics.final_average_accuracy(R3) == pytest.approx(0.7)
    assert metrics.cumulative_average_accuracy(R3) == pytest.approx((0.9 + 0.75 + 0.7) / 3)
    np.testing.assert_allclose(metrics.forgetting_per_task(R3), [0.3, 0.3, NAN])
    assert metrics.final_forgetting(R3) == pytest.approx(0.3)
    assert metrics.backward_transfer(R3) == pytest.approx(-0.3)
    np.testing.assert_allclose(metrics.intransigence(R3, JOINT), [-0.1, -0.1, -0.1])
    assert metrics.regret_to_joint(R3, N3, JOINT) == pytest.approx((80 + 70 + 180) / 400 - 0.775)
    assert metrics.regret_to_joint(R3, None, JOINT, averaging="task") == pytest.approx(0.8 - 0.7)
    assert metrics.performance_drop(R3, N3) == pytest.approx(0.125)
    novel = (50 + 200) / 300
    assert metrics.harmonic_accuracy(R3, N3) == pytest.approx(2 * 0.6 * novel / (0.6 + novel))


def test_forgetting_starts_from_the_best_and_transfer_from_the_diagonal():
    R = [[0.5, NAN, NAN], [0.9, 0.4, NAN], [0.6, 0.6, 0.7]]
    np.testing.assert_allclose(metrics.forgetting_per_task(R), [0.3, -0.2, NAN])
    assert metrics.backward_transfer(R) == pytest.approx((0.1 + 0.2) / 2)


def test_forward_transfer_reads_right_above_the_diagonal():
    R = [[0.9, 0.3, NAN], [0.7, 0.8, 0.5], [0.6, 0.5, 1.0]]
    assert metrics.forward_transfer(R, [0.1, 0.1, 0.2]) == pytest.approx((0.2 + 0.3) / 2)
    with pytest.raises(NotEvaluated, match="right above the diagonal"):
        metrics.forward_transfer(R3, [0.1, 0.1, 0.2])


def test_entries_above_the_diagonal_do_not_change_what_looks_at_seen_tasks():
    full = np.where(np.isnan(R3), 0.2, R3)
    for name, value in metrics.summary(R3, N3, None, None, "domain", JOINT).items():
        assert metrics.summary(full, N3, None, None, "domain", JOINT)[name] == pytest.approx(value), name


def test_forgetting_per_class_by_hand():
    correct = [[8, 10, NAN, NAN], [4, 10, 5, NAN], [6, 9, 1, 3]]
    np.testing.assert_allclose(metrics.forgetting_per_class(correct, [10, 10, 5, 4]), [0.2, 0.1, 0.8, NAN])
    np.testing.assert_allclose(metrics.forgetting_per_class([[8, 0], [4, 0]], [10, 0]), [0.4, NAN])
    with pytest.raises(NotEvaluated):
        metrics.forgetting_per_class([[8, 1], [NAN, NAN]], [10, 1])


def test_with_the_last_row_alone_only_what_it_supports_is_a_number():
    s = metrics.summary(ONLY_LAST, N3, None, None, "class", JOINT)
    known = {k for k, v in s.items() if v is not None}
    assert known == {
        "last_accuracy",
        "last_accuracy_task_mean",
        "faa",
        "regret_to_joint",
        "regret_to_joint_task_mean",
        "intransigence",
        "session_accuracy",
        "session_accuracy_task_mean",
    }
    assert s["last_accuracy"] == pytest.approx(0.825)
    assert s["regret_to_joint"] == pytest.approx(0)
    assert s["session_accuracy"][:2] == [None, None]
    with pytest.raises(NotEvaluated, match="average accuracy"):
        metrics.average_accuracy(ONLY_LAST, N3)


def test_an_unfinished_matrix_gives_no_final_numbers():
    partial = R3.copy()
    partial[2] = NAN
    s = metrics.summary(partial, N3, None, None, "few_shot")
    assert {k for k, v in s.items() if v is not None} == {"session_accuracy", "session_accuracy_task_mean"}
    hole = R3.copy()
    hole[1, 0] = NAN
    s = metrics.summary(hole, N3, None, None, "class")
    assert s["ffm"] is None
    assert s["average_accuracy"] is None
    assert s["backward_transfer"] == pytest.approx(-0.3)


def test_one_task_has_no_forgetting():
    s = metrics.summary([[0.5]], [10], [[3, 2]], [5, 5], "few_shot")
    assert s["last_accuracy"] == s["average_accuracy"] == 0.5
    assert s["ffm"] is s["backward_transfer"] is s["performance_drop"] is s["harmonic_accuracy"] is None
    assert s["forgetting_per_task"] == [None]
    assert s["forgetting_per_class"] == [None, None]


def test_few_shot_metrics_only_for_few_shot_and_class_forgetting_not_for_domains():
    correct, total = [[90, NAN, NAN], [70, 80, NAN], [60, 50, 200]], [100, 100, 200]
    assert metrics.summary(R3, N3, correct, total, "few_shot")["performance_drop"] == pytest.approx(0.125)
    assert metrics.summary(R3, N3, correct, total, "class")["performance_drop"] is None
    per_class = metrics.summary(R3, N3, correct, total, "class")["forgetting_per_class"]
    assert per_class == [pytest.approx(0.3), pytest.approx(0.3), None]
    assert metrics.summary(R3, N3, correct, total, "domain")["forgetting_per_class"] is None
    zeros = [[0.0, NAN], [0.0, 0.0]]
    assert metrics.harmonic_accuracy(zeros, [1, 1]) == 0


def test_harmonic_accuracies_by_hand():
    H = metrics.harmonic_accuracies(R3, N3)
    assert np.isnan(H[0])
    assert H[1] == pytest.approx(2 * 0.7 * 0.8 / 1.5)
    assert H[2] == metrics.harmonic_accuracy(R3, N3)
    s = metrics.summary(R3, N3, None, None, "few_shot")
    assert s["harmonic_accuracies"] == [None, pytest.approx(H[1]), s["harmonic_accuracy"]]
    assert metrics.summary(R3, N3, None, None, "class")["harmonic_accuracies"] is None
    assert metrics.summary(ONLY_LAST, N3, None, None, "few_shot")["harmonic_accuracies"] is None
    assert metrics.summary([[0.5]], [10], None, None, "few_shot")["harmonic_accuracies"] is None
    np.testing.assert_array_equal(metrics.harmonic_mean([0.0, 0.5, NAN], [0.0, 1.0, 0.5]), [0.0, 2 / 3, NAN])
    with pytest.raises(DataError, match="one shape"):
        metrics.harmonic_mean([0.5], 0.5)
    with pytest.raises(DataError, match="Divide by 100"):
        metrics.harmonic_mean([50.0], [50.0])


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: metrics.last_accuracy([[91.7]], [10]), "Divide by 100"),
        (lambda: metrics.last_accuracy([[-0.1]], [10]), r"\[0, 1\]"),
        (lambda: metrics.last_accuracy([[float("inf")]], [10]), r"\[0, 1\]"),
        (lambda: metrics.last_accuracy([[0.1, 0.2]], [10]), "square"),
        (lambda: metrics.last_accuracy(np.zeros((0, 0)), []), "square"),
        (lambda: metrics.last_accuracy([["a"]], [10]), "numbers"),
        (lambda: metrics.last_accuracy([[0.5]], [10, 10]), "n_test"),
        (lambda: metrics.last_accuracy([[0.5]], [0]), "n_test"),
        (lambda: metrics.last_accuracy([[0.5]], None), "n_test"),
        (lambda: metrics.last_accuracy([[0.5]], [1], averaging="sampel"), "Did you mean 'sample'"),
        (lambda: metrics.last_accuracy([[NAN]], [10]), "last accuracy"),
        (lambda: metrics.regret_to_joint(R3, N3, [0.5]), "joint_row"),
        (lambda: metrics.regret_to_joint(R3, N3, [0.5, 2, 0.5]), "joint_row"),
        (lambda: metrics.final_forgetting([[0.5]]), "two tasks"),
        (lambda: metrics.forgetting_per_class([[3]], [2]), "3 right answers of 2"),
        (lambda: metrics.forgetting_per_class([[3, 1]], [2]), "class_correct"),
        (lambda: metrics.forgetting_per_class([[1]], [NAN]), "class_total"),
        (lambda: metrics.summary(R3, N3, None, None, "classs"), "Did you mean 'class'"),
        (lambda: metrics.summary(R3, N3, [[1]], [2], "class"), "one row per task"),
    ],
)
def test_impossible_input_is_refused(call, words):
    with pytest.raises(DataError, match=words):
        call()


@given(st.integers(1, 8), st.floats(0, 1), st.lists(st.integers(1, 1000), min_size=8, max_size=8))
def test_a_constant_matrix_forgets_nothing(n_tasks, accuracy, n_test):
    s = metrics.summary(lower(np.full((n_tasks, n_tasks), accuracy)), n_test[:n_tasks], None, None, "class")
    assert s["average_accuracy"] == pytest.approx(accuracy)
    assert s["last_accuracy"] == pytest.approx(accuracy)
    if n_tasks > 1:
        assert s["ffm"] == 0
        assert s["backward_transfer"] == 0


@given(matrices(2), st.data())
def test_bounds(R, data):
    n_test = data.draw(st.lists(st.integers(1, 500), min_size=len(R), max_size=len(R)))
    s = metrics.summary(R, n_test, None, None, "few_shot")
    for name in ("average_accuracy", "last_accuracy", "caa", "faa"):
        assert -1e-12 <= s[name] <= 1 + 1e-12
    assert -1 <= s["ffm"] <= 1
    assert s["ffm"] >= -s["backward_transfer"] - 1e-12  # the best is at least the diagonal
    low, high = sorted((R[-1, 0], metrics.last_accuracy(R[1:, 1:], n_test[1:])))
    assert low - 1e-9 <= s["harmonic_accuracy"] <= high + 1e-9


@given(matrices(), st.integers(1, 500))
def test_sample_mean_is_task_mean_when_tasks_are_equally_large(R, n):
    s = metrics.summary(R, [n] * len(R), None, None, "class", R[-1])
    assert s["average_accuracy"] == pytest.approx(s["average_accuracy_task_mean"]) == s["caa"]
    assert s["last_accuracy"] == pytest.approx(s["last_accuracy_task_mean"]) == s["faa"]
    assert s["regret_to_joint"] == pytest.approx(0)
    assert s["regret_to_joint_task_mean"] == pytest.approx(0)


@given(matrices(2), st.floats(0, 1))
def test_metrics_scale_with_the_accuracies(R, c):
    n_test = np.arange(1, len(R) + 1)
    whole, scaled = (metrics.summary(m, n_test, None, None, "few_shot") for m in (R, c * R))
    for name in ("average_accuracy", "last_accuracy", "caa", "faa", "ffm", "backward_transfer", "performance_drop"):
        assert scaled[name] == pytest.approx(c * whole[name], abs=1e-12), name


@given(st.lists(st.lists(st.booleans(), min_size=1, max_size=9), min_size=1, max_size=5), st.randoms())
def test_sample_mean_is_the_share_of_right_answers_whatever_their_order(right, random):
    n_test = [len(task) for task in right]

    def last(tasks):
        R = np.full((len(tasks), len(tasks)), NAN)
        R[-1] = [np.mean(task) for task in tasks]
        return metrics.last_accuracy(R, n_test)

    shuffled = [random.sample(task, len(task)) for task in right]
    assert last(right) == pytest.approx(np.mean([r for task in right for r in task]))
    assert last(shuffled) == pytest.approx(last(right))

"""Continual-learning metrics from the accuracy matrix ``R`` (numpy only).

``R[t, k]`` is the accuracy, a fraction in [0, 1], on the test samples of task ``k`` after training on task ``t``; both
count from 0 and NaN means "not evaluated". Formulas count tasks from 1 to T as the papers do. A metric is a fraction
too, and is refused with `NotEvaluated` when an entry that it needs is NaN: never a number over fewer tasks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from .errors import DataError, nearest

Array = npt.NDArray[np.float64]
SCENARIOS = ("class", "domain", "task", "few_shot")
AVERAGINGS = ("sample", "task")


class NotEvaluated(DataError):
    """A metric needs an accuracy that was never measured."""


def session_accuracy(matrix: npt.ArrayLike, n_test: npt.ArrayLike | None, *, averaging: str = "sample") -> Array:
    """Accuracy ``A_t`` over everything seen so far, after each task; [T], NaN where row t is not fully evaluated.

    ``A_t = sum_{k<=t} w_k R[t, k] / sum_{k<=t} w_k`` with ``w_k = n_test[k]`` (averaging "sample": the share of all
    seen test samples that is right) or ``w_k = 1`` (averaging "task": the mean of task accuracies).

    Raises:
        DataError: a wrong shape, an accuracy outside [0, 1], an unknown averaging.

    >>> session_accuracy([[1.0, float("nan")], [0.5, 0.75]], [100, 300]).tolist()
    [1.0, 0.6875]
    """
    R = _matrix(matrix)
    w = _weights(n_test, len(R), averaging)
    seen = np.tril(np.ones_like(R))
    return (np.where(seen > 0, R, 0.0) @ w) / (seen @ w)  # [T]


def average_accuracy(matrix: npt.ArrayLike, n_test: npt.ArrayLike | None, *, averaging: str = "sample") -> float:
    """Average incremental accuracy ``A-bar = 1/T sum_t A_t``.

    Rebuffi et al. (iCaRL, 2017); with averaging "sample" the convention of LAMDA-PILOT (Sun et al. 2023),
    with averaging "task" it is `cumulative_average_accuracy`.

    Raises:
        NotEvaluated: a seen task was not evaluated in some row.

    >>> average_accuracy([[1.0, float("nan")], [0.5, 0.75]], [100, 300])
    0.84375
    """
    A = session_accuracy(matrix, n_test, averaging=averaging)
    return float(_all_known(A, "average accuracy", "row").mean())


def last_accuracy(matrix: npt.ArrayLike, n_test: npt.ArrayLike | None, *, averaging: str = "sample") -> float:
    """Last accuracy ``A_T`` over all tasks after the last one; needs only the last row.

    Raises:
        NotEvaluated: a task is missing in the last row.

    >>> last_accuracy([[1.0, float("nan")], [0.5, 0.75]], [100, 300])
    0.6875
    """
    A = session_accuracy(matrix, n_test, averaging=averaging)
    return float(_all_known(A[-1:], "last accuracy", "last row, session")[0])


def final_average_accuracy(matrix: npt.ArrayLike) -> float:
    """Final average accuracy ``FAA = 1/T sum_k R[T, k]``: `last_accuracy` as a mean over tasks.

    Lopez-Paz & Ranzato (GEM, 2017); the name FAA as in Wang et al. (HiDe-Prompt, 2023).

    >>> final_average_accuracy([[1.0, float("nan")], [0.5, 0.75]])
    0.625
    """
    return last_accuracy(matrix, None, averaging="task")


def cumulative_average_accuracy(matrix: npt.ArrayLike) -> float:
    """Cumulative average accuracy ``CAA = 1/T sum_t 1/t sum_{k<=t} R[t, k]`` (Wang et al., HiDe-Prompt, 2023).

    >>> cumulative_average_accuracy([[1.0, float("nan")], [0.5, 0.75]])
    0.8125
    """
    return average_accuracy(matrix, None, averaging="task")


def forgetting_per_task(matrix: npt.ArrayLike) -> Array:
    """Forgetting ``f_k = max_{t<T} R[t, k] - R[T, k]`` of each task; [T], NaN for the last task, which has no past.

    Chaudhry et al. (Riemannian Walk, 2018). Negative when the task ended better than it ever was. Entries above
    the diagonal take part in the maximum where they were evaluated (domain-incremental streams).

    Raises:
        NotEvaluated: an entry on or below the diagonal is missing, so the maximum is not known.

    >>> forgetting_per_task([[1.0, float("nan")], [0.5, 0.75]]).tolist()
    [0.5, nan]
    """
    R = _matrix(matrix)
    _lower_known(R, "forgetting")
    f = np.full(len(R), np.nan)
    if len(R) > 1:
        f[:-1] = np.nanmax(R[:-1, :-1], axis=0) - R[-1, :-1]
    return f


def final_forgetting(matrix: npt.ArrayLike) -> float:
    """Final forgetting measure ``FFM = 1/(T-1) sum_{k<T} (max_{t<T} R[t, k] - R[T, k])``.

    Chaudhry et al. (Riemannian Walk, 2018), at the last task.

    Raises:
        NotEvaluated: fewer than two tasks, or an entry on or below the diagonal is missing.

    >>> final_forgetting([[1.0, float("nan")], [0.5, 0.75]])
    0.5
    """
    f = forgetting_per_task(matrix)
    _two_tasks(len(f), "forgetting")
    return float(f[:-1].mean())


def forgetting_per_class(class_correct: npt.ArrayLike, class_total: npt.ArrayLike) -> Array:
    """Forgetting of each class, ``f_c = max_{t<T} a[t, c] - a[T, c]``; [C], NaN for classes without a past.

    Args:
        class_correct: [T, C] number of right answers per class after each task, NaN while a class is not seen.
        class_total: [C] number of test samples per class; a class without any gets NaN.

    Raises:
        NotEvaluated: a stage without any count, or a class that was counted once and later was not.

    >>> forgetting_per_class([[4, float("nan")], [3, 2]], [4, 2]).tolist()
    [0.25, nan]
    """
    correct, total = _class_counts(class_correct, class_total)
    known = np.isfinite(correct)
    if not known.any(axis=1).all() or (known[:-1] & ~known[1:]).any():
        raise NotEvaluated("forgetting per class needs the right answers of every seen class after every task")
    a = correct / np.where(total > 0, total, np.nan)  # [T, C]
    f = np.full(a.shape[1], np.nan)
    past = np.isfinite(a[:-1]).any(axis=0)
    if past.any():
        f[past] = np.nanmax(a[:-1, past], axis=0) - a[-1, past]
    return f


def backward_transfer(matrix: npt.ArrayLike) -> float:
    """Backward transfer ``BWT = 1/(T-1) sum_{k<T} (R[T, k] - R[k, k])``, negative when tasks were forgotten.

    Lopez-Paz & Ranzato (GEM, 2017).

    Raises:
        NotEvaluated: fewer than two tasks, or the diagonal or the last row is incomplete.

    >>> backward_transfer([[1.0, float("nan")], [0.5, 0.75]])
    -0.5
    """
    R = _matrix(matrix)
    _two_tasks(len(R), "backward transfer")
    change = R[-1, :-1] - np.diag(R)[:-1]
    return float(_all_known(change, "backward transfer", "diagonal or last row, task").mean())


def forward_transfer(matrix: npt.ArrayLike, baseline: npt.ArrayLike) -> float:
    """Forward transfer ``FWT = 1/(T-1) sum_{k=2}^T (R[k-1, k] - b_k)``.

    Lopez-Paz & Ranzato (GEM, 2017). Needs the entries right above the diagonal, and ``baseline`` [T], the
    accuracy of a randomly initialised model on each task.

    >>> forward_transfer([[1.0, 0.375], [0.5, 0.75]], [0.25, 0.25])
    0.125
    """
    R = _matrix(matrix)
    b = _row(baseline, len(R), "baseline")
    _two_tasks(len(R), "forward transfer")
    gain = np.diag(R, k=1) - b[1:]
    return float(_all_known(gain, "forward transfer", "entry right above the diagonal, or baseline,").mean())


def intransigence(matrix: npt.ArrayLike, reference: npt.ArrayLike) -> Array:
    """Intransigence ``I_k = a*_k - R[k, k]``: what a joint model of tasks 1..k knows of task k beyond the learner; [T].

    Chaudhry et al. (Riemannian Walk, 2018). ``reference`` [T] holds ``a*_k``; NaN in, NaN out. One joint model of all
    tasks gives the paper's quantity for the last task only.

    >>> intransigence([[1.0, float("nan")], [0.5, 0.75]], [float("nan"), 1.0]).tolist()
    [nan, 0.25]
    """
    R = _matrix(matrix)
    return _row(reference, len(R), "reference") - np.diag(R)


def regret_to_joint(
    matrix: npt.ArrayLike, n_test: npt.ArrayLike | None, joint_row: npt.ArrayLike, *, averaging: str = "sample"
) -> float:
    """Accuracy lost against training on everything at once: ``A_T(joint) - A_T``.

    ``joint_row`` [T] is the last row of the joint model's matrix. Forgetting and regret differ: a closed-form head
    (recursive least squares) equals its joint solution, so its regret is 0, and still each task loses accuracy as later
    classes compete with it, so its forgetting is positive. Forgetting alone calls that a fault; regret does not.

    Raises:
        NotEvaluated: an entry of the last row or of the joint row is missing.

    >>> regret_to_joint([[1.0, float("nan")], [0.5, 0.75]], [100, 300], [0.5, 0.75])
    0.0
    """
    R = _matrix(matrix)
    joint = _all_known(_row(joint_row, len(R), "joint_row"), "regret to joint", "joint accuracy of task")
    w = _weights(n_test, len(R), averaging)
    return float(joint @ w / w.sum()) - last_accuracy(R, n_test, averaging=averaging)


def performance_drop(matrix: npt.ArrayLike, n_test: npt.ArrayLike | None, *, averaging: str = "sample") -> float:
    """Few-shot performance drop ``PD = A_1 - A_T``, base session to last session (Zhang et al., CEC, 2021).

    >>> performance_drop([[1.0, float("nan")], [0.5, 0.75]], [100, 300])
    0.3125
    """
    A = session_accuracy(matrix, n_test, averaging=averaging)
    _two_tasks(len(A), "the performance drop")
    first, last = _all_known(A[[0, -1]], "the performance drop", "first or last row, entry")
    return float(first - last)


def harmonic_mean(base: npt.ArrayLike, novel: npt.ArrayLike) -> Array:
    """Harmonic mean ``2 a b / (a + b)`` of base and novel accuracies, entry by entry; 0 if both are 0, NaN stays.

    Raises:
        DataError: different shapes, or an accuracy outside [0, 1].

    >>> harmonic_mean([0.5, 0.75], [0.5, 0.25]).tolist()
    [0.5, 0.375]
    """
    a, b = _numbers(base, "base"), _numbers(novel, "novel")
    if a.shape != b.shape:
        raise DataError(f"base and novel accuracies must have one shape, got {a.shape} and {b.shape}")
    _fractions(a, "base")
    _fractions(b, "novel")
    both = a + b
    return 2 * a * b / np.where(both == 0, 1.0, both)


def harmonic_accuracies(matrix: npt.ArrayLike, n_test: npt.ArrayLike) -> Array:
    """Harmonic mean of base and novel accuracy after each session; [T], NaN for the base session, which has no novel.

    ``H_t = 2 A_b A_n / (A_b + A_n)`` with ``A_b = R[t, 1]`` and ``A_n`` the accuracy on the samples of tasks 2..t.
    The last entry is `harmonic_accuracy`; NaN too where a row is not fully evaluated.

    >>> harmonic_accuracies([[1.0, float("nan")], [0.5, 0.5]], [100, 300]).tolist()
    [nan, 0.5]
    """
    R = _matrix(matrix)
    H = np.full(len(R), np.nan)
    if len(R) > 1:
        novel = session_accuracy(R[1:, 1:], _weights(n_test, len(R), "sample")[1:])
        H[1:] = harmonic_mean(R[1:, 0], novel)
    return H


def harmonic_accuracy(matrix: npt.ArrayLike, n_test: npt.ArrayLike) -> float:
    """Few-shot harmonic accuracy ``2 A_b A_n / (A_b + A_n)`` after the last session (Peng et al., ALICE, 2022).

    ``A_b`` is the accuracy on the base classes (task 1), ``A_n`` on the samples of all later tasks; 0 if both are 0.

    >>> harmonic_accuracy([[1.0, float("nan")], [0.5, 0.5]], [100, 300])
    0.5
    """
    R = _matrix(matrix)
    _two_tasks(len(R), "harmonic accuracy")
    _all_known(R[-1], "harmonic accuracy", "last row, task")
    return float(harmonic_accuracies(R, n_test)[-1])


def summary(
    matrix: npt.ArrayLike,
    n_test: npt.ArrayLike,
    class_correct: npt.ArrayLike | None,
    class_total: npt.ArrayLike | None,
    scenario: str,
    joint_row: npt.ArrayLike | None = None,
) -> dict[str, Any]:
    """Every metric under its stable name: a fraction, a list of fractions, or None where it cannot be computed.

    Args:
        matrix: [T, T] accuracies, NaN where not evaluated; with the last row alone (joint training) what needs more
            is None.
        n_test: [T] test samples per task.
        class_correct: [T, C] right answers per class (see `forgetting_per_class`) or None.
        class_total: [C] test samples per class or None.
        scenario: "class", "domain", "task" or "few_shot". Few-shot metrics are given for few_shot alone; forgetting per
            class not for domain, where a class's test samples change from stage to stage.
        joint_row: [T] last row of a joint model on the same stream, for regret and intransigence.

    Raises:
        DataError: wrong shapes, accuracies outside [0, 1], more right answers than samples, an unknown scenario.

    >>> s = summary([[1.0, float("nan")], [0.5, 0.75]], [100, 300], None, None, "class", joint_row=[0.75, 0.75])
    >>> s["last_accuracy"], s["ffm"], s["regret_to_joint"], s["forgetting_per_task"], s["harmonic_accuracy"]
    (0.6875, 0.5, 0.0625, [0.5, None], None)
    """
    if scenario not in SCENARIOS:
        raise DataError(f"unknown scenario {scenario!r}.{nearest(scenario, SCENARIOS)}")
    R = _matrix(matrix)
    n = _weights(n_test, len(R), "sample")
    counts = None
    if class_correct is not None and class_total is not None:
        counts = _class_counts(class_correct, class_total)
        if len(counts[0]) != len(R):
            raise DataError(f"class_correct must have one row per task ({len(R)}), got {len(counts[0])}")
    joint = None if joint_row is None else _row(joint_row, len(R), "joint_row")
    few_shot = scenario == "few_shot"
    return {
        "average_accuracy": _known(lambda: average_accuracy(R, n)),
        "last_accuracy": _known(lambda: last_accuracy(R, n)),
        "average_accuracy_task_mean": _known(lambda: average_accuracy(R, n, averaging="task")),
        "last_accuracy_task_mean": _known(lambda: last_accuracy(R, n, averaging="task")),
        "faa": _known(lambda: final_average_accuracy(R)),
        "caa": _known(lambda: cumulative_average_accuracy(R)),
        "ffm": _known(lambda: final_forgetting(R)),
        "backward_transfer": _known(lambda: backward_transfer(R)),
        "regret_to_joint": None if joint is None else _known(lambda: regret_to_joint(R, n, joint)),
        "regret_to_joint_task_mean": None
        if joint is None
        else _known(lambda: regret_to_joint(R, n, joint, averaging="task")),
        "intransigence": None if joint is None else _listed(intransigence(R, joint)[-1:])[0],
        "performance_drop": _known(lambda: performance_drop(R, n)) if few_shot else None,
        "harmonic_accuracy": _known(lambda: harmonic_accuracy(R, n)) if few_shot else None,
        "harmonic_accuracies": _known(lambda: _every_session(harmonic_accuracies(R, n))) if few_shot else None,
        "session_accuracy": _listed(session_accuracy(R, n)),
        "session_accuracy_task_mean": _listed(session_accuracy(R, n, averaging="task")),
        "forgetting_per_task": _known(lambda: _listed(forgetting_per_task(R))),
        "forgetting_per_class": None
        if counts is None or scenario == "domain"
        else _known(lambda: _listed(forgetting_per_class(*counts))),
    }


def matrix_text(matrix: npt.ArrayLike, n_test: npt.ArrayLike) -> str:
    """The accuracy matrix as plain text in percent: a line per stage, tasks counted from 1.

    Stages that were not evaluated are left out. The last column, "seen", is the sample-mean over all tasks so far.

    >>> print(matrix_text([[1.0, float("nan")], [0.5, 0.75]], [100, 300]))
    after      1     2   seen
        1  100.0        100.0
        2   50.0  75.0   68.8
    """
    R = _matrix(matrix)
    seen = session_accuracy(R, n_test)
    lines = [["after", *(str(k + 1) for k in range(len(R))), "seen"]]
    for t, row in enumerate(R):
        if not np.isnan(row).all():
            lines.append([str(t + 1), *("" if np.isnan(v) else f"{100 * v:.1f}" for v in [*row, seen[t]])])
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join("  ".join(cell.rjust(w) for cell, w in zip(line, widths)).rstrip() for line in lines)


def _known(metric: Callable[[], Any]) -> Any:
    try:
        return metric()
    except NotEvaluated:
        return None


def _every_session(values: Array) -> list[float | None]:
    _two_tasks(len(values), "harmonic accuracies")
    _all_known(values[1:], "harmonic accuracies", "row after the base session,")
    return _listed(values)


def _listed(values: Array) -> list[float | None]:
    return [float(v) if np.isfinite(v) else None for v in values]


def _numbers(values: npt.ArrayLike, name: str) -> Array:
    try:
        return np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise DataError(f"{name} must hold numbers (NaN where not evaluated): {error}") from error


def _fractions(values: Array, name: str) -> Array:
    bad = np.argwhere((values < 0) | (values > 1 + 1e-9))
    if len(bad):
        value = values[tuple(bad[0])]
        hint = " Percentages? Divide by 100." if 1 < value <= 100 else ""
        raise DataError(f"{name} must hold accuracies in [0, 1], got {value:g} at {tuple(map(int, bad[0]))}.{hint}")
    return values


def _matrix(matrix: npt.ArrayLike) -> Array:
    R = _numbers(matrix, "the accuracy matrix")
    if R.ndim != 2 or R.shape[0] != R.shape[1] or not R.size:
        raise DataError(f"the accuracy matrix must be square, [T, T] with T >= 1, got shape {R.shape}")
    return _fractions(R, "the accuracy matrix")


def _row(values: npt.ArrayLike, n_tasks: int, name: str) -> Array:
    row = _numbers(values, name)
    if row.shape != (n_tasks,):
        raise DataError(f"{name} must have one entry per task, shape ({n_tasks},), got {row.shape}")
    return _fractions(row, name)


def _weights(n_test: npt.ArrayLike | None, n_tasks: int, averaging: str) -> Array:
    if averaging not in AVERAGINGS:
        raise DataError(f"unknown averaging {averaging!r}.{nearest(averaging, AVERAGINGS)}")
    if averaging == "task":
        return np.ones(n_tasks)
    if n_test is None:
        raise DataError('averaging="sample" needs n_test, the number of test samples per task')
    n = _numbers(n_test, "n_test")
    if n.shape != (n_tasks,) or not (np.isfinite(n) & (n > 0)).all():
        raise DataError(f"n_test must hold {n_tasks} positive numbers of test samples, got {n.tolist()}")
    return n


def _class_counts(class_correct: npt.ArrayLike, class_total: npt.ArrayLike) -> tuple[Array, Array]:
    correct, total = _numbers(class_correct, "class_correct"), _numbers(class_total, "class_total")
    if total.ndim != 1 or correct.ndim != 2 or correct.shape[1] != len(total) or not len(correct):
        raise DataError(f"class_correct must be [T, C] and class_total [C], got {correct.shape} and {total.shape}")
    if not (np.isfinite(total) & (total >= 0)).all():
        raise DataError("class_total must hold a number of test samples >= 0 for every class")
    if ((correct < 0) | (correct > total)).any():
        stage, label = map(int, np.argwhere((correct < 0) | (correct > total))[0])
        raise DataError(f"class {label} has {correct[stage, label]:g} right answers of {total[label]:g}, stage {stage}")
    return correct, total


def _all_known(values: Array, metric: str, what: str) -> Array:
    missing = np.flatnonzero(~np.isfinite(values))
    if len(missing):
        raise NotEvaluated(f"{metric} needs accuracies that were not evaluated: {what} {missing[0]} is NaN")
    return values


def _lower_known(R: Array, metric: str) -> None:
    missing = np.argwhere(np.isnan(R) & np.tril(np.ones_like(R, dtype=bool)))
    if len(missing):
        raise NotEvaluated(f"{metric} needs R[{missing[0][0]}, {missing[0][1]}], which was not evaluated")


def _two_tasks(n_tasks: int, metric: str) -> None:
    if n_tasks < 2:
        raise NotEvaluated(f"{metric} needs at least two tasks, got {n_tasks}")

"""What figures show of a row: means over seeds, worst classes, loss curves through all tasks."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tangentcl.records import Record, write_checksums
from tangentcl.reports import aggregate, rows


def row_of(*folders):
    (row,) = rows([Record.read(f) for f in folders])
    return row


def test_means_and_bands_over_seeds(digits):
    folders = [p for p in digits if p.parent.name == "ncm"]
    row = row_of(*folders)
    matrices = np.array([Record.read(f).accuracy.matrix for f in folders])
    np.testing.assert_allclose(aggregate.mean_matrix(row), matrices.mean(axis=0))
    series = aggregate.accuracy_series(row, "ncm", 1)
    np.testing.assert_allclose(series.mean[-1], matrices[:, -1].mean())
    np.testing.assert_allclose(series.high - series.mean, series.mean - series.low)
    forgetting = aggregate.forgetting_series(row, "ncm", 1)
    assert np.isnan(forgetting.mean[-1])
    assert forgetting.mean[:-1].mean() == pytest.approx(row.metrics["ffm"].mean)


def test_joint_training_has_no_forgetting_to_draw(tmp_path, write):
    row = row_of(write(tmp_path, "joint", 0))
    assert aggregate.forgetting_series(row, "joint", 0) is None
    assert aggregate.worst_classes(row) == []
    assert np.isfinite(aggregate.accuracy_series(row, "joint", 0).mean).tolist() == [False] * 4 + [True]


def test_worst_classes_follow_their_names_through_other_orders(tmp_path, write):
    names = ["a", "b", "c", "d"]
    first = write(tmp_path, "finetune", 0, n_tasks=2, names=names)
    second = write(tmp_path, "finetune", 1, n_tasks=2, names=names[::-1])
    row = row_of(first, second)
    worst = aggregate.worst_classes(row, count=4)
    drops = [c.forgetting.mean for c in worst]
    assert drops == sorted(drops, reverse=True)
    assert {c.name for c in worst} <= set(names)
    assert all(c.forgetting.n == 1 for c in worst)  # each class is in the first task of one seed only
    assert all(c.best - c.last == pytest.approx(c.forgetting.mean) for c in worst)
    assert aggregate.task_names(row) == ["task 1", "task 2"]


def test_loss_steps_run_on_whether_or_not_the_counter_restarts(tmp_path, write):
    folder = write(tmp_path, "replay", 0, n_tasks=3, steps=100)
    restarting = aggregate.losses(row_of(folder))
    assert restarting.steps.tolist() == [20.0 * i for i in range(1, 16)]
    assert restarting.starts == [(0, 0.0), (1, 100.0), (2, 200.0)]
    assert [s.label for s in restarting.terms] == ["cross_entropy", "distillation"]
    assert np.isnan(restarting.terms[1].mean[:5]).all()

    path = folder / "events.jsonl"
    events = [json.loads(line) for line in path.read_text().splitlines()]
    for event in events:
        if event["event"] == "step":
            event["step"] += 100 * event["task"]
    path.write_text("".join(json.dumps(e) + "\n" for e in events))
    write_checksums(folder)
    running_on = aggregate.losses(row_of(folder))
    assert running_on.steps.tolist() == restarting.steps.tolist()
    assert running_on.starts == restarting.starts


def test_long_loss_curves_are_thinned_within_tasks(tmp_path, write):
    curves = aggregate.losses(row_of(write(tmp_path, "finetune", 0, n_tasks=3, steps=700, log_every=1)))
    assert 700 <= len(curves.steps) <= 803
    assert {700.0, 1400.0, 2100.0} <= set(curves.steps)


def test_seeds_that_logged_other_steps_are_not_averaged(tmp_path, write):
    row = row_of(write(tmp_path, "finetune", 0), write(tmp_path, "finetune", 1, log_every=10))
    assert aggregate.losses(row).seeds == (0,)
    assert aggregate.losses(row_of(write(tmp_path / "n", "ncm", 0))) is None


def test_labels_that_repeat_name_their_experiment(tmp_path, write):
    found = rows(Record.read(write(tmp_path, "ncm", 0, experiment=e)) for e in ("one", "two"))
    assert aggregate.labels(found) == ["one/ncm", "two/ncm"]

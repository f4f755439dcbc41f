"""What a run knows about a forecast that is made of it later."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tangentcl.cli.forecast_truth import with_truth
from tangentcl.records import Accuracy, Record, Status


def record(scenario: str = "class", **changes: Any) -> Record:
    """Three tasks of one class each, 4, 2 and 2 test samples."""
    content: dict[str, Any] = {
        "scenario": scenario,
        "task_names": ["a", "b", "c"],
        "class_names": ["x", "y", "z"],
        "task_classes": [[0], [1], [2]],
        "n_test": [4, 2, 2],
        "matrix": [[1.0, None, None], [0.75, 1.0, None], [0.5, 0.0, 1.0]],
        "class_correct": [[4, None, None], [3, 2, None], [2, 0, 2]],
        "class_total": [4, 2, 2],
    }
    accuracy = Accuracy.of(**{**content, **changes})
    return Record(Path("r"), {}, {}, (), 0, accuracy, Status("done", None, None, None))


def forecast(**changes: Any) -> dict[str, Any]:
    """Before the third task."""
    found = {
        "task": 2,
        "n_old": 6,
        "n_old_available": 6,
        "accuracy": {"now": 5 / 6, "predicted": 0.5, "real": None},
        "tasks": [{"task": 0, "n": 4, "real": None}, {"task": 1, "n": 2, "real": None}],
        "classes": [{"class": 0, "real": None}, {"class": 1, "real": None}],
    }
    return {**found, **changes}


def test_accuracies_of_the_run_stand_beside_those_forecast() -> None:
    found, notes = with_truth(forecast(), record())
    assert notes == ()
    assert found["accuracy"]["real"] == pytest.approx(2 / 6)
    assert [one["real"] for one in found["tasks"]] == [0.5, 0.0]
    assert [one["real"] for one in found["classes"]] == [0.5, 0.0]


def test_another_learner_than_that_of_the_run_is_noticed() -> None:
    _, notes = with_truth(forecast(accuracy={"now": 0.5, "predicted": 0.5, "real": None}), record())
    assert notes == ("the run had 83.3 % here and the learner built again has 50.0 %: other versions?",)


def test_nothing_is_said_where_the_run_does_not_know() -> None:
    some = forecast(n_old_available=60)
    assert with_truth(some, record()) == (some, ())
    stopped = record(matrix=[[1.0, None, None], [0.75, 1.0, None], [None] * 3])
    assert with_truth(forecast(), stopped) == (forecast(), ())


def test_classes_of_a_domain_stream_have_other_samples_too() -> None:
    found, _ = with_truth(forecast(), record("domain"))
    assert found["accuracy"]["real"] == pytest.approx(2 / 6)
    assert [one["real"] for one in found["classes"]] == [None, None]

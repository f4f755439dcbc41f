"""A forecast as text: the numbers that are asked for, the truth beside them, and lines that fit a terminal."""

from __future__ import annotations

from typing import Any

import pytest

from tangentcl.cli.forecast_text import WIDTH, forecast_text

LONG = "a sentence that goes on and on and does not want to end before the line that it is written on does " * 2


@pytest.fixture
def summary() -> dict[str, Any]:
    """A forecast of 200 samples of two tasks, before the truth."""
    classes = [
        {"class": c, "name": f"class {c}", "n": 25, "now": 1.0, "predicted": 1.0 - 0.1 * c, "real": None}
        for c in range(8)
    ]
    tasks = [
        {"task": k, "name": name, "n": 100, "now": 1.0, "predicted": 0.65, "real": None}
        for k, name in enumerate(("0, 1", "2, 3"))
    ]
    samples = [{"id": f"s{i}", "class": 7, "name": "class 7", "loading": 0.1} for i in range(4)]
    top = [{"eigenvalue": 12.5, "share": 0.4, "classes": [{"class": 7, "name": "class 7", "share": 0.9}]}]
    return {
        "task": 2,
        "name": "4, 5",
        "status": "forecast",
        "reason": None,
        "form": "bilinear",
        "exact": False,
        "notes": ["training draws random views; the forecast is for fixed ones"],
        "sentence": "Believe it: the gap is 3 %.",
        "n_old": 200,
        "n_old_available": 900,
        "samples_note": "200 of 900 test samples of past tasks",
        "accuracy": {"now": 0.99, "predicted": 0.65, "real": None, "low": 0.6, "high": 0.7},
        "classes": classes,
        "tasks": tasks,
        "at_risk": [
            {
                "id": "s0",
                "class": 7,
                "name": "class 7",
                "margin_now": 1.25,
                "margin_predicted": -3.5,
                "margin_real": None,
            },
            {
                "id": "s1",
                "class": 7,
                "name": "class 7",
                "margin_now": 0.5,
                "margin_predicted": -3.0,
                "margin_real": None,
            },
        ],
        "flips": {"predicted": 68, "real": None, "both": None},
        "modes": {
            "n_spaces": 128,
            "rank90": 5,
            "rank95": 9,
            "rank99": 30,
            "n_samples": 128,
            "top": [{**mode, "samples": samples} for mode in top],
        },
        "quality": None,
        "cost": {"forecast_seconds": 1.5, "training_seconds": None, "forward_passes": 1200.0},
        "recipe": {"optimizer": "sgd", "lr": 0.02, "steps": 15},
    }


def test_everything_is_there_and_the_worst_classes_come_first(summary: dict[str, Any]) -> None:
    text = forecast_text(summary)
    for line in (
        "old accuracy: 99.0 % now, 65.0 % predicted",
        "34.0 points will be forgotten",
        "by the errors on earlier tasks: between 60.0 % and 70.0 %",
        "68 of 200 samples are right now and will be wrong",
        "200 of 900 test samples of past tasks",
        "vulnerable modes: 5 for 90 %, 9 for 95 %, 30 for 99 % of the drift;",
        "  1. 40.0 % of the drift, eigenvalue 12.5\n     classes: class 7 (90 %)\n",
        "     samples: s0; s1; s2",
        "how far to believe it: Believe it: the gap is 3 %.",
        "note: training draws random views; the forecast is for fixed ones",
        "cost: 1.50 s, 1200 forward passes of one sample",
    ):
        assert line in text
    rows = text.split("classes that lose most\n")[1].split("\n\n")[0].splitlines()
    assert rows[0].split() == ["class", "samples", "now", "predicted", "points", "lost"]
    assert [row.split()[1] for row in rows[1:]] == ["7", "6", "5", "4", "3"]
    assert rows[1].split() == ["class", "7", "25", "100.0", "%", "30.0", "%", "70.0"]
    assert "real" not in text


def test_the_truth_stands_beside_the_forecast(summary: dict[str, Any]) -> None:
    summary["accuracy"]["real"] = 0.6
    summary["flips"] = {"predicted": 68, "real": 80, "both": 60}
    summary["at_risk"] = [{**one, "margin_real": -2.25} for one in summary["at_risk"]]
    summary["classes"] = [{**one, "real": 0.25} for one in summary["classes"]]
    summary["quality"] = {"cosine": 0.98765, "r2": 0.9, "spearman": 0.8, "relative_error": 0.1, "flip_auc": None}
    summary["cost"]["training_seconds"] = 60.0
    text = forecast_text(summary)
    assert "old accuracy: 99.0 % now, 65.0 % predicted, 60.0 % real" in text
    assert "forgotten: 34.0 points predicted, 39.0 real" in text
    assert "80 really became wrong, 60 of them as predicted" in text
    assert "how good it was: cosine 0.988, R² 0.900, Spearman 0.800, relative error 0.100" in text
    assert "cost: 1.50 s (training took 60.00 s)" in text
    rows = text.split("samples most at risk")[1].splitlines()
    assert rows[1].split() == ["sample", "class", "margin", "now", "predicted", "real"]
    assert rows[2].split() == ["s0", "class", "7", "+1.25", "-3.50", "-2.25"]


def test_texts_stand_for_ids_and_no_line_is_too_long(summary: dict[str, Any]) -> None:
    summary["notes"] = [LONG]
    summary["classes"][7]["name"] = LONG
    summary["at_risk"][0]["name"] = LONG
    summary["modes"]["top"][0]["classes"] = [{"class": c, "name": LONG, "share": 0.3} for c in range(3)]
    text = forecast_text(summary, texts={"s0": LONG})
    assert "a sentence that goes on and on and does not…" in text
    assert max(map(len, text.splitlines())) <= WIDTH


def test_what_is_gained_is_said_so(summary: dict[str, Any]) -> None:
    summary["accuracy"] = {"now": 0.5, "predicted": 0.75, "real": None, "low": None, "high": None}
    assert "25.0 points will be gained" in forecast_text(summary)

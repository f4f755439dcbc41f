"""What a record keeps of a forecast, each number worked out again from the arrays beside it."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from tangentcl.data import TaskStream
from tangentcl.experiments.forecast_summary import in_short, task_forecast
from tangentcl.methods import NCM, Finetune
from tangentcl.nn import Backbone
from tangentcl.records import TaskForecast
from tangentcl.records.files import plain
from tangentcl.training import Forecasting, ForecastOptions, StageForecast, TrainingPlan, run_stream

NAMES = ("ant", "bee", "cat", "dog", "eel", "fox")


def _reported(method: Any, stream: TaskStream, **plan: Any) -> list[TaskForecast]:
    found: list[TaskForecast] = []

    def report(made: StageForecast) -> None:
        found.append(task_forecast(made, NAMES))

    settings = {"epochs": 2, "batch_size": 8, "lr": 3e-3, "device": "cpu", **plan}
    watcher = Forecasting(ForecastOptions(samples=28, new_samples=5), report=report)
    run_stream(method, stream, TrainingPlan(**settings), watchers=[watcher])
    return found


@pytest.fixture
def made(tiny_backbone: Callable[[], Backbone], tiny_stream: TaskStream) -> list[TaskForecast]:
    """Before and after each of two tasks."""
    torch.manual_seed(0)
    return _reported(Finetune(tiny_backbone(), tune="head"), tiny_stream)


def _right(kept: TaskForecast, which: str) -> np.ndarray:
    arrays, seen = kept.arrays, 2 * kept.task
    if which == "now":
        return np.asarray(arrays["outputs"][:, :seen].argmax(axis=1) == arrays["labels"])
    drift = arrays["drift" if which == "predicted" else "real_drift"]
    return np.asarray((arrays["outputs"] + drift).argmax(axis=1) == arrays["labels"])


def test_before_training_there_is_no_truth(made: list[TaskForecast]) -> None:
    before = made[0]
    assert (before.task, before.name, before.summary["status"]) == (1, "T2", "forecast")
    assert before.summary["quality"] is None
    assert before.summary["accuracy"]["real"] is None
    assert before.summary["cost"]["training_seconds"] is None
    assert before.summary["flips"]["real"] is None
    assert before.summary["flips"]["both"] is None
    assert all(row["real"] is None for row in before.summary["classes"] + before.summary["tasks"])
    assert all(row["margin_real"] is None for row in before.summary["at_risk"])
    assert "real_drift" not in before.arrays
    assert "new_real_drift" not in before.arrays


@pytest.mark.parametrize("index", [1, 3])
def test_numbers_follow_from_the_arrays(made: list[TaskForecast], index: int) -> None:
    kept = made[index]
    summary, arrays = kept.summary, kept.arrays
    right = {which: _right(kept, which) for which in ("now", "predicted", "real")}
    assert right["predicted"].mean() < right["now"].mean(), "a case where something is lost"
    assert summary["accuracy"] == {
        **{which: pytest.approx(r.mean()) for which, r in right.items()},
        "low": summary["accuracy"]["predicted"],
        "high": summary["accuracy"]["predicted"],
    }
    for key, of in (("classes", arrays["labels"]), ("tasks", arrays["tasks"])):
        rows = summary[key]
        assert [row[{"classes": "class", "tasks": "task"}[key]] for row in rows] == np.unique(of).tolist()
        for row, group in zip(rows, np.unique(of)):
            assert row["n"] == (of == group).sum()
            assert row["name"] == (NAMES[group] if key == "classes" else f"T{group + 1}")
            assert [row[w] for w in right] == pytest.approx([r[of == group].mean() for r in right.values()])
    lost = [right["now"] & ~right[which] for which in ("predicted", "real")]
    assert summary["flips"] == {"predicted": lost[0].sum(), "real": lost[1].sum(), "both": (lost[0] & lost[1]).sum()}
    off = np.linalg.norm(arrays["drift"] - arrays["real_drift"]) / np.linalg.norm(arrays["real_drift"])
    assert summary["quality"]["relative_error"] == pytest.approx(off)
    assert off < 1e-5


def test_samples_at_risk(made: list[TaskForecast]) -> None:
    kept = made[3]
    outputs, labels = kept.arrays["outputs"] + kept.arrays["drift"], kept.arrays["labels"]
    own = outputs[np.arange(len(labels)), labels]
    others = np.where(np.eye(6, dtype=bool)[labels], -np.inf, outputs).max(axis=1)
    order = [i for i in np.argsort(own - others, kind="stable") if _right(kept, "now")[i]][:10]
    rows = kept.summary["at_risk"]
    assert [row["class"] for row in rows] == labels[order].tolist()
    assert [row["margin_predicted"] for row in rows] == pytest.approx((own - others)[order].tolist(), rel=1e-6)
    assert len({row["id"] for row in rows}) == 10


def test_modes(made: list[TaskForecast]) -> None:
    kept = made[3]
    modes, energy = kept.summary["modes"], kept.arrays["energy"]
    assert energy.sum() == pytest.approx(np.square(kept.arrays["drift"], dtype=np.float64).sum(), rel=1e-6)
    shares = np.sort(energy)[::-1].cumsum() / energy.sum()
    assert [modes[f"rank{s}"] for s in (90, 95, 99)] == [int((shares < s / 100).sum()) + 1 for s in (90, 95, 99)]
    assert (modes["n_spaces"], modes["n_samples"]) == (len(energy), 28)
    assert len(modes["top"]) == 5
    assert [mode["share"] for mode in modes["top"]] == pytest.approx(
        (np.sort(energy)[::-1] / energy.sum())[:5].tolist()
    )
    for mode in modes["top"]:
        assert sum(row["share"] for row in mode["classes"]) == pytest.approx(1.0)  # four classes: all are listed
        assert [row["loading"] for row in mode["samples"]] == sorted(r["loading"] for r in mode["samples"])[::-1]
    assert kept.arrays["values"][0] == max(mode["eigenvalue"] for mode in modes["top"])


def test_the_recipe_and_the_samples_are_named(made: list[TaskForecast]) -> None:
    summary = made[3].summary
    assert summary["recipe"]["optimizer"] == "adamw"
    assert (summary["recipe"]["steps"], summary["recipe"]["lr"]) == (10, 3e-3)
    assert (summary["n_old"], summary["n_old_available"]) == (28, 32)
    assert summary["samples_note"].startswith("28 of 32 test samples of past tasks")
    assert (summary["form"], summary["exact"], summary["trust"]) == ("exact", True, None)
    assert summary["sentence"].startswith("Exact")
    assert made[3].arrays["new_labels"].shape == (5,)
    np.testing.assert_allclose(made[3].arrays["new_drift"], made[3].arrays["new_real_drift"], rtol=1e-4, atol=1e-5)
    json.dumps(plain(summary), allow_nan=False)


def test_a_refusal(tiny_backbone: Callable[[], Backbone], tiny_stream: TaskStream) -> None:
    kept = _reported(NCM(tiny_backbone()), tiny_stream)
    assert [k.summary["status"] for k in kept] == ["refused"] * 4
    assert "trains nothing" in kept[0].summary["reason"]
    assert kept[0].arrays == {}
    assert in_short(kept[0])["reason"] == kept[0].summary["reason"]


def test_what_is_shown_while_the_run_goes_on(made: list[TaskForecast]) -> None:
    short = in_short(made[3])
    assert short["accuracy"] == made[3].summary["accuracy"]
    losses = [c["now"] - c["predicted"] for c in made[3].summary["classes"]]
    assert [c["now"] - c["predicted"] for c in short["classes"]] == sorted(losses, reverse=True)[:3]


def test_with_one_old_class_margins_are_finite(tiny_backbone: Callable[[], Backbone], tiny_source: Any) -> None:
    from tangentcl.data import ArrayTransform, class_incremental

    stream = class_incremental(tiny_source, n_tasks=6).with_transforms(ArrayTransform(), ArrayTransform())
    torch.manual_seed(0)
    kept = _reported(Finetune(tiny_backbone(), tune="head"), stream)[0]
    assert kept.summary["accuracy"]["now"] == 1.0
    assert all(np.isfinite(row["margin_now"]) for row in kept.summary["at_risk"])

"""Progress: plain lines in a log, one live line per run in a terminal."""

from __future__ import annotations

import io
import re
from typing import Any

import pytest
from rich.console import Console

from tangentcl.experiments import progress
from tangentcl.experiments.progress import RunProgress


class Clock:
    """`time` with hands moved by the test."""

    now = 0.0

    def perf_counter(self) -> float:
        return self.now

    @staticmethod
    def strftime(form: str) -> str:
        return "12:00:00"


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(progress, "time", made)
    return made


def shown(n_runs: int = 1, *, terminal: bool = False) -> tuple[io.StringIO, RunProgress]:
    text = io.StringIO()
    return text, RunProgress(Console(file=text, force_terminal=terminal, width=60), n_runs)


def step(task: int, done: int, of: int) -> dict[str, Any]:
    fields: dict[str, Any] = {"task": task, "epoch": 0, "step": done, "n_steps": of, "lr": 0.1}
    return {**fields, "terms": {"ce": 1.25}, "samples_per_s": 99.6}


def started(task: int) -> dict[str, Any]:
    return {"task": task, "name": f"T{task + 1}", "n_train": 10, "n_classes": 2}


def evaluated(task: int, of: int) -> dict[str, Any]:
    return {"task": task, "seconds": 0.1, "accuracy": [0.5] * (task + 1) + [None] * (of - task - 1)}


def test_a_log_has_plain_lines_of_any_length(clock: Clock) -> None:
    text, observe = shown(2)
    label = "[bold]a long label[/x] " * 8
    with observe:
        observe(label, 3, "run_started", {"n_tasks": 2, "n_classes": 4})
        observe(label, 3, "task_started", started(0))
        clock.now = 8.0
        observe(label, 3, "evaluated", evaluated(0, 2))
        observe(label, 3, "something_new", {})
        clock.now = 80.0
        observe(label, 3, "run_finished", {"seconds": 80.0})
        observe("b", 3, "skipped", {})
    lines = text.getvalue().splitlines()
    assert not re.search(r"[^\x20-\x7e]", "".join(lines)), "no control characters"
    head = f"12:00:00 [1/2] {label}, seed 3: "
    assert lines == [
        head + "task 1/2 (T1): 10 samples",
        head + "task 1/2: mean accuracy of 1 task 50.0 %, 8 s left",
        head + "finished in 1 min 20 s",
        "12:00:00 [2/2] b, seed 3: done before",
    ]


def test_steps_are_printed_every_ten_seconds_at_most(clock: Clock) -> None:
    text, observe = shown()
    observe("a", 0, "run_started", {"n_tasks": 1, "n_classes": 2})
    observe("a", 0, "task_started", started(0))
    for done in range(1, 26):
        clock.now = float(done)
        observe("a", 0, "step", step(0, done, 100))
    steps = [line for line in text.getvalue().splitlines() if "step" in line]
    assert steps == [
        "12:00:00 [1/1] a, seed 0: task 1/1 epoch 1 step 10/100: ce 1.250, 100 samples/s, 1 min 30 s left",
        "12:00:00 [1/1] a, seed 0: task 1/1 epoch 1 step 20/100: ce 1.250, 100 samples/s, 1 min 20 s left",
    ]


def test_time_left_counts_this_task_and_the_later_ones(clock: Clock) -> None:
    text, observe = shown()
    observe("a", 0, "run_started", {"n_tasks": 4, "n_classes": 8})
    observe("a", 0, "task_started", started(0))
    clock.now = 20.0
    observe("a", 0, "step", step(0, 1, 2))  # 20 s left here, then 3 tasks of 40 s
    clock.now = 60.0
    observe("a", 0, "evaluated", evaluated(0, 4))  # 3 tasks of 60 s
    observe("a", 0, "task_started", started(1))
    clock.now = 80.0
    observe("a", 0, "step", step(1, 1, 4))  # 60 s left here, then 2 tasks of 60 s
    left = [line.rsplit(", ", 1)[1] for line in text.getvalue().splitlines() if "left" in line]
    assert left == ["2 min 20 s left", "3 min 00 s left", "3 min 00 s left"]


def test_a_method_that_waits_for_the_last_task_has_only_that_left(clock: Clock) -> None:
    text, observe = shown()
    observe("joint", 0, "run_started", {"n_tasks": 5, "n_classes": 10})
    observe("joint", 0, "task_started", started(4))
    clock.now = 10.0
    observe("joint", 0, "step", step(4, 1, 2))
    assert text.getvalue().splitlines()[-1].endswith(", 10 s left")


def test_forecasts_are_lines_that_stay_and_a_refusal_is_said_once(clock: Clock) -> None:
    accuracy = {"now": 1.0, "predicted": 0.5, "real": 0.6}
    made = {"status": "forecast", "accuracy": accuracy, "n_old": 8, "flips": {"predicted": 4, "real": 3, "both": 3}}
    refused = {"status": "refused", "reason": "nothing trains"}
    for terminal in (False, True):
        text, observe = shown(2, terminal=terminal)
        with observe:
            observe("a", 0, "run_started", {"n_tasks": 3, "n_classes": 4})
            observe("a", 0, "forecast", {"task": 1, **made})
            observe("a", 0, "forecast_checked", {"task": 1, **made})
            observe("a", 0, "forecast", {"task": 2, **refused})
            for seed in (1, 2):
                observe("b", seed, "run_started", {"n_tasks": 3, "n_classes": 4})
                observe("b", seed, "forecast", {"task": 1, **refused})
                observe("b", seed, "forecast", {"task": 2, **refused})
        lines = [line for line in text.getvalue().splitlines() if "before task" in line or "after task" in line]
        assert [line.split("seed ")[1] for line in lines] == [
            "0: before task 2/3: forecast: old accuracy 100.0 % now, 50.0 % after it; 4 of 8 samples will be lost",
            "0: after task 2/3: came true: old accuracy 60.0 %, 50.0 % predicted; samples lost: 3, 4 predicted, 3 both",
            "0: before task 3/3: no forecast: nothing trains",
            "1: before task 2/3: no forecast: nothing trains",
            "2: before task 2/3: no forecast: nothing trains",
        ]


def test_a_failure_before_anything_started_is_shown() -> None:
    text, observe = shown(2)
    observe("a", 0, "failed", {"error": "no transform"})
    observe("a", 1, "run_started", {"n_tasks": 1, "n_classes": 1})
    observe("a", 1, "failed", {"error": "again"})
    assert [line.split(" ", 1)[1] for line in text.getvalue().splitlines()] == [
        "[1/2] a, seed 0: failed: no transform",
        "[2/2] a, seed 1: failed: again",
    ]


def test_a_terminal_gets_one_live_line_per_run() -> None:
    text, observe = shown(2, terminal=True)
    with observe:
        for seed in (0, 1):
            observe("LoRA [r=8]", seed, "run_started", {"n_tasks": 1, "n_classes": 2})
            observe("LoRA [r=8]", seed, "task_started", started(0))
            observe("LoRA [r=8]", seed, "step", step(0, 1, 2))
            observe("LoRA [r=8]", seed, "evaluated", evaluated(0, 1))
            observe("LoRA [r=8]", seed, "run_finished", {"seconds": 1.0})
    last = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text.getvalue()).replace("\r", "\n").split("\n")
    assert [line.split("  ")[0] for line in last if "LoRA [r=8], seed" in line][-2:]
    assert any("[1/2] LoRA [r=8], seed 0" in line for line in last)
    assert any("[2/2] LoRA [r=8], seed 1" in line and "finished in 1 s" in line for line in last)


def test_a_tracker_that_fails_is_said(clock: Clock) -> None:
    text, observe = shown()
    with observe:
        observe("ncm", 0, "run_started", {"n_tasks": 1, "n_classes": 2})
        observe("ncm", 0, "tracker_failed", {"tracker": "mlflow", "error": "OSError: [Errno 28] No space left"})
    line = (
        "12:00:00 [1/1] ncm, seed 0: the tracker mlflow hears no more of this run, which goes on: OSError: [Errno 28]"
    )
    assert line in text.getvalue()

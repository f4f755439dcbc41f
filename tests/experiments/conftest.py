"""A small run that trackers observe, and what its record says that they have to show."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from tangentcl.experiments.config import experiment_from
from tangentcl.experiments.run import Observe, Outcome, ignore, run_experiment
from tangentcl.records import Record

TIMES = {"t", "seconds", "samples_per_s", "cost", "peak_memory_bytes"}
Curve = list[tuple[int, float]]


@pytest.fixture
def tracked_run(pixel_experiments: None) -> Callable[..., Outcome]:
    """A function that learns five tasks of two digits with a head, with forecasts, and gives the outcome."""

    def run(out: Path, tracker: Any = False, *, observe: Observe = ignore, **changes: Any) -> Outcome:
        what = experiment_from(
            {
                "name": "watched",
                "stream": {"n_tasks": 5, "train_per_class": 6, "test_per_class": 4},
                "plan": {"epochs": 2, "batch_size": 4, "log_every": 2, "device": "cpu"},
                "forecast": {"samples": 8},
                "method": {"name": "finetune", "label": "a head", "tune": "head", "logits": "current"},
                "tracker": tracker,
                **changes,
            }
        )
        return run_experiment(what, out, observe=observe)[0]

    return run


@pytest.fixture
def curves_of() -> Callable[[Record], dict[str, Curve]]:
    """A function that reads from ``events.jsonl`` which points the curves of a run have to hold."""

    def curves(record: Record) -> dict[str, Curve]:
        found: dict[str, Curve] = {}
        task = before = 0
        for event in record.events:
            kind, task = event["event"], event.get("task", task)
            rest = {k: v for k, v in event.items() if k not in ("t", "event", "task", "step", "n_steps")}
            values: dict[str, Any] = {}
            if kind == "step":
                values = {f"loss/{term}": value for term, value in rest.pop("terms").items()}
            if kind == "evaluated":
                known = [value for value in rest["accuracy"] if value is not None]
                values = {f"accuracy/task-00{k}": value for k, value in enumerate(known)}
                values["accuracy/mean_of_tasks"] = sum(known) / len(known)
            for key, value in rest.items():
                inner = value.items() if isinstance(value, dict) else [(None, value)]
                values |= {f"{kind}/{key}/{name}" if name else f"{kind}/{key}": v for name, v in inner}
            at = before + event["step"] if kind == "step" else task
            before += event["steps"] if kind == "task_trained" else 0
            for name, value in values.items():
                if type(value) in (int, float):
                    found.setdefault(name, []).append((at, float(value)))
        assert len(found["loss/cross_entropy"]) == 5 * 3
        assert found["accuracy/task-000"][-1][0] == 4
        assert len(found["forecast_checked/accuracy/real"]) == 4
        return found

    return curves


@pytest.fixture
def same_record() -> Callable[[Path, Path], None]:
    """A function that checks that two records hold the same run, but for the times it took."""

    def without_times(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: without_times(item) for key, item in value.items() if key not in TIMES}
        return [without_times(item) for item in value] if isinstance(value, list) else value

    def compare(one: Path, other: Path) -> None:
        for name in ("accuracy.json", "config.toml"):
            assert (one / name).read_bytes() == (other / name).read_bytes()
        events = [
            [without_times(json.loads(line)) for line in (folder / "events.jsonl").read_text().splitlines()]
            for folder in (one, other)
        ]
        assert events[0] == events[1]
        assert {path.name for path in one.iterdir()} == {path.name for path in other.iterdir()}
        learners = [load_file(folder / "checkpoints/learner.safetensors") for folder in (one, other)]
        assert learners[0].keys() == learners[1].keys()
        assert all(np.array_equal(learners[0][key], learners[1][key]) for key in learners[0])

    return compare


@pytest.fixture
def no_draws() -> Callable[[Callable[[], Any]], None]:
    """A function that checks that a call draws nothing from the global random generators."""

    def states() -> list[bytes]:
        numpy_state = np.random.get_state(legacy=False)
        assert isinstance(numpy_state, dict)
        return [
            repr(random.getstate()).encode(),
            repr((numpy_state["state"]["pos"], numpy_state["state"]["key"].tolist())).encode(),
            bytes(torch.get_rng_state().tolist()),
        ]

    def check(act: Callable[[], Any]) -> None:
        before = states()
        act()
        assert states() == before

    return check

"""States of a run: which one is taken, what they refuse, and stops that wait for the end of a step."""

from __future__ import annotations

import dataclasses
import random
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tangentcl.data import TaskStream
from tangentcl.errors import ConfigError, ModelError, RecordError
from tangentcl.files import Damaged
from tangentcl.methods import Finetune, Method
from tangentcl.nn import Backbone
from tangentcl.training import (
    Checkpoints,
    Forecasting,
    ForecastOptions,
    TheoryOptions,
    TheoryReport,
    TrainingPlan,
    run_stream,
)
from tangentcl.training.state_file import generators, read_state, set_generators, write_state

PLAN = TrainingPlan(epochs=2, batch_size=8, lr=0.01, device="cpu", seed=3, log_every=3)


@pytest.fixture
def build(tiny_backbone: Callable[[], Backbone]) -> Callable[[], Method]:
    def make() -> Method:
        torch.manual_seed(0)
        return Finetune(tiny_backbone(), rank=2, dropout=0.2, logits="current")

    return make


def run(
    build: Callable[[], Method], stream: TaskStream, folder: Path, plan: TrainingPlan = PLAN, **keywords: Any
) -> Any:
    events: list[tuple[str, dict[str, Any]]] = []

    def emit(event: str, fields: dict[str, Any]) -> None:
        events.append((event, fields))
        keywords.get("observe", lambda *_: None)(event, fields)

    checkpoints = Checkpoints(folder, every=keywords.get("every", 1))
    try:
        return run_stream(build(), stream, plan, emit=emit, checkpoints=checkpoints), events
    except KeyboardInterrupt as stop:
        return stop, events


def stop_at(event: str, count: int, how: Callable[[], None]) -> Callable[..., None]:
    """Do something when an event comes for the count-th time."""
    left = [count]

    def observe(name: str, _: dict[str, Any]) -> None:
        left[0] -= name == event
        if name == event and left[0] == 0:
            how()

    return observe


def interrupt() -> None:
    signal.raise_signal(signal.SIGINT)


def test_ctrl_c_waits_for_the_step_keeps_its_state_and_goes_on_there(build, tiny_stream, tmp_path) -> None:
    expected, _ = run(build, tiny_stream, tmp_path / "straight", every=0)
    before = signal.getsignal(signal.SIGINT)
    stopped, events = run(build, tiny_stream, tmp_path / "a", every=0, observe=stop_at("step", 6, interrupt))
    assert isinstance(stopped, KeyboardInterrupt)
    assert str(stopped) == f"stopped after step {events[-1][1]['step']} of task 1"
    assert signal.getsignal(signal.SIGINT) is before
    result, events = run(build, tiny_stream, tmp_path / "a", every=0)
    assert events[0] == ("resumed", {"n_tasks": 3, "task": 1, "step": 6, "notes": []})
    assert [event for event, _ in events].count("task_started") == 1
    np.testing.assert_array_equal(result.matrix, expected.matrix)


def test_sigterm_is_heard_like_ctrl_c_and_between_steps_at_once(build, tiny_stream, tmp_path) -> None:
    term = stop_at("evaluated", 2, lambda: signal.raise_signal(signal.SIGTERM))
    stopped, events = run(build, tiny_stream, tmp_path, observe=term)
    assert str(stopped) == "stopped by SIGTERM"
    _, events = run(build, tiny_stream, tmp_path)
    assert (events[0][1]["task"], events[0][1]["step"]) == (1, 9)  # a step and the evaluation were lost


def test_a_second_ctrl_c_does_not_wait(build, tiny_stream, tmp_path) -> None:
    def twice() -> None:
        interrupt()
        interrupt()

    stopped, _ = run(build, tiny_stream, tmp_path, every=0, observe=stop_at("step", 1, twice))
    assert str(stopped) == "stopped by SIGINT"
    assert not list(tmp_path.iterdir())


def test_the_last_two_states_stay_and_a_finished_run_is_not_repeated(build, tiny_stream, tmp_path) -> None:
    names: list[list[str]] = []
    run(build, tiny_stream, tmp_path, observe=lambda *_: names.append(sorted(p.name for p in tmp_path.iterdir())))
    assert max(sum("step" in name for name in found) for found in names) == 2
    kept = sorted(p.name for p in tmp_path.iterdir())
    assert kept == ["state-001.safetensors", "state-002.safetensors"]
    result, events = run(build, tiny_stream, tmp_path)
    assert [event for event, _ in events] == ["resumed", "run_finished"]
    assert not np.isnan(result.matrix[-1]).any()


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "delete"])
def test_a_damaged_state_is_passed_over_for_the_one_before(build, tiny_stream, tmp_path, damage) -> None:
    expected, _ = run(build, tiny_stream, tmp_path / "straight")
    folder = tmp_path / "stopped"
    run(build, tiny_stream, folder, observe=stop_at("step", 6, interrupt))
    newest = folder / "state-001-step-000006.safetensors"
    content = newest.read_bytes()
    if damage == "delete":
        newest.unlink()
    else:
        flipped = bytearray(content)
        flipped[len(content) * 2 // 3] ^= 4
        newest.write_bytes({"flip": bytes(flipped), "cut": content[:-9], "empty": b""}[damage])
    result, events = run(build, tiny_stream, folder)
    assert events[0][1]["step"] == 5
    assert bool(events[0][1]["notes"]) == (damage != "delete")
    np.testing.assert_array_equal(result.matrix, expected.matrix)


def test_without_the_end_of_the_task_before_a_step_is_of_no_use(build, tiny_stream, tmp_path) -> None:
    run(build, tiny_stream, tmp_path, observe=stop_at("step", 10, interrupt))
    assert {p.name for p in tmp_path.glob("state-00?.safetensors")} == {
        "state-000.safetensors",
        "state-001.safetensors",
    }
    (tmp_path / "state-001.safetensors").write_bytes(b"x")
    _, events = run(build, tiny_stream, tmp_path)
    assert (events[0][1]["task"], events[0][1]["step"]) == (1, 0)
    assert "state-001.safetensors cannot be used" in events[0][1]["notes"][0]


def test_nothing_but_damaged_states_is_no_fresh_start(build, tiny_stream, tmp_path) -> None:
    run(build, tiny_stream, tmp_path, observe=stop_at("step", 2, interrupt))
    for path in tmp_path.iterdir():
        path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(RecordError, match=r"no state of the run .* can be used: .*--overwrite"):
        run(build, tiny_stream, tmp_path)
    Checkpoints(tmp_path).clear()
    assert not tmp_path.exists()


def test_another_plan_stream_or_method_is_refused_with_what_differs(
    build, tiny_stream, tiny_backbone, tmp_path
) -> None:
    run(build, tiny_stream, tmp_path, observe=stop_at("evaluated", 1, interrupt))
    with pytest.raises(ConfigError, match=r"plan was .*'lr': 0.01.* is .*'lr': 0.02"):
        run(build, tiny_stream, tmp_path, dataclasses.replace(PLAN, lr=0.02))
    shorter = dataclasses.replace(tiny_stream, tasks=tiny_stream.tasks[:2])
    with pytest.raises(ConfigError, match="training samples was"):
        run(build, shorter, tmp_path)
    with pytest.raises(ModelError, match="has shape"):
        run(lambda: Finetune(tiny_backbone(), rank=3, logits="current"), tiny_stream, tmp_path)


@pytest.mark.parametrize("every", [-1, 2.5, True])
def test_a_number_of_steps_that_is_none(every) -> None:
    with pytest.raises(ConfigError, match="every so many steps"):
        Checkpoints("x", every=every)


def test_watchers_go_on_with_what_they_know_of_earlier_tasks(build, tiny_stream, tmp_path, run_with_stops) -> None:
    made: dict[str, list[Any]] = {"straight": [], "stopped": []}
    still = tiny_stream.with_transforms(tiny_stream[0].test.transform, tiny_stream[0].test.transform)

    def watchers(name: str) -> Any:
        return lambda: (
            TheoryReport(TheoryOptions(samples=20), report=lambda found: made[name].append(found)),
            Forecasting(ForecastOptions(samples=20), report=lambda found: made[name].append(found)),
        )

    run_with_stops(build, still, PLAN, tmp_path / "straight", watchers=watchers("straight"))
    run_with_stops(build, still, PLAN, tmp_path / "x", stops=[12, 1, 9], every=3, watchers=watchers("stopped"))

    def last(name: str, kind: str) -> Any:
        return [found for found in made[name] if type(found).__name__ == kind and found.task.index == 2][-1]

    a, b = (last(name, "StageForecast") for name in made)
    assert torch.equal(a.forecast.drift, b.forecast.drift)
    assert a.error_so_far == b.error_so_far is not None
    a, b = (last(name, "StageTheory") for name in made)
    assert a.before["past"] == b.before["past"]
    assert len(a.before["past"]) == 2
    assert a.after["past"] == b.after["past"]


def test_a_state_survives_as_it_was(tmp_path) -> None:
    tree = {
        "numbers": (1, 0.1 + 0.2, float("inf"), True, None, "größer"),
        3: [torch.arange(4, dtype=torch.int16).view(2, 2).T, torch.zeros(0), torch.tensor(1.5, dtype=torch.bfloat16)],
        "empty": {},
    }
    write_state(tmp_path / "below" / "state", tree)
    found = read_state(tmp_path / "below" / "state")
    assert found["numbers"] == tree["numbers"]
    assert found["empty"] == {}
    assert list(found) == list(tree)
    for mine, other in zip(found[3], tree[3], strict=True):
        assert (mine.dtype, mine.stride()) == (other.dtype, other.stride())
        assert torch.equal(mine, other)
    with pytest.raises(ModelError, match="a set cannot be kept"):
        write_state(tmp_path / "state", {"x": {1}})
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(RecordError, match="cannot be written"):
        write_state(tmp_path / "file" / "state", {})
    with pytest.raises(Damaged):
        read_state(tmp_path / "file")


def test_every_global_generator_is_set_back() -> None:
    device = torch.device("cpu")
    state = generators(device)
    before = torch.rand(3).tolist(), np.random.rand(3).tolist(), random.random()
    np.random.randn(1)  # a spare normal number is part of the state
    set_generators(state, device)
    assert (torch.rand(3).tolist(), np.random.rand(3).tolist(), random.random()) == before


def test_what_was_read_is_let_go_of_and_a_failure_on_the_way_back_is_heard(build, tiny_stream, tmp_path) -> None:
    run(build, tiny_stream, tmp_path, observe=stop_at("step", 6, interrupt))
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.exist
    assert checkpoints.found() is checkpoints.found() is not None

    class Breaks:
        def before(self, stage: Any) -> None:
            assert checkpoints.replaying
            raise ConfigError("broken")

        def after(self, stage: Any) -> None: ...

    with pytest.raises(ConfigError, match="broken"):
        run_stream(build(), tiny_stream, PLAN, checkpoints=checkpoints, watchers=[Breaks()])
    assert not checkpoints.replaying
    assert checkpoints._state is None

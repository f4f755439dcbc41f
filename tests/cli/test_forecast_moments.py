"""``tangentcl forecast --from-moments`` prints the forecast from the record's moments, and looks at no old sample."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tangentcl import forecast_forgetting
from tangentcl.experiments.rebuild import rebuild
from tangentcl.forecast import forecast_from_moments
from tangentcl.records import Record
from tangentcl.training.moments import load_moments
from tangentcl.training.recipe import recipe
from tangentcl.training.stage import begin

Answer = Callable[..., tuple[int, str, str]]

EXPERIMENT = """
name = "small"
save = "tasks"
[stream]
kind = "class_incremental"
n_tasks = 5
train_per_class = 8
test_per_class = 6
[transform]
augment = false
[plan]
epochs = 2
batch_size = 8
optimizer = "sgd"
lr = 0.05
device = "cpu"
[[method]]
name = "finetune"
label = "head"
tune = "head"
[[method]]
name = "finetune"
label = "full"
tune = "full"
"""
HEAD, FULL = (f"runs/small/{label}/seed-0" for label in ("head", "full"))


@pytest.fixture
def ran(here: Path, answer: Answer) -> Path:
    """A folder with the records of both methods."""
    (here / "small.toml").write_text(EXPERIMENT)
    assert answer("run", "small.toml", "--no-report")[0] == 0
    return here


def asked(answer: Answer, *arguments: str) -> dict[str, Any]:
    code, out, err = answer("forecast", *arguments, "--from-moments", "--json")
    assert code == 0, err
    found: dict[str, Any] = json.loads(out)
    return found


def test_the_drift_of_a_head_is_that_of_the_old_data(ran: Path, answer: Answer) -> None:
    found = asked(answer, HEAD, "--task", "2")
    made = rebuild(Record.read(ran / HEAD))
    learner, task = made.restore(2), made.stream[2]
    begin(learner, task, made.plan.seed)
    dynamics = recipe(made.plan, len(task.train), 2)
    assert found["exact"]
    assert found["layers"] is None
    assert found["made"] == ["made now, from the moments of 2 tasks and the learner in the record"]
    drifts = [forecast_forgetting(learner, one.train_eval, task, dynamics).drift for one in made.stream.tasks[:2]]
    for row, drift in zip(found["tasks"], drifts):
        assert row["drift_rms"] == pytest.approx(float(drift.square().mean().sqrt()), rel=1e-5)
    other = asked(answer, HEAD, "--task", "2", "--lr", "0.0005")
    assert other["recipe"]["lr"] == 0.0005
    assert other["drift_rms"] < 0.1 * found["drift_rms"]
    clipped = asked(answer, HEAD, "--task", "2", "--set", "plan.clip_norm=1.0")
    assert (clipped["exact"], "are clipped" in clipped["notes"][0]) == (False, True)


def test_what_else_trains_is_an_estimate_with_layers(ran: Path, answer: Answer) -> None:
    found = asked(answer, FULL, "--task", "2")
    made = rebuild(Record.read(ran / FULL))
    learner, task = made.restore(2), made.stream[2]
    begin(learner, task, made.plan.seed)
    wanted = forecast_from_moments(
        load_moments(ran / FULL, [0, 1]), learner, task, recipe(made.plan, len(task.train), 2)
    ).to_dict()
    assert wanted["exact"] is False
    assert len(wanted["layers"]["layers"]) == 1
    assert {key: found[key] for key in wanted} == wanted
    code, out, _ = answer("forecast", FULL, "--task", "2", "--from-moments")
    assert code == 0
    assert "small, full, seed 0: before task 2 (T3, number 3 of 5), without old data\nrecipe: sgd, 4 steps" in out
    for part in ("drift of old outputs: ", "by the head alone", "by task", "vulnerable modes: ", "adapted layers"):
        assert part in out
    assert f"how far to believe it: {wanted['trust']['sentence']}" in " ".join(out.split())
    assert "how far old ones move is told from the new samples" in " ".join(out.split())
    assert max(map(len, out.splitlines())) <= 100


def test_replaying_gives_the_same(ran: Path, answer: Answer) -> None:
    stored, again = (asked(answer, FULL, "--task", "1", *more) for more in ((), ("--replay",)))
    for one in (stored, again):
        del one["cost"], one["made"]
    assert stored == again


def test_what_does_not_go_together_or_is_missing_is_one_line(ran: Path, answer: Answer) -> None:
    for arguments, message in (
        (["--old", "a.csv", "--new", "b.csv"], "--from-moments goes with --task only"),
        (["--task", "2", "--samples", "9"], "--samples does not go with --from-moments"),
        (["--task", "2", "--html", "page.html"], "--html does not go with --from-moments"),
        (["--task", "2", "--save", "here"], "--save does not go with --from-moments"),
        (["--task", "0"], "--task 0 is the first task"),
    ):
        code, out, err = answer("forecast", HEAD, *arguments, "--from-moments")
        assert (code, out, message in err) == (2, "", True)
    (ran / HEAD / "moments" / "task-001.safetensors").unlink()
    code, out, err = answer("forecast", HEAD, "--task", "2", "--from-moments")
    assert (code, out) == (2, "")
    assert "task-001.safetensors" in err
    assert err.count("\n") == 1

"""``tangentcl plan``: the table, the recipe to paste, exit codes, and that a pasted recipe does what was said."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from tangentcl.documents import tomllib
from tangentcl.records import Record

Answer = Callable[..., tuple[int, str, str]]
FIXED = ("--set", "transform.augment=false", "plan.lr=0.02", "plan.epochs=3", "stream.train_per_class=12")


def planned(answer: Answer, *arguments: str) -> tuple[int, dict[str, Any]]:
    code, out, err = answer("plan", "small.toml", "--task", "1", *FIXED, *arguments, "--json")
    assert out, err
    return code, json.loads(out)


def test_a_pasted_recipe_gives_the_accuracies_that_were_forecast(here: Path, answer: Answer) -> None:
    """For the first two tasks the recipe is pasted for the second alone, as a plan of its own."""
    code, found = planned(answer, "--max-forgetting", "1", "--lr", "0.02", "0.1", "--epochs", "3")
    assert code == 0
    assert [row["settings"] for row in found["rows"]] == [
        {"plan.lr": 0.02, "plan.epochs": 3},
        {"plan.lr": 0.1, "plan.epochs": 3},
    ]
    first = found["rows"][0]  # the experiment's own recipe: a run shows what it does
    assert first["trust"] == "exact"
    document = tomllib.loads((here / "small.toml").read_text())
    document |= {"transform": {"augment": False}, "name": "real"}
    document["stream"]["train_per_class"] = 12
    document["plan"] |= {"lr": 0.02, "epochs": 3}
    (here / "real.toml").write_text(tomli_w.dumps(document))
    assert answer("run", "real.toml", "--no-report")[0] == 0
    matrix = Record.read(here / "runs/real/head-all/seed-0").accuracy
    assert matrix is not None
    assert first["old_now"] == pytest.approx(matrix.matrix[0][0])
    assert first["old_after"] == pytest.approx(matrix.matrix[1][0])
    assert first["new_after"] == pytest.approx(matrix.matrix[1][1])


def test_what_is_printed(here: Path, answer: Answer) -> None:
    code, out, err = answer(
        "plan", "small.toml", "--task", "1", *FIXED, "--lr", "0.1", "--max-forgetting", "1", "--svg", "curve.svg"
    )
    assert code == 0
    assert out.startswith("small, head, all, seed 0: before task 1 (T2), 3 recipes, 8 old and 8 new test samples\n")
    assert "chosen: plan.lr 0.1, plan.epochs" in out
    assert "note: test samples decided" in out
    recipe = tomllib.loads(out.split("# for the experiment file\n")[1].split("figure: ")[0])
    assert recipe["plan"]["lr"] == 0.1
    assert recipe["method"] == [{"name": "finetune", "label": "head, all", "tune": "head"}]
    assert (here / "curve.svg").read_text().startswith("<svg")
    assert "training task 0" in err
    assert "forecast 3 of 3" in err
    place = ("--svg", "nowhere/curve.svg")
    code, out, err = answer("plan", "small.toml", "--task", "1", *FIXED, "--lr", "0.1", "--max-forgetting", "1", *place)
    assert (code, out) == (2, "")
    assert err.splitlines()[-1].endswith("cannot write nowhere/curve.svg: No such file or directory")


def test_nothing_meets_the_demands(here: Path, answer: Answer) -> None:
    code, out, _ = answer("plan", "small.toml", "--task", "1", *FIXED, "--lr", "1", "--max-forgetting", "0")
    assert code == 1
    assert "none of the 3 recipes forgets at most 0.0 points" in out
    assert "closest: plan.lr 1" in out
    assert "# the closest, for the experiment file" in out


def test_settings_of_the_method_get_learners_of_their_own(here: Path, answer: Answer) -> None:
    _, found = planned(answer, "--lr", "0.02", "--epochs", "3", "--logits", "all", "current")
    first, second = found["rows"]
    assert [first["settings"]["method.logits"], second["settings"]["method.logits"]] == ["all", "current"]
    assert first["old_now"] == second["old_now"]  # one task alone: both losses are over its classes
    assert first["old_after"] < second["old_after"]  # old rows of the head stand still


def test_any_other_setting_can_be_varied(here: Path, answer: Answer) -> None:
    _, found = planned(answer, "--lr", "0.02", "--epochs", "3", "--vary", "plan.batch_size=4,8", "plan.optimizer=sgd")
    settings = [(row["settings"]["plan.batch_size"], row["settings"]["plan.optimizer"]) for row in found["rows"]]
    assert settings == [(4, "sgd"), (8, "sgd")]
    assert found["rows"][0]["new_after"] != found["rows"][1]["new_after"]


@pytest.mark.parametrize("save", ["tasks", "true"])
def test_a_run_lends_its_learner(here: Path, answer: Answer, save: str) -> None:
    assert answer("run", "small.toml", "--no-report", *FIXED, f"save={save}")[0] == 0
    run = "runs/small/head-all/seed-0"
    code, out, err = answer(
        "plan", run, "--task", "1", "--lr", "0.02", "--epochs", "3", "--json", "--max-forgetting", "1"
    )
    assert code == 0
    assert ("training task 0" in err) == (save == "true")  # then the learner before the task was not stored
    from_run = json.loads(out)["rows"][0]
    _, found = planned(answer, "--lr", "0.02", "--epochs", "3")
    for key in ("old_now", "old_after", "new_after"):
        assert from_run[key] == found["rows"][0][key]
    code, _, err = answer("plan", run, "--task", "1", "--seed", "3")
    assert (code, "--seed is for an experiment file" in err) == (2, True)


SPECTRAL = """
[[method]]
name = "spectral"
label = "held head"
tune = "head"
strength = 0.5
"""


@pytest.fixture
def held(here: Path) -> Path:
    """The small experiment with a method that adds a penalty."""
    (here / "small.toml").write_text((here / "small.toml").read_text() + SPECTRAL)
    return here


def test_a_strength_is_one_of_the_coming_task(held: Path, answer: Answer) -> None:
    """The tasks before are trained once, with the experiment's own."""
    arguments = ("--method", "spectral", "--strength", "0", "0.1", "10", "--epochs", "30", "--max-forgetting", "1")
    code, out, err = answer("plan", "small.toml", "--task", "2", *FIXED, *arguments, "--json")
    assert code == 0
    assert [err.count(f"training task {t}, one of the 2 before") for t in (0, 1)] == [1, 1]
    found = json.loads(out)
    rows = found["rows"]
    assert [row["settings"] for row in rows] == [
        {"method.strength": strength, "plan.lr": 0.02, "plan.epochs": 30} for strength in (0.0, 0.1, 10.0)
    ]
    assert len({row["old_now"] for row in rows}) == 1
    assert rows[0]["forgetting"] > rows[2]["forgetting"]
    assert any(note.startswith("method.strength is of task 2 alone") for note in found["notes"])
    recipe = tomllib.loads(found["recipe"])
    assert recipe["method"][0]["strength"] == rows[found["chosen"]]["settings"]["method.strength"]
    assert found["outcome"] is None


def test_strengths_are_tried_by_default(held: Path, answer: Answer) -> None:
    _, found = planned(answer, "--method", "held-head", "--epochs", "2")
    strengths = [row["settings"]["method.strength"] for row in found["rows"]]
    assert strengths == [0.0, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0]
    _, found = planned(answer, "--method", "held-head", "--epochs", "2", "--lr", "0.01", "0.02", "--strength", "0.1")
    assert [row["settings"]["plan.lr"] for row in found["rows"]] == [0.01, 0.02]


@pytest.mark.parametrize("strength", ["0.05", "2"])
def test_the_chosen_recipe_is_trained(held: Path, answer: Answer, strength: str) -> None:
    arguments = ("--method", "spectral", "--strength", strength, "--lr", "0.02", "--epochs", "3", "--train")
    code, out, err = answer("plan", "small.toml", "--task", "2", *FIXED, *arguments, "--max-forgetting", "1", "--json")
    assert code == 0
    assert err.count("training task 0") == err.count("training task 1") == 1
    found = json.loads(out)
    (said,), (real,) = found["rows"], found["outcome"]["measured"]
    assert real["split"] == "test"
    assert found["outcome"]["within"] is True
    for key in ("old_now", "old_after", "new_after"):
        assert real[key] == pytest.approx(said[key])
    code, out, _ = answer("plan", "small.toml", "--task", "2", *FIXED, *arguments, "--max-forgetting", "-1")
    assert code == 1
    assert "trained, test" not in out  # nothing was chosen


def test_training_gives_what_a_run_has(held: Path, answer: Answer) -> None:
    """For task 1 a pasted strength is no other for the tasks before: their penalty is zero."""
    arguments = ("--method", "spectral", "--strength", "2", "--lr", "0.02", "--epochs", "3", "--train")
    _, found = planned(answer, *arguments, "--max-forgetting", "1")
    (real,) = found["outcome"]["measured"]
    document = tomllib.loads((held / "small.toml").read_text())
    document |= {"transform": {"augment": False}, "name": "real", **tomllib.loads(found["recipe"])}
    document["stream"]["train_per_class"] = 12
    (held / "real.toml").write_text(tomli_w.dumps(document))
    assert answer("run", "real.toml", "--no-report")[0] == 0
    matrix = Record.read(held / "runs/real/held-head/seed-0").accuracy
    assert matrix is not None
    assert real["old_now"] == pytest.approx(matrix.matrix[0][0])
    assert real["old_after"] == pytest.approx(matrix.matrix[1][0])
    assert real["new_after"] == pytest.approx(matrix.matrix[1][1])


def test_a_folder_gets_the_plan_and_a_page(held: Path, answer: Answer) -> None:
    fixed = (*FIXED, "stream.validation=0.5", "--lr", "0.02", "--epochs", "3", "--max-forgetting", "1", "--train")
    code, out, _ = answer("plan", "small.toml", "--task", "1", *fixed, "--out", "made", "--svg", "curve.svg")
    assert code == 0
    assert "page: made/plan.html" in out
    assert [line.split()[:2] for line in out.splitlines() if line.startswith(("forecast,", "trained,"))] == [
        ["forecast,", "validation"],
        ["trained,", "validation"],
        ["trained,", "test"],
    ]
    plan = json.loads((held / "made/plan.json").read_text())
    assert [measured["split"] for measured in plan["outcome"]["measured"]] == ["validation", "test"]
    html = (held / "made/plan.html").read_text()
    assert "Forecast and result" in html
    assert "within the tolerance" in html
    assert "trained, test" in (held / "curve.svg").read_text()


def test_a_run_lends_its_learner_for_training_too(held: Path, answer: Answer) -> None:
    assert answer("run", "small.toml", "--no-report", *FIXED, "save=tasks")[0] == 0
    arguments = ("--strength", "2", "--lr", "0.02", "--epochs", "3", "--train", "--max-forgetting", "1", "--json")
    code, out, err = answer("plan", "runs/small/held-head/seed-0", "--task", "2", *arguments)
    assert code == 0
    assert "training task 0" not in err
    found = json.loads(out)
    assert found["outcome"]["measured"][0]["old_after"] == pytest.approx(found["rows"][0]["old_after"])


def test_confidence_keeps_a_margin(here: Path, answer: Answer) -> None:
    margins = []
    for confidence in ("0", "0.9"):
        _, found = planned(answer, "--lr", "0.02", "--epochs", "3", "--confidence", confidence)
        margins.append(found["rows"][0]["old_margin"])
    assert margins[0] == 0.0
    assert margins[1] > 0.0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--task", "0"], "--task must be from 1 to 4"),
        (["--task", "1", "--method", "haed-all"], "Did you mean 'head-all'?"),
        (["--task", "1", "--on", "validation"], "has no validation samples. Try --on test"),
        (["--task", "1", "--max-forgetting", "3"], "share of old samples from 0 to 1, got 3.0"),
        (["--task", "1", "--set", "stream.kind=task_incremental"], "task-incremental"),
        (["--task", "1", "--method", "ncm"], "train"),
        (["--task", "1", "--vary", "stream.n_tasks=2,3"], "--vary expects plan.KEY=V,V or method.KEY=V,V"),
        (["--task", "1", "--vary", "plan.batch_sise=2"], "Did you mean 'batch_size'?"),
        (["--task", "1", "--strength", "0.1"], "as spectral does; finetune has none"),
        (["--task", "1", "--confidence", "1"], "at least 0 and below 1, got 1.0"),
        (["--task", "1", "--optimizer", "adam"], "plan.optimizer is 'adam'"),
    ],
)
def test_mistakes_are_answered_in_one_line(here: Path, answer: Answer, arguments: list[str], words: str) -> None:
    code, out, err = answer("plan", "small.toml", *arguments)
    assert (code, out) == (2, "")
    assert words in err.splitlines()[-1]

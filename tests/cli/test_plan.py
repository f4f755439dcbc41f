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
        (["--task", "1", "--optimizer", "adam"], "plan.optimizer is 'adam'"),
    ],
)
def test_mistakes_are_answered_in_one_line(here: Path, answer: Answer, arguments: list[str], words: str) -> None:
    code, out, err = answer("plan", "small.toml", *arguments)
    assert (code, out) == (2, "")
    assert words in err.splitlines()[-1]

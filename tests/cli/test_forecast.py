"""``tangentcl forecast``: what it prints is what training does, and one clear line for what cannot be used."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save

from tangentcl.data import load
from tangentcl.experiments import load_experiment
from tangentcl.experiments.rebuild import rebuild
from tangentcl.experiments.run import run_experiment
from tangentcl.files import sealed
from tangentcl.methods.sequence_classifier import SequenceClassifier
from tangentcl.nn import Backbone
from tangentcl.nn.hf_classifier import load_classifier
from tangentcl.records import Record, read_forecasts, write_checksums
from tangentcl.training import Runtime, TrainingPlan, predicted_classes
from tangentcl.training.stream import learn_task

Answer = Callable[..., tuple[int, str, str]]

EXPERIMENT = """
name = "small"
{top}
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
lr = 0.2
device = "cpu"
[[method]]
name = "finetune"
label = "head"
tune = "head"
"""
RUN = "runs/small/head/seed-0"


@pytest.fixture
def ran(here: Path, answer: Answer) -> Callable[[str], Path]:
    """Run the experiment with a few more lines at the top; gives the record's folder."""

    def run(top: str = "") -> Path:
        (here / "small.toml").write_text(EXPERIMENT.replace("{top}", top))
        assert answer("run", "small.toml", "--no-report")[0] == 0
        return here / RUN

    return run


def asked(answer: Answer, *arguments: str) -> dict[str, Any]:
    code, out, err = answer("forecast", *arguments, "--json")
    assert code == 0, err
    found: dict[str, Any] = json.loads(out)
    return found


def digit_folder(folder: Path, digits: range, per_class: int) -> Path:
    """Some digits as an image folder."""
    table = load("digits").test
    for digit in digits:
        (folder / str(digit)).mkdir(parents=True)
        for i in np.flatnonzero(table.labels == digit)[:per_class].tolist():
            Image.fromarray(np.asarray(table.inputs[i])).save(folder / str(digit) / f"{i}.png")
    return folder


def test_a_replayed_forecast_is_what_the_run_then_had(ran: Callable[..., Path], answer: Answer) -> None:
    folder = ran()
    for task in (1, 3):
        found = asked(answer, RUN, "--task", str(task), "--replay")
        accuracy = Record.read(folder).accuracy
        assert accuracy is not None
        assert found["exact"]
        assert found["n_old"] == 12 * task
        assert found["accuracy"]["now"] == pytest.approx(accuracy.matrix[task - 1, :task].mean())
        assert found["accuracy"]["predicted"] == pytest.approx(accuracy.matrix[task, :task].mean())
        assert found["accuracy"]["real"] == pytest.approx(accuracy.matrix[task, :task].mean())
        assert [one["predicted"] for one in found["classes"]] == pytest.approx(
            [one["real"] for one in found["classes"]]
        )
        assert found["made"] == ["made now, from a learner that was trained again"]


def test_text_says_what_is_lost_and_how_far_to_believe_it(ran: Callable[..., Path], answer: Answer) -> None:
    ran()
    code, out, err = answer("forecast", RUN, "--task", "2", "--replay")
    assert code == 0
    assert "small, head, seed 0: before task 2 (T3, number 3 of 5)\nrecipe: sgd, 4 steps, lr 0.2, " in out
    for part in ("old accuracy: ", "classes that lose most", "samples most at risk", "vulnerable modes: "):
        assert part in out
    assert "how far to believe it: Exact: it equals training up to rounding." in out
    assert max(map(len, out.splitlines())) <= 100
    assert "task 2/2 (T2): 16 samples" in err
    assert "\x1b" not in out + err


def test_stored_learners_give_the_forecast_that_replaying_gives(ran: Callable[..., Path], answer: Answer) -> None:
    folder = ran('save = "tasks"')
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == [
        "learner.safetensors",
        *(f"task-00{task}" for task in range(5)),
    ]
    replayed = asked(answer, RUN, "--task", "3", "--replay")
    stored = asked(answer, RUN, "--task", "3")
    assert stored.pop("made") != replayed.pop("made")
    assert stored.pop("cost") is not replayed.pop("cost")
    assert stored == replayed
    assert answer("run", "small.toml", "--set", "save=false", "--overwrite", "--no-report")[0] == 0
    assert not list((folder / "checkpoints").glob("**/*.safetensors"))  # those of the earlier run are gone


def test_a_forecast_in_the_record_is_read_and_another_recipe_is_forecast_anew(
    ran: Callable[..., Path], answer: Answer
) -> None:
    folder = ran('save = "tasks"\nforecast = true')
    kept = Record.read(folder).forecasts[1].summary
    found = asked(answer, RUN, "--task", "2")
    assert found["made"] == ["read from the record"]
    assert {key: found[key] for key in kept} == kept
    assert found["accuracy"]["real"] is not None
    assert asked(answer, RUN, "--task", "2", "--set", "plan.lr=0.2", "--epochs", "2")["made"] == found["made"]
    for change in (["--lr", "0.0001"], ["--set", "plan.lr=0.0001"]):
        other = asked(answer, RUN, "--task", "2", *change)
        assert other["made"] == ["made now, from the learner in the record"]
        assert other["recipe"]["lr"] == 0.0001
        assert other["accuracy"]["real"] is None
        assert other["accuracy"]["predicted"] > found["accuracy"]["predicted"]
    (folder / "forecasts" / "task-002.json").write_text("{")
    code, out, err = answer("forecast", RUN, "--task", "2")
    assert (code, out, "task-002.json is damaged" in err) == (2, "", True)


def test_files_are_forecast_as_the_final_learner_would_learn_them(
    ran: Callable[..., Path], answer: Answer, here: Path
) -> None:
    folder = ran()
    old, new = digit_folder(here / "old", range(2, 6), 5), digit_folder(here / "new", range(8, 10), 9)
    (new / "9").rename(new / "blank")  # a class that the learner does not know
    found = asked(answer, RUN, "--old", "old", "--new", "new", "--html", "page.html", "--save", "kept")
    assert "1 classes are new to the model (blank); their rows are drawn as training would" in found["made"]
    assert [one["name"] for one in found["classes"]] == ["2", "3", "4", "5"]

    made = rebuild(Record.read(folder))
    method = made.restore(5)
    from tangentcl.cli.forecast_subject import _tasks
    from tangentcl.data.columns import Columns
    from tangentcl.data.labelled_file import read_labelled

    files = [read_labelled(path, Columns()) for path in (old, new)]
    transforms = (made.stream[0].train.transform, made.stream[0].test.transform)
    past, task, names = _tasks(files[0], files[1], made.stream.class_names, 5, transforms)
    assert names[10:] == ("blank",)
    labels = torch.from_numpy(past.test.labels)
    before = predicted_classes(method, past.test, made.runtime)
    learn_task(method, task, made.plan, made.runtime, lambda *event: None)
    after = predicted_classes(method, past.test, made.runtime)
    assert found["accuracy"]["now"] == pytest.approx((before == labels).double().mean().item())
    assert found["accuracy"]["predicted"] == pytest.approx((after == labels).double().mean().item())

    assert (here / "page.html").read_text().startswith("<!DOCTYPE html>")
    kept = read_forecasts(here / "kept")
    assert [forecast.task for forecast in kept] == [5]
    assert kept[0].arrays["drift"].shape == (20, 11)


def test_what_cannot_be_forecast_or_loaded_says_why(ran: Callable[..., Path], answer: Answer, here: Path) -> None:
    folder = ran('save = "tasks"')
    learner = folder / "checkpoints" / "task-001" / "learner.safetensors"
    whole = learner.read_bytes()
    tensors = load_file(learner)
    learner.write_bytes(sealed(save({key: torch.full_like(value, torch.nan) for key, value in tensors.items()})))
    assert refused(answer, RUN, "--task", "2", "are not finite")
    learner.write_bytes(whole[:50])
    assert refused(answer, RUN, "--task", "2", "learner.safetensors is damaged")
    learner.unlink()
    assert refused(answer, RUN, "--task", "2", "does not hold the learner after task 1: the run is done")
    text = (folder / "environment.json").read_text()
    for key, problem in (("sha256", "the backbone has other weights"), ("fingerprint", "the data have changed")):
        (folder / "environment.json").write_text(re.sub(rf'"{key}": "[0-9a-f]', f'"{key}": "x', text))
        write_checksums(folder)
        assert refused(answer, RUN, "--task", "1", problem)
    (folder / "environment.json").write_text(text)
    write_checksums(folder)
    (here / "none.toml").write_text(EXPERIMENT.split("[[method]]")[0].format(top="") + '[method]\nname = "ncm"\n')
    assert answer("run", "none.toml", "--no-report")[0] == 0
    assert refused(answer, "runs/small/ncm/seed-0", "--task", "2", "--replay", "NCM trains nothing by gradient steps")


def refused(answer: Answer, *arguments: str) -> bool:
    """Whether the command ends with one line that holds the last of the arguments."""
    code, out, err = answer("forecast", *arguments[:-1])
    last = err.splitlines()[-1]
    assert (code, out) == (2, "")
    assert last.startswith("tangentcl: error: ")
    assert arguments[-1] in last
    return True


def test_names_for_outputs_that_have_none(here: Path, answer: Answer, classifier_folder: Path, tmp_path: Path) -> None:
    bare = Path(shutil.copytree(classifier_folder, tmp_path / "bare"))
    config = json.loads((bare / "config.json").read_text())
    (bare / "config.json").write_text(json.dumps({**config, "id2label": {0: "LABEL_0", 1: "LABEL_1"}}))
    text_file(here / "old.csv", TEXTS)
    text_file(here / "new.csv", {"the dog sat": "place"})
    line = ["--model", str(bare), "--old", "old.csv", "--new", "new.csv", "--lr", "0.01", "--tune", "head"]
    assert refused(answer, *line, "does not name its 2 outputs. Name them in order: --class-names")
    assert refused(answer, *line, "--class-names", "animal", "--class-names needs 2 different names")
    named = asked(answer, *line, "--class-names", "animal", "place")
    same = asked(answer, "--model", str(classifier_folder), *line[2:])
    assert [one["name"] for one in named["classes"]] == ["animal", "place"]
    assert named["accuracy"] == same["accuracy"]


TEXTS = {"the cat sat": "animal", "a dog ran": "animal", "on the mat": "place", "home": "place", "a mat now": "place"}


def text_file(path: Path, texts: dict[str, str]) -> Path:
    path.write_text("text,label\n" + "".join(f"{text},{label}\n" for text, label in texts.items()))
    return path


def test_a_foreign_classifier_is_forecast_as_it_would_learn(
    here: Path, answer: Answer, classifier_folder: Path
) -> None:
    text_file(here / "old.csv", TEXTS)
    text_file(here / "new.csv", {"the dog sat": "place", "now": "time", "and now": "time"})
    common = ("--model", str(classifier_folder), "--old", "old.csv", "--new", "new.csv", "--tune", "head")
    recipe = ("--lr", "0.05", "--epochs", "3", "--batch-size", "2", "--optimizer", "sgd", "--set", "plan.device=cpu")
    found = asked(answer, *common, *recipe, "--save", "kept")
    assert found["exact"]
    drift = torch.from_numpy(read_forecasts(here / "kept")[0].arrays["drift"])

    from tangentcl.cli.forecast_subject import _tasks
    from tangentcl.data.columns import Columns
    from tangentcl.data.labelled_file import read_labelled

    classifier = load_classifier(classifier_folder)
    method = SequenceClassifier(classifier, tune="head")
    files = [read_labelled(here / name, Columns()) for name in ("old.csv", "new.csv")]
    past, task, _ = _tasks(files[0], files[1], classifier.class_names, 1, (classifier.transform, classifier.transform))
    x, _ = next(past.test.batches(10))
    before = method.predict(x).detach()
    plan = TrainingPlan(lr=0.05, epochs=3, batch_size=2, optimizer="sgd", device="cpu")
    learn_task(method, task, plan, Runtime(device="cpu"), lambda *event: None)
    real = method.predict(x).detach()[:, :2] - before
    assert float((drift[:, :2] - real).norm() / real.norm()) < 1e-4
    code, out, _ = answer("forecast", *common, *recipe)
    assert code == 0
    assert "the cat sat" in out  # texts, not ids
    assert "its last layer trains" in out
    assert "1 classes are new to the model (time)" in out


@pytest.fixture(scope="module")
def ran_once(tmp_path_factory: pytest.TempPathFactory, pixel_backbone: Callable[..., Backbone]) -> Path:
    """A folder with a finished run and some text files."""
    folder = tmp_path_factory.mktemp("ran")
    (folder / "small.toml").write_text(EXPERIMENT.replace("{top}", ""))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tangentcl.experiments.build.backbone", pixel_backbone)
        outcomes = run_experiment(load_experiment(folder / "small.toml"), folder / "runs")
    assert [outcome.status for outcome in outcomes] == ["done"]
    text_file(folder / "old.csv", TEXTS)
    text_file(folder / "odd.csv", {"the cat": "plaice"})
    text_file(folder / "empty.csv", {})
    (folder / "bare.csv").write_text("text,meaning\nthe cat,animal\n")
    return folder


MODEL = ("--model", "MODEL", "--lr", "1")
MISTAKES = [
    (["--task", "1"], "--task needs the folder of a run"),
    ([], "give --task T for a task of a run, or --old FILE --new FILE"),
    (["nowhere", "--task", "1"], "nowhere is not a folder; a record is a folder with status.json"),
    ([RUN, "--task", "0"], "--task 0 is the first task: nothing was learned before it"),
    ([RUN, "--task", "5"], "--task must be from 1 to 4, tasks are counted from 0; got 5"),
    ([RUN, "--task", "-1"], "--task must be from 1 to 4, tasks are counted from 0; got -1"),
    ([RUN, "--task", "x"], "argument --task: invalid int value: 'x'"),
    ([RUN, "--tsk", "1"], "unknown argument '--tsk'. Did you mean '--task'?"),
    ([RUN, "--task", "1", "--optimizer", "sdg"], "unknown command or value 'sdg'. Did you mean 'sgd'?"),
    ([RUN, "--task", "1"], "does not hold the learner after task 0: it was run with save = true"),
    ([RUN, "--task", "1", "--old", "old.csv"], "leave out --old, --new and --model"),
    ([RUN, "--task", "1", "--lr", "nan"], "plan.lr must be a finite number of at least 0, got nan"),
    ([RUN, "--task", "1", "--epochs", "0"], "plan.epochs must be a whole number of at least 1, got 0"),
    ([RUN, "--task", "1", "--set", "plan.lrr=1"], "[plan] does not know 'lrr'. Did you mean 'lr'?"),
    ([RUN, "--task", "1", "--set", "method.rank=4"], "a forecast changes the recipe only"),
    ([RUN, "--task", "1", "--tune", "head"], "--tune goes with --model only"),
    ([RUN, "--old", "old.csv"], "--new is missing"),
    ([RUN, "--new", "old.csv"], "--old is missing"),
    ([RUN, "--old", "old.csv", "--new", "old.csv", "--replay"], "--replay goes with --task only"),
    ([RUN, "--old", "old.csv", "--new", "old.csv"], "old.csv holds text samples, but the run's backbone bundled takes"),
    (["--old", "old.csv", "--new", "old.csv"], "give the model once: either the folder of a RUN or --model FOLDER"),
    (["--model", "m", "--old", "old.csv", "--new", "old.csv"], "give at least --lr, for example --lr 2e-5"),
    (["--model", "m", "--old", "old.csv", "--new", "old.csv", "--lr", "1"], "there is no folder m."),
    ([*MODEL, "--old", "olt.csv", "--new", "old.csv"], "Did you mean 'old.csv'?"),
    (
        [*MODEL, "--old", "bare.csv", "--new", "old.csv"],
        "has no label column with a usual name",
    ),
    (
        [*MODEL, "--old", "odd.csv", "--new", "old.csv"],
        "odd.csv has the label 'plaice', none of",
    ),
    ([*MODEL, "--old", "empty.csv", "--new", "old.csv"], "empty.csv has no sample"),
    ([*MODEL, "--old", "old.csv", "--new", "empty.csv"], "empty.csv has no sample"),
    (
        [*MODEL, "--old", "old.csv", "--new", "old.csv", "--label-column", "labell"],
        "has no column 'labell'. Did you mean 'label'?",
    ),
]


@pytest.mark.parametrize(("arguments", "message"), MISTAKES)
def test_a_mistake_is_one_line_and_exit_code_2(
    ran_once: Path,
    pixel_experiments: None,
    monkeypatch: pytest.MonkeyPatch,
    answer: Answer,
    classifier_folder: Path,
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(ran_once)
    given = [str(classifier_folder) if one == "MODEL" else one for one in arguments]
    code, out, err = answer("forecast", *given)
    assert (code, out) == (2, "")
    assert err.startswith("tangentcl: error: ")
    assert err.count("\n") == 1
    assert message in err

"""What a forecast on the command line is of: a task of a run, or files with a run's learner or a foreign model."""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rich.console import Console

from tangentcl.cli.forecast_recipe import changed_plan, recorded_plan
from tangentcl.cli.forecast_truth import with_truth
from tangentcl.data import Samples, Task, Transform
from tangentcl.data.columns import Columns
from tangentcl.data.labelled_file import LabelledFile, read_labelled
from tangentcl.errors import ConfigError, DataError, ModelError, RecordError
from tangentcl.experiments.build import build_forecast
from tangentcl.experiments.forecast_summary import task_forecast
from tangentcl.experiments.progress import RunProgress
from tangentcl.experiments.rebuild import RebuiltRun, rebuild
from tangentcl.methods import Method
from tangentcl.methods.sequence_classifier import SequenceClassifier
from tangentcl.nn.hf_classifier import HFClassifier, load_classifier
from tangentcl.records import Record, TaskForecast
from tangentcl.training import ForecastOptions, Runtime, Stage, TrainingPlan, forecast_stage
from tangentcl.training.stage import begin


@dataclass(frozen=True)
class Made:
    """A forecast with what to print around it.

    Attributes:
        title: one line.
        forecast: in the form of records.
        shown: its summary, with what the run knows of the truth.
        texts: of old samples by id; empty for images and for forecasts read from a record.
        notes: on how it was made.
    """

    title: str
    forecast: TaskForecast
    shown: Mapping[str, Any]
    texts: Mapping[str, str]
    notes: tuple[str, ...] = ()


def of_task(options: argparse.Namespace) -> Made:
    """The forecast of a task of a run: read from its record, or made where the recipe is another or none is there.

    Raises:
        RecordError, ConfigError, DataError, ModelError: what cannot be read, built or forecast, and what to do.
    """
    record = Record.read(options.record)
    place = place_of(options.task, record)
    known = recorded_plan(record)
    plan = changed_plan(options, known)
    title = f"{name_of(record)}: before task {options.task}"
    stored = next((found for found in record.forecasts if found.task == options.task), None)
    if stored is not None and plan == known and options.samples is None:
        _check_made(stored)
        return Made(f"{title} ({stored.name}, {place})", stored, stored.summary, {}, ("read from the record",))
    made = learner_before(record, options.task, replay=options.replay)
    task, past = made.stream[options.task], made.stream.tasks[: options.task]
    forecast = _forecast(
        made.method,
        past,
        task,
        plan,
        made.stream.class_names,
        limits=_limits(options, record.config.get("forecast")),
        per_task=made.stream.scenario == "task",
    )
    note = "from a learner that was trained again" if options.replay else "from the learner in the record"
    shown, doubts = with_truth(forecast.summary, record) if plan == known else (forecast.summary, ())
    texts = _texts([one.test for one in past])
    return Made(f"{title} ({task.name}, {place})", forecast, shown, texts, (f"made now, {note}", *doubts))


def learner_before(record: Record, task: int, *, replay: bool) -> RebuiltRun:
    """A run built again, with its learner as it was before a task: loaded, or trained again.

    Raises:
        RecordError, ConfigError, DataError, ModelError: what cannot be read or built, and what to do.
    """
    made = rebuild(record)
    if replay:
        with RunProgress(Console(stderr=True), 1) as progress:
            _replay(made, task, progress)
    else:
        made.restore(task)
    return made


def from_run(options: argparse.Namespace) -> Made:
    """The forecast of new samples in a file for old ones in another, from a run's final learner.

    Raises:
        RecordError, ConfigError, DataError, ModelError: what cannot be read, built or forecast.
    """
    record = Record.read(options.record)
    plan = changed_plan(options, recorded_plan(record))
    old, new = _files(options)
    made = rebuild(record)
    _check_modality(old, new, made.backbone.card.modality, f"the run's backbone {made.backbone.card.name}")
    made.restore(len(made.stream))
    transforms = (made.stream[0].train.transform, made.stream[0].test.transform)
    past, task, names = _tasks(old, new, made.stream.class_names, len(made.stream), transforms)
    title = f"{name_of(record)}: old {old.path.name}, new {new.path.name}"
    found = _of_files(_forecast(made.method, [past], task, plan, names, limits=_limits(options)), old)
    return Made(title, found, found.summary, _texts([past.test]), _new_rows(names, task))


def from_model(options: argparse.Namespace) -> Made:
    """The forecast of new samples in a file for old ones in another, for a transformers classifier in a folder.

    Raises:
        ConfigError, DataError, ModelError: what cannot be read or forecast.
    """
    plan = changed_plan(options, TrainingPlan())
    old, new = _files(options)
    _check_modality(old, new, "text", "a sequence classifier")
    classifier = _named(load_classifier(options.model), options.class_names)
    if classifier.class_names[0] == "0" and not set(old.classes) & set(classifier.class_names):
        n_outputs = len(classifier.class_names)
        raise DataError(
            f"{old.path} has labels like {old.classes[0]!r}, but {options.model} does not name its {n_outputs} "
            "outputs. Name them in order: --class-names NAME NAME ..."
        )
    method = SequenceClassifier(classifier, tune=options.tune)
    transforms = (classifier.transform, classifier.transform)
    past, task, names = _tasks(old, new, classifier.class_names, 1, transforms)
    what = {"full": "all parameters train", "head": "its last layer trains", "adapter": "its adapter trains"}
    title = f"{options.model} ({what[method.tune]}): old {old.path.name}, new {new.path.name}"
    found = _of_files(_forecast(method, [past], task, plan, names, limits=_limits(options)), old)
    return Made(title, found, found.summary, _texts([past.test]), _new_rows(names, task))


def _forecast(
    method: Method,
    past: Sequence[Task],
    task: Task,
    plan: TrainingPlan,
    class_names: Sequence[str],
    *,
    limits: ForecastOptions,
    per_task: bool = False,
) -> TaskForecast:
    """What training ``method`` on ``task`` will do to the test samples of ``past``, in the form of records."""
    runtime = Runtime(device=plan.device, precision=plan.precision)
    begin(method, task, plan.seed)
    method.to(runtime.device).eval()
    samples = method.training_samples(task)
    if samples is None:
        raise ModelError(f"{type(method).__name__} learns nothing at task {task.index}, so nothing is forgotten there.")
    stage = Stage(method, task, samples, plan, runtime)
    found = task_forecast(forecast_stage(stage, past, limits, per_task=per_task), class_names)
    _check_made(found)
    return found


def _check_made(forecast: TaskForecast) -> None:
    if forecast.summary["status"] == "refused":
        raise ModelError(f"task {forecast.task} ({forecast.name}) cannot be forecast: {forecast.summary['reason']}")


def _limits(options: argparse.Namespace, table: Any = None) -> ForecastOptions:
    """How many samples, by the option or the run's own table [forecast]."""
    limits = build_forecast(dict(table)) if isinstance(table, Mapping) else None
    if options.samples is not None:
        return build_forecast({"samples": options.samples}) or ForecastOptions()
    return limits or ForecastOptions()


def _of_files(forecast: TaskForecast, old: LabelledFile) -> TaskForecast:
    """With a note that says which samples they are."""
    note = str(forecast.summary.get("samples_note", "")).replace("test samples of past tasks", f"samples of {old.path}")
    return replace(forecast, summary={**forecast.summary, "samples_note": note})


def name_of(record: Record) -> str:
    """Experiment, method and seed."""
    return f"{record.experiment}, {record.label}, seed {record.seed}"


def place_of(task: int, record: Record) -> str:
    """Where a task stands in its stream, counted from 1 as people and reports do.

    Raises:
        ConfigError: a task that the run does not have, or the first one. RecordError: nobody knows how many it has.
    """
    described = record.environment.get("stream")
    n_tasks = described.get("n_tasks") if isinstance(described, Mapping) else None
    if not isinstance(n_tasks, int):
        raise RecordError(f"{record.folder / 'environment.json'} does not say how many tasks the run had.")
    if task == 0:
        raise ConfigError("--task 0 is the first task: nothing was learned before it that could be forgotten.")
    if not 0 < task < n_tasks:
        raise ConfigError(f"--task must be from 1 to {n_tasks - 1}, tasks are counted from 0; got {task}.")
    return f"number {task + 1} of {n_tasks}"


def _replay(made: RebuiltRun, n_tasks: int, progress: RunProgress) -> None:
    def emit(event: str, fields: dict[str, Any]) -> None:
        progress(made.record.label, made.record.seed, event, fields)

    emit("run_started", {"n_tasks": n_tasks})
    began = time.perf_counter()
    made.replay(n_tasks, emit)
    emit("run_finished", {"seconds": time.perf_counter() - began})


def _named(classifier: HFClassifier, names: Sequence[str] | None) -> HFClassifier:
    """The classifier with the names of its outputs that the user gives.

    Raises:
        ConfigError: more or fewer names than outputs, or one name twice.
    """
    if names is None:
        return classifier
    n_outputs = len(classifier.class_names)
    if len(names) != n_outputs or len(set(names)) != n_outputs:
        raise ConfigError(f"--class-names needs {n_outputs} different names, in the order of the outputs; got {names}")
    return replace(classifier, class_names=tuple(names))


def _files(options: argparse.Namespace) -> tuple[LabelledFile, LabelledFile]:
    columns = Columns(text=options.text_column, label=options.label_column)
    return read_labelled(options.old, columns, splits=("test", "validation")), read_labelled(options.new, columns)


def _check_modality(old: LabelledFile, new: LabelledFile, modality: str, taker: str) -> None:
    for file in (old, new):
        if file.modality != modality:
            raise DataError(f"{file.path} holds {file.modality} samples, but {taker} takes {modality} samples")


def _tasks(
    old: LabelledFile,
    new: LabelledFile,
    known: Sequence[str],
    index: int,
    transforms: tuple[Transform | None, Transform | None],
) -> tuple[Task, Task, tuple[str, ...]]:
    """The past as one task, the new samples as the next, and the names of all classes."""
    added = [name for name in new.classes if name not in known]
    names = (*known, *added)
    numbers = {name: number for number, name in enumerate(names)}
    samples = Samples(old.table({name: numbers[name] for name in known}), transform=transforms[1])
    fresh = Samples(new.table(numbers))
    new_classes = tuple(range(len(known), len(names)))

    def task(number: int, file: LabelledFile, seen: int, added: tuple[int, ...], train: Samples, test: Samples) -> Task:
        classes = tuple(sorted(set(test.labels.tolist())))
        return Task(number, file.path.name, classes, added, seen, index + 1, train, test, test)

    past = task(index - 1, old, len(known), (), samples, samples)
    next_task = task(
        index,
        new,
        len(names),
        new_classes,
        fresh.with_transform(transforms[0]),
        fresh.with_transform(transforms[1]),
    )
    return past, next_task, names


def _new_rows(names: Sequence[str], task: Task) -> tuple[str, ...]:
    if not task.new_classes:
        return ()
    added = ", ".join(names[number] for number in task.new_classes[:4]) + (", ..." if len(task.new_classes) > 4 else "")
    return (f"{len(task.new_classes)} classes are new to the model ({added}); their rows are drawn as training would",)


def _texts(parts: Sequence[Samples]) -> dict[str, str]:
    """Texts by id, where the samples are texts."""
    found = {}
    for samples in parts:
        for position, name in zip(samples.positions.tolist(), samples.ids.tolist()):
            raw = samples.table.inputs[position]
            if not isinstance(raw, str):
                return {}
            found[str(name)] = raw
    return found

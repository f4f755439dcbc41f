"""The recipes that a plan considers: learners before the task, and what could be done next."""

from __future__ import annotations

import argparse
import functools
import itertools
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import tomli_w

from tangentcl.data import Samples, Task, TaskStream
from tangentcl.errors import ConfigError, RecordError, nearest
from tangentcl.experiments.build import build_backbone, build_method, build_plan, build_source, build_stream, transforms
from tangentcl.experiments.config import MethodEntry, Table, load_experiment, slug
from tangentcl.experiments.rebuild import rebuild
from tangentcl.forecast.planning import Candidate, plan_training
from tangentcl.forecast.training_choice import Prospect, TrainingChoice
from tangentcl.methods import Method
from tangentcl.records import Record
from tangentcl.training import Runtime
from tangentcl.training.checkpoint import begin
from tangentcl.training.recipe import recipe, recipe_notes
from tangentcl.training.stream import learn_task

FACTORS = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)  # of the experiment's learning rate
LENGTHS = (1 / 3, 1.0, 3.0)  # of its epochs


@dataclass(frozen=True)
class Considered:
    """A choice and what its rows are made of.

    Attributes:
        title: one line.
        choice: among the recipes.
        plan: table of the experiment; method: keywords with name and label.
    """

    title: str
    choice: TrainingChoice
    plan: Table
    method: Table


@dataclass(frozen=True)
class Subject:
    """What is planned for: the tables of one method and seed, and a learner before the task for any of its settings.

    Attributes:
        title: experiment, label and seed.
        plan: table [plan]; method: [[method]] with name and label; backbone: table.
        seed: of the run.
        stream: under the transforms of the backbone.
        record: of the run that is planned on, or None.
    """

    title: str
    plan: Table
    method: Table
    backbone: Table
    seed: int
    stream: TaskStream
    record: Record | None = None

    def learner(self, changes: Mapping[str, Any], t: int) -> Method:
        """The method with these changes, about to learn task t: the tasks before are trained, or read from the run."""
        plan = build_plan(self.plan, self.seed)
        runtime = Runtime(device=plan.device, precision=plan.precision)
        method = None if self.record is None or changes else _stored(self.record, t)
        if method is None:
            keywords = {key: value for key, value in {**self.method, **changes}.items() if key != "label"}
            method = build_method(keywords, build_backbone(self.backbone), self.seed).to(runtime.device)
            for task in self.stream.tasks[:t]:
                with_changes = "".join(f", {key} {value}" for key, value in changes.items())
                _say(f"training task {task.index}, one of the {t} before{with_changes}")
                learn_task(method, task, plan, runtime, lambda event, fields: None)
        begin(method, self.stream[t], plan.seed)
        return method.to(runtime.device)


def _stored(record: Record, t: int) -> Method | None:
    try:
        return rebuild(record).restore(t)
    except RecordError as error:
        _say(f"{error}\nThe tasks before are trained again.")
        return None


def consider(
    options: argparse.Namespace, plan_values: Mapping[str, list[Any]], method_values: Mapping[str, list[Any]]
) -> Considered:
    """Forecast every recipe of the grid.

    Args:
        options: of the command. plan_values, method_values: values of settings to be combined.

    Raises:
        ConfigError, RecordError, DataError, ModelError: what cannot be read, built or forecast, and what to do.
    """
    subject = _of_run(options) if options.source.is_dir() else _of_file(options)
    task = _checked_task(options.task, subject.stream)
    split = options.on or ("validation" if all(t.validation is not None for t in subject.stream) else "test")
    recipes = [(c, build_plan({**subject.plan, **c}, subject.seed)) for c in _plan_changes(subject.plan, plan_values)]
    candidates = [
        Candidate(
            settings={f"method.{key}": v for key, v in changes.items()} | {f"plan.{key}": v for key, v in own.items()},
            dynamics=recipe(plan, len(task.train), task.index),
            model=maker,
            training_samples=plan.epochs * len(task.train),
        )
        for changes, maker in _learners(subject, task.index, method_values)
        for own, plan in recipes
    ]
    old = Samples.concat([_split(earlier, split) for earlier in subject.stream.tasks[: task.index]])
    new_test = _split(task, split)
    choice = plan_training(
        candidates,
        old,
        task,
        new_test,
        max_forgetting=options.max_forgetting,
        min_learned=options.min_learned,
        refine=options.refine,
        observe=lambda number, row: _say(f"forecast {number + 1} of {len(candidates)}"),
    )
    notes = dict.fromkeys(note for _, plan in recipes for note in recipe_notes(plan))
    if split == "test":
        notes["test samples decided; report the accuracy of the chosen recipe on other samples"] = None
    title = (
        f"{subject.title}: before task {task.index} ({task.name}), {len(candidates)} recipes, {len(old)} old and "
        f"{len(new_test)} new {split} samples"
    )
    return Considered(title, replace(choice, notes=tuple(notes)), subject.plan, subject.method)


def snippet(considered: Considered, row: Prospect) -> str:
    """The tables [plan] and [[method]] of an experiment file with the settings of a row, as TOML."""
    plan, method = dict(considered.plan), dict(considered.method)
    for name, value in row.settings.items():
        table, key = name.split(".", 1)
        (plan if table == "plan" else method)[key] = value
    return f"[plan]\n{tomli_w.dumps(plan)}\n[[method]]\n{tomli_w.dumps(method)}"


def _of_file(options: argparse.Namespace) -> Subject:
    seeds = None if options.seed is None else [options.seed]
    experiment = load_experiment(options.source, settings=options.settings, seeds=seeds)
    entry, seed = _chosen(experiment.methods, options.method), experiment.seeds[0]
    method = {"name": entry.name, "label": entry.label, **entry.keywords}
    plan = {**experiment.plan, **entry.plan}
    stream = build_stream(build_source(experiment.source), experiment.stream, seed)
    ready = stream.with_transforms(*transforms(build_backbone(experiment.backbone), experiment.transform))
    return Subject(f"{experiment.name}, {entry.label}, seed {seed}", plan, method, experiment.backbone, seed, ready)


def _of_run(options: argparse.Namespace) -> Subject:
    for option in ("settings", "seed", "method"):
        if getattr(options, option):
            name = "set" if option == "settings" else option
            raise ConfigError(f"--{name} is for an experiment file; a run has its own. Give the file instead.")
    record = Record.read(options.source)
    made, config = rebuild(record), record.config
    title = f"{record.experiment}, {record.label}, seed {record.seed}"
    method = {**config["method"], "label": record.label}
    return Subject(title, dict(config["plan"]), method, dict(config["backbone"]), record.seed, made.stream, record)


def _chosen(entries: Sequence[MethodEntry], label: str | None) -> MethodEntry:
    if label is None:
        return next((entry for entry in entries if entry.name == "finetune"), entries[0])
    labels = {slug(entry.label): entry for entry in entries}
    if slug(label) not in labels:
        raise ConfigError(f"--method {label}: no such method.{nearest(slug(label), labels)}")
    return labels[slug(label)]


def _checked_task(t: int, stream: TaskStream) -> Task:
    if not 0 < t < len(stream):
        raise ConfigError(f"--task must be from 1 to {len(stream) - 1}, counted from 0: nothing is old before task 0")
    if stream.scenario == "task":
        raise ConfigError(
            "in a task-incremental stream the classes of a sample's own task compete; a plan forecasts over all classes"
        )
    return stream[t]


def _learners(
    subject: Subject, t: int, values: Mapping[str, list[Any]]
) -> list[tuple[dict[str, Any], Callable[[], Method]]]:
    """Every combination of a method's settings with what makes the learner."""
    combined = [dict(zip(values, chosen)) for chosen in itertools.product(*values.values())]
    return [(changes, functools.partial(subject.learner, changes, t)) for changes in combined]


def _plan_changes(table: Table, values: Mapping[str, list[Any]]) -> list[dict[str, Any]]:
    """Every combination of a plan's settings; by default around its learning rate and length.

    >>> _plan_changes({"lr": 0.1, "head_lr": 1.0}, {"lr": [0.2], "epochs": [1, 3]})
    [{'lr': 0.2, 'epochs': 1, 'head_lr': 2.0}, {'lr': 0.2, 'epochs': 3, 'head_lr': 2.0}]
    """
    now = build_plan(table, 0)
    rates = [float(f"{now.lr * factor:.3g}") for factor in FACTORS]
    lengths = sorted({max(1, round(now.epochs * factor)) for factor in LENGTHS})
    values = {"lr": rates, "epochs": lengths, **values}
    combined = [dict(zip(values, chosen)) for chosen in itertools.product(*values.values())]
    if now.head_lr is not None and "head_lr" not in values and now.lr:
        combined = [{**c, "head_lr": float(f"{now.head_lr * c['lr'] / now.lr:.6g}")} for c in combined]
    return combined


def _split(task: Task, name: str) -> Samples:
    samples = {split: samples for split, samples in task.splits() if split != "train"}
    if name not in samples:
        raise ConfigError(f"--on {name}: task {task.index} has no {name} samples. Try --on test")
    return samples[name]


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)

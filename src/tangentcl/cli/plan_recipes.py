"""The recipes that a plan considers: learners before the task, and what could be done next."""

from __future__ import annotations

import argparse
import functools
import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import tomli_w

from tangentcl.cli.plan_subject import Subject, say
from tangentcl.data import Samples, Task, TaskStream
from tangentcl.errors import ConfigError
from tangentcl.experiments.build import build_plan
from tangentcl.experiments.config import Table
from tangentcl.forecast.planning import Candidate, plan_training
from tangentcl.forecast.training_choice import Prospect, TrainingChoice
from tangentcl.methods import Method, method_class
from tangentcl.training import TrainingPlan
from tangentcl.training.recipe import recipe, recipe_notes

FACTORS = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)  # of the experiment's learning rate
LENGTHS = (1 / 3, 1.0, 3.0)  # of its epochs
STRENGTHS = (0.0, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)  # of a method's penalty; they take the place of learning rates
STRENGTH = "method.strength"


@dataclass(frozen=True)
class Considered:
    """A choice and what its rows are made of.

    Attributes:
        title: one line.
        choice: among the recipes.
        subject: what it is for.
        task: to be learned.
        split: whose accuracy decided, "validation" or "test".
    """

    title: str
    choice: TrainingChoice
    subject: Subject
    task: Task
    split: str

    def plan_of(self, row: Prospect) -> TrainingPlan:
        """The training plan of a row."""
        return build_plan(_with(self.subject.plan, row, "plan"), self.subject.seed)

    def changes_of(self, row: Prospect) -> dict[str, Any]:
        """What a row changes of the method from the first task on; not the strength, which is of the coming task."""
        return {key: v for key, v in _settings(row, "method").items() if key != "strength" or not self.has_strength}

    @property
    def has_strength(self) -> bool:
        """Whether the method adds a penalty of a strength to its loss."""
        return has_penalty(self.subject)

    def strength_of(self, row: Prospect) -> float | None:
        """The strength of a row's penalty; None where the method's own stays."""
        return row.settings.get(STRENGTH) if self.has_strength else None


def has_penalty(subject: Subject) -> bool:
    """Whether the subject's method adds a penalty to its loss that forecasts follow at any strength."""
    method = method_class(subject.method["name"])
    return hasattr(method, "penalty") and hasattr(method, "strength")


def consider(
    subject: Subject,
    options: argparse.Namespace,
    plan_values: Mapping[str, list[Any]],
    method_values: Mapping[str, list[Any]],
) -> Considered:
    """Forecast every recipe of the grid.

    Args:
        subject: what the plan is for.
        options: of the command. plan_values, method_values: values of settings to be combined.

    Raises:
        ConfigError, RecordError, DataError, ModelError: what cannot be read, built or forecast, and what to do.
    """
    task = _checked_task(options.task, subject.stream)
    if options.strength is not None and not has_penalty(subject):
        name = subject.method["name"]
        raise ConfigError(
            f"--strength is of a penalty that a method adds to its loss, as spectral does; {name} has none"
        )
    split = options.on or ("validation" if all(t.validation is not None for t in subject.stream) else "test")
    candidates, plans = _candidates(subject, task, plan_values, method_values)
    old = old_samples(subject.stream, task, split)
    new_test = split_of(task, split)
    choice = plan_training(
        candidates,
        old,
        task,
        new_test,
        max_forgetting=options.max_forgetting,
        min_learned=options.min_learned,
        refine=options.refine,
        confidence=options.confidence,
        observe=lambda number, row: say(f"forecast {number + 1} of {len(candidates)}"),
    )
    notes = dict.fromkeys(note for plan in plans for note in recipe_notes(plan))
    if split == "test":
        notes["test samples decided; report the accuracy of the chosen recipe on other samples"] = None
    if task.index > 1 and any(candidate.strength is not None for candidate in candidates):
        notes[f"method.strength is of task {task.index} alone: the tasks before keep the experiment's own"] = None
    title = (
        f"{subject.title}: before task {task.index} ({task.name}), {len(candidates)} recipes, {len(old)} old and "
        f"{len(new_test)} new {split} samples"
    )
    return Considered(title, replace(choice, notes=tuple(notes)), subject, task, split)


def old_samples(stream: TaskStream, task: Task, split: str) -> Samples:
    """Held-out samples of all tasks before."""
    return Samples.concat([split_of(earlier, split) for earlier in stream.tasks[: task.index]])


def _candidates(
    subject: Subject, task: Task, plan_values: Mapping[str, list[Any]], method_values: Mapping[str, list[Any]]
) -> tuple[list[Candidate], list[TrainingPlan]]:
    """All combinations, and the training plans among them."""
    values = dict(method_values)
    strengths: list[Any] = [None]
    if has_penalty(subject):
        strengths = values.pop("strength", list(STRENGTHS))
        plan_values = {"lr": [build_plan(subject.plan, 0).lr], **plan_values}
    recipes = [(c, build_plan({**subject.plan, **c}, subject.seed)) for c in _plan_changes(subject.plan, plan_values)]
    candidates = [
        Candidate(
            settings={f"method.{key}": v for key, v in changes.items()}
            | ({} if strength is None else {STRENGTH: strength})
            | {f"plan.{key}": v for key, v in own.items()},
            dynamics=recipe(plan, len(task.train), task.index),
            model=maker,
            training_samples=plan.epochs * len(task.train),
            strength=strength,
        )
        for changes, maker in _learners(subject, task.index, values)
        for strength in strengths
        for own, plan in recipes
    ]
    return candidates, [plan for _, plan in recipes]


def snippet(considered: Considered, row: Prospect) -> str:
    """The tables [plan] and [[method]] of an experiment file with the settings of a row, as TOML."""
    subject = considered.subject
    plan, method = (_with(getattr(subject, table), row, table) for table in ("plan", "method"))
    return f"[plan]\n{tomli_w.dumps(plan)}\n[[method]]\n{tomli_w.dumps(method)}"


def _with(table: Table, row: Prospect, name: str) -> Table:
    return {**table, **_settings(row, name)}


def _settings(row: Prospect, table: str) -> dict[str, Any]:
    """Settings of a row that are of one table."""
    start = f"{table}."
    return {name.removeprefix(start): value for name, value in row.settings.items() if name.startswith(start)}


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


def split_of(task: Task, name: str) -> Samples:
    """Held-out samples of a task by the name of their split.

    Raises:
        ConfigError: it has none.
    """
    samples = {split: samples for split, samples in task.splits() if split != "train"}
    if name not in samples:
        raise ConfigError(f"--on {name}: task {task.index} has no {name} samples. Try --on test")
    return samples[name]

"""What a plan is made for: an experiment or a run, its stream, and a learner before the task."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from tangentcl.data import TaskStream
from tangentcl.errors import ConfigError, RecordError, nearest
from tangentcl.experiments.build import build_backbone, build_method, build_plan, build_source, build_stream, transforms
from tangentcl.experiments.config import MethodEntry, Table, load_experiment, slug
from tangentcl.experiments.rebuild import rebuild
from tangentcl.methods import Method
from tangentcl.records import Record
from tangentcl.training import Runtime
from tangentcl.training.checkpoint import begin, learned_tensors, load_tensors
from tangentcl.training.stream import learn_task


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
    _known: dict[str, dict[str, Tensor]] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def runtime(self) -> Runtime:
        """Device and precision of the plan."""
        plan = build_plan(self.plan, self.seed)
        return Runtime(device=plan.device, precision=plan.precision)

    def learner(self, changes: Mapping[str, Any], t: int) -> Method:
        """The method with these changes, about to learn task t."""
        method = self.learned(changes, t)
        begin(method, self.stream[t], self.seed)
        return method.to(self.runtime.device)

    def learned(self, changes: Mapping[str, Any], t: int) -> Method:
        """The method with these changes after the tasks before t: they are trained, once, or read from the run."""
        method = None if self.record is None or changes else _stored(self.record, t)
        if method is not None:
            return method
        plan, runtime, key = build_plan(self.plan, self.seed), self.runtime, repr((t, sorted(changes.items())))
        method = self.fresh(changes).to(runtime.device)
        before = self.stream.tasks[:t]
        if key in self._known:
            for task in before:
                begin(method, task, plan.seed)
            return load_tensors(method, self._known[key], "the learner before the task").to(runtime.device)
        for task in before:
            with_changes = "".join(f", {name} {value}" for name, value in changes.items())
            say(f"training task {task.index}, one of the {t} before{with_changes}")
            learn_task(method, task, plan, runtime, lambda event, fields: None)
        self._known[key] = {name: value.detach().cpu().clone() for name, value in learned_tensors(method).items()}
        return method

    def fresh(self, changes: Mapping[str, Any]) -> Method:
        """The method with these changes, which has learned nothing yet."""
        keywords = {key: value for key, value in {**self.method, **changes}.items() if key != "label"}
        return build_method(keywords, build_backbone(self.backbone), self.seed)


def _stored(record: Record, t: int) -> Method | None:
    try:
        return rebuild(record).restore(t)
    except RecordError as error:
        say(f"{error}\nThe tasks before are trained again.")
        return None


def subject_of(options: argparse.Namespace) -> Subject:
    """Of the experiment file or the folder of a run that the command names.

    Raises:
        ConfigError, RecordError, DataError: what cannot be read or built, and what to do.
    """
    return _of_run(options) if options.source.is_dir() else _of_file(options)


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
    """By its label, else the first of that name; by default the first finetune."""
    if label is None:
        return next((entry for entry in entries if entry.name == "finetune"), entries[0])
    labels = {slug(entry.label): entry for entry in entries}
    if slug(label) in labels:
        return labels[slug(label)]
    named = [entry for entry in entries if entry.name == label]
    if not named:
        raise ConfigError(f"--method {label}: no such method in the file.{nearest(slug(label), labels)}")
    return named[0]


def say(text: str) -> None:
    """A line of progress."""
    print(text, file=sys.stderr, flush=True)

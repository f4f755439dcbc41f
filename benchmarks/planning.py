"""Do plans keep what they promise? Pairs of tasks: plan the second, train the chosen recipe, compare.

    python -m benchmarks.planning experiments/planning/clinc150_head.toml --lr 1e-3 3e-3 1e-2 --epochs 2 5
    python -m benchmarks.planning experiments/planning/clinc150_lora.toml --epochs 3 5 --validation-per-class 10

The groups of the file's stream are taken in cyclic order: the first is learned with the file's recipe, then the next is
planned for, as `tangentcl plan --train` does it. The recipes are those of the file's first method; a strength of 0 is
plain fine-tuning. With ``tune = "head"`` the backbone passes over every sample once for all pairs.
Held-out test samples, which no plan has seen, are reported beside the samples that decided.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.head_table import Features
from tangentcl.cli.plan import varied
from tangentcl.cli.plan_outcome import Outcome, carry_out
from tangentcl.cli.plan_recipes import consider
from tangentcl.cli.plan_subject import Subject
from tangentcl.data import Samples, TaskStream
from tangentcl.errors import TangentclError
from tangentcl.experiments import load_experiment
from tangentcl.experiments.build import build_backbone, build_method, build_plan, build_source, build_stream, transforms
from tangentcl.experiments.config import Experiment
from tangentcl.forecast.training_choice import TrainingChoice
from tangentcl.methods import Method
from tangentcl.nn.backbone import from_module

HEADING = (
    "| old -> new | chosen | believed | old now | old after: predicted, real | new: predicted, real "
    "| test: forgotten | test: new |"
)


@dataclass(frozen=True)
class FeatureSubject(Subject):
    """A subject whose stream is of features already, and whose backbone passes them on."""

    width: int = 0

    def fresh(self, changes: Mapping[str, Any]) -> Method:
        """The method on the identity."""
        sample = torch.zeros(1, self.width)
        identity = from_module(nn.Identity(), None, self.width, sample=sample, name="features", modality="array")
        keywords = {key: value for key, value in {**self.method, **changes}.items() if key != "label"}
        return build_method(keywords, identity, self.seed)


@dataclass(frozen=True)
class Pair:
    """What came of one plan; ``outcome`` is None where no recipe met the demands.

    Attributes:
        name: old group -> new group. choice: among the recipes that were forecast.
        seconds: of planning, with the training of the first task, and of training what was chosen.
    """

    name: str
    choice: TrainingChoice
    outcome: Outcome | None
    seconds: float

    @property
    def within(self) -> bool:
        """Whether a recipe was chosen and forgot no more than allowed."""
        return self.outcome is not None and self.outcome.within

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        known = self.outcome
        found = {} if known is None else {"forecast": known.prospect.to_dict(), **known.to_dict()}
        return {"pair": self.name, "all_seconds": self.seconds, **found, "plan": self.choice.to_dict()}


def pairs(experiment: Experiment, chosen: slice, held: int | None = None) -> Iterator[tuple[str, TaskStream]]:
    """Streams of two groups each, in cyclic order; with at most ``held`` validation samples of each class."""
    source, seed, groups = build_source(experiment.source), experiment.seeds[0], experiment.stream.get("groups")
    names = [task.name for task in build_stream(source, experiment.stream, seed)]
    for i in range(len(names))[chosen]:
        two = [names[i], names[(i + 1) % len(names)]]
        wanted = {name: groups[name] for name in two} if isinstance(groups, dict) else two
        stream = build_stream(source, {**experiment.stream, "groups": wanted}, seed)
        yield " -> ".join(two), stream if held is None else _thinned(stream, held)


def _thinned(stream: TaskStream, held: int) -> TaskStream:
    def first(samples: Samples) -> Samples:
        labels = np.asarray(samples.labels)
        return samples.subset(np.sort(np.concatenate([np.flatnonzero(labels == c)[:held] for c in np.unique(labels)])))

    tasks = [
        task if task.validation is None else dataclasses.replace(task, validation=first(task.validation))
        for task in stream
    ]
    return dataclasses.replace(stream, tasks=tuple(tasks))


def subjects(experiment: Experiment, chosen: slice, held: int | None = None) -> Iterator[Subject]:
    """What is planned for, pair by pair; features are computed once."""
    entry, seed = experiment.methods[0], experiment.seeds[0]
    method, plan = {"name": entry.name, "label": entry.label, **entry.keywords}, {**experiment.plan, **entry.plan}
    backbone = build_backbone(experiment.backbone)
    ready = transforms(backbone, experiment.transform)
    features = Features(backbone, build_plan(plan, seed)) if method.get("tune") == "head" else None
    for title, stream in pairs(experiment, chosen, held):
        stream = stream.with_transforms(*ready)
        if features is None:
            yield Subject(title, plan, method, experiment.backbone, seed, stream)
        else:
            yield FeatureSubject(title, plan, method, {}, seed, of_features(features, stream), width=backbone.width)


def of_features(features: Features, stream: TaskStream) -> TaskStream:
    """A stream over features, with its validation samples."""
    held = [task.validation for task in stream]
    features.of([samples for samples in held if samples is not None])
    known = features.stream(stream)
    tasks = [
        dataclasses.replace(task, validation=None if samples is None else features.samples(samples))
        for task, samples in zip(known, held)
    ]
    return dataclasses.replace(known, tasks=tuple(tasks))


def kept(subject: Subject, options: argparse.Namespace) -> Pair:
    """Plan the second task of a pair, and train what was chosen."""
    began = time.perf_counter()
    considered = consider(subject, options, *varied(options))
    chosen = considered.choice.chosen
    outcome = None if chosen is None else carry_out(considered, chosen)
    return Pair(subject.title, considered.choice, outcome, time.perf_counter() - began)


def line(pair: Pair) -> str:
    """One line of the table."""
    found, said = pair.outcome, pair.choice.chosen or pair.choice.closest
    if said is None:
        return f"| {pair.name} | none can be believed | | | | | | |"
    names = {"method.strength": "strength", "plan.lr": "lr", "plan.epochs": "epochs"}
    recipe = ", ".join(f"{short} {said.settings[name]:g}" for name, short in names.items() if name in said.settings)
    if found is None:
        numbers = " | ".join(f"{100 * share:.1f}" for share in (said.old_now, said.old_after, said.new_after))
        return f"| {pair.name} | none; closest {recipe} | {said.trust} | {numbers} | | |"
    real = found.decided
    held = found.held_out
    elsewhere = " | " if held is None else f"{100 * held.forgetting:.1f} | {100 * held.new_after:.1f}"
    old, new = _two(said.old_after, real.old_after), _two(said.new_after, real.new_after)
    return f"| {pair.name} | {recipe} | {said.trust} | {100 * said.old_now:.1f} | {old} | {new} | {elsewhere} |"


def _two(said: float, real: float) -> str:
    return f"{100 * said:.1f}, {100 * real:.1f}"


def summary(found: Sequence[Pair]) -> str:
    """How many plans kept what they promised."""
    within = sum(pair.within for pair in found)
    known = [pair.outcome for pair in found if pair.outcome is not None]
    held = [(outcome, outcome.held_out) for outcome in known if outcome.held_out is not None]
    text = f"{len(known)} of {len(found)} pairs have a recipe, {within} of them end within the tolerance"
    if held:
        kept_too = sum(outcome.keeps(measured) for outcome, measured in held)
        mean = sum(measured.forgetting for _, measured in held) / len(held)
        text += f"; on test samples {kept_too} of {len(held)}, {100 * mean:.1f} points forgotten in the mean"
    return f"{text}. {sum(pair.seconds for pair in found):.0f} s."


def options_of(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line: a file, and the options of ``tangentcl plan`` that make the grid."""
    from tangentcl.cli.plan import add_grid

    parser = argparse.ArgumentParser(prog="python -m benchmarks.planning", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("file", type=Path, help="experiment file; its first method is planned with")
    parser.add_argument("--pairs", type=int, default=10, metavar="N", help="at most so many")
    parser.add_argument("--first", type=int, default=0, metavar="N", help="of the pairs, counted from 0")
    parser.add_argument("--validation-per-class", type=int, metavar="N", help="at most so many (default: all)")
    parser.add_argument("--set", dest="settings", nargs="+", default=[], metavar="TABLE.KEY=VALUE")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all numbers")
    add_grid(parser)
    return argparse.Namespace(**vars(parser.parse_args(arguments)), task=1, on=None)


def main(arguments: Sequence[str] | None = None) -> list[Pair]:
    """Plan, train, and print a line for each pair."""
    options = options_of(arguments)
    experiment = load_experiment(options.file, settings=options.settings)
    print(f"{HEADING}\n{'| --- ' * HEADING.count(' | ')}| --- |")
    found: list[Pair] = []
    chosen = slice(options.first, options.first + options.pairs)
    for subject in subjects(experiment, chosen, options.validation_per_class):
        found.append(kept(subject, options))
        print(line(found[-1]), flush=True)
    print(f"\n{summary(found)}")
    if options.json is not None:
        options.json.write_text(json.dumps([pair.to_dict() for pair in found], indent=1))
    return found


if __name__ == "__main__":
    try:
        main()
    except TangentclError as error:
        print(error, file=sys.stderr)
        sys.exit(2)

"""A forecast on the command line without old data: from the moments that every task left in the run's record."""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tangentcl.cli.forecast_recipe import changed_plan, recorded_plan
from tangentcl.cli.forecast_subject import learner_before, name_of, place_of
from tangentcl.cli.forecast_text import percent, short, table, wrapped
from tangentcl.errors import ModelError
from tangentcl.forecast import forecast_from_moments
from tangentcl.records import Record
from tangentcl.training.forecasting import describe
from tangentcl.training.moments import load_moments
from tangentcl.training.recipe import recipe, recipe_notes
from tangentcl.training.stage import begin

SHOWN = 5  # layers
Summary = Mapping[str, Any]


@dataclass(frozen=True)
class MadeFromMoments:
    """A forecast from moments with what to print around it.

    Attributes:
        title: one line.
        shown: `tangentcl.forecast.MomentForecast.to_dict` with recipe and cost.
        notes: on how it was made.
    """

    title: str
    shown: Summary
    notes: tuple[str, ...]


def of_task_from_moments(options: argparse.Namespace) -> MadeFromMoments:
    """What a task of a run will do to the tasks before it, from their moments; no sample of theirs is looked at.

    Raises:
        RecordError, ConfigError, DataError, ModelError: what cannot be read, built or forecast, and what to do.
    """
    record = Record.read(options.record)
    place = place_of(options.task, record)
    plan = changed_plan(options, recorded_plan(record))
    moments = load_moments(record.folder, range(options.task))
    made = learner_before(record, options.task, replay=options.replay)
    task, method = made.stream[options.task], made.method
    began = time.perf_counter()
    begin(method, task, plan.seed)
    method.to(made.runtime.device).eval()
    samples = method.training_samples(task)
    if samples is None or not any(p.requires_grad for p in method.parameters()):
        raise ModelError(f"{type(method).__name__} trains nothing by gradient steps at task {task.index}.")
    dynamics = recipe(plan, len(samples), task.index)
    found = forecast_from_moments(moments, method, task, dynamics, batch_size=min(64, plan.eval_batch_size))
    shown = found.to_dict()
    left_out = recipe_notes(plan)
    shown = {
        **shown,
        "exact": shown["exact"] and not left_out,
        "notes": [*shown["notes"], *left_out],
        "recipe": describe(plan, len(samples)),
        "cost": {"forecast_seconds": time.perf_counter() - began},
    }
    title = f"{name_of(record)}: before task {options.task} ({task.name}, {place}), without old data"
    learner = "trained again" if options.replay else "in the record"
    past = "1 task" if len(moments) == 1 else f"{len(moments)} tasks"
    return MadeFromMoments(title, shown, (f"made now, from the moments of {past} and the learner {learner}",))


def moments_text(shown: Summary) -> str:
    """Everything a user asks of a forecast from moments, at most `tangentcl.cli.forecast_text.WIDTH` columns wide."""
    parts = [_drift(shown), _tasks(shown["tasks"]), _modes(shown), _layers(shown["layers"]), _belief(shown)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _drift(shown: Summary) -> str:
    line = f"drift of old outputs: {shown['drift_rms']:.3g} (root mean square)"
    if shown["drift_rms_high"] > shown["drift_rms_low"] * (1 + 1e-6):
        line += f"; the sketch alone leaves {shown['drift_rms_low']:.3g} to {shown['drift_rms_high']:.3g}"
    if shown["layers"] is not None or shown["head_rms"] != shown["drift_rms"]:
        line += f"; {shown['head_rms']:.3g} by the head alone"
    now, after = shown["estimated_accuracy"]["now"], shown["estimated_accuracy"]["after"]
    lost = 100 * (now - after)
    said = f"{lost:.1f} points will be forgotten" if lost >= 0 else f"{-lost:.1f} points will be gained"
    samples = f"of {shown['n_old']} old training samples, as their moments tell it"
    return "\n".join([*wrapped(line), f"old accuracy: {percent(now)} now, {percent(after)} estimated; {said}", samples])


def _tasks(tasks: Sequence[Summary]) -> str:
    rows = [
        [
            short(str(one["name"]), 40),
            str(one["n"]),
            f"{one['drift_rms']:.3g}",
            percent(one["now"]),
            percent(one["after"]),
            f"{100 * (one['now'] - one['after']):.1f}",
        ]
        for one in tasks
    ]
    return table("by task", ["task", "samples", "drift", "now", "estimated", "points lost"], rows)


def _modes(shown: Summary) -> str:
    ranks = ", ".join(f"{rank} for {100 * float(share):.0f} %" for share, rank in shown["vulnerable_rank"].items())
    spaces = f"there are {shown['n_spaces']} eigenspaces of the features' kernel"
    return "\n".join(wrapped(f"vulnerable modes: {ranks} of the drift; {spaces}"))


def _layers(layers: Summary | None) -> str:
    if layers is None:
        return ""
    found = layers["layers"]
    rows = [[one["layer"], percent(one["relative"]), f"{one['energy']:.3g}"] for one in found[:SHOWN]]
    title = "adapted layers whose outputs move most on old data (later layers are not in it)"
    lines = [table(title, ["layer", "change", "energy per token"], rows)]
    if len(found) > SHOWN:
        lines.append(f"  and {len(found) - SHOWN} more; energy of all: {layers['total']:.3g} per token")
    if layers["left_out"]:
        named = f"{len(layers['left_out'])} parameters outside of linear layers, {layers['left_out'][0]} the first"
        lines += wrapped(f"  not in it: {named}")
    return "\n".join(lines)


def _belief(shown: Summary) -> str:
    if shown["trust"] is not None:
        believed = f"{shown['trust']['sentence']} That is on the new samples; there are no old ones."
    elif shown["exact"]:
        believed = "The drift is exact: it equals training up to rounding. Accuracies are estimates."
    else:
        believed = "It is an estimate."
    lines = wrapped(f"how far to believe it: {believed}")
    for note in shown["notes"]:
        lines += wrapped(f"note: {note}")
    return "\n".join([*lines, f"cost: {shown['cost']['forecast_seconds']:.2f} s"])

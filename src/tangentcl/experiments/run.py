"""Run an experiment: every method and seed gets a record; what is done is not done again."""

from __future__ import annotations

import json
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tangentcl.data import TaskStream
from tangentcl.errors import ConfigError, RecordError, TangentclError
from tangentcl.experiments.build import (
    build_backbone,
    build_forecast,
    build_method,
    build_plan,
    build_source,
    build_stream,
    build_theory,
    transforms,
    with_defaults,
)
from tangentcl.experiments.config import Experiment, MethodEntry, Table
from tangentcl.experiments.environment import environment
from tangentcl.experiments.forecast_summary import in_short, task_forecast
from tangentcl.experiments.trackers import Tracker, Tracking, build_trackers
from tangentcl.methods import Method, method_class
from tangentcl.nn import Backbone, FeatureStore
from tangentcl.records import Record, RecordWriter, TaskTheory, is_abandoned
from tangentcl.records.files import plain
from tangentcl.training import (
    Checkpoints,
    Forecasting,
    ForecastOptions,
    Runtime,
    StageTheory,
    StageWatcher,
    StreamResult,
    TheoryOptions,
    TheoryReport,
    TrainingPlan,
    run_stream,
)
from tangentcl.training.checkpoint import LearnerKeeper, remove_learners, save_learner
from tangentcl.training.forecasting import StageForecast
from tangentcl.training.loop import Emit
from tangentcl.training.moments import MomentsWriter


@dataclass(frozen=True)
class Outcome:
    """How one run ended: ``status`` is "done", "skipped" (was done before) or "failed" with a ``reason``.

    ``untracked`` names the trackers that failed, each with its reason; the run does not depend on them.
    """

    label: str
    seed: int
    folder: Path
    status: str
    reason: str | None = None
    untracked: tuple[str, ...] = ()


Observe = Callable[[str, int, str, dict[str, Any]], None]  # label, seed, event, fields


@dataclass(frozen=True)
class Run:
    """One method with one seed: what to do and where its record lies."""

    entry: MethodEntry
    seed: int
    plan: TrainingPlan
    stream: TaskStream
    settings: Table
    folder: Path
    forecast: ForecastOptions | None = None
    theory: TheoryOptions | None = None
    trackers: dict[str, Tracker] = field(default_factory=dict)

    @property
    def states(self) -> Path:
        """Where its states lie until it is done."""
        return self.folder / "resume"

    def outcome(self, status: str, reason: str | None = None) -> Outcome:
        """How it ended."""
        return Outcome(self.entry.label, self.seed, self.folder, status, reason)


def ignore(label: str, seed: int, event: str, fields: dict[str, Any]) -> None:
    """Observe nothing."""


def run_experiment(
    experiment: Experiment,
    out: str | Path = "runs",
    *,
    observe: Observe = ignore,
    overwrite: bool = False,
    checkpoint_every: int = 500,
    features: FeatureStore | None = None,
) -> list[Outcome]:
    """Run every method and seed of ``experiment``; records lie in ``out/<experiment>/<label>/seed-<seed>``.

    A run whose record is done with the same settings is skipped, one that was stopped goes on from its last state, to
    the numbers it would have had. A run that fails is recorded with its reason and does not stop the others. Before the
    first run starts all tables are checked, every method that has something left to do is constructed once, and every
    record that is there is compared: a mistake in the last method costs no training.

    Args:
        experiment: what to run.
        out: folder of all records.
        observe: called with label, seed, event and fields, in the main process only; ``"skipped"`` for a run that was
            done before, ``"tracker_failed"`` for a tracker that hears no more of a run.
        overwrite: run again, from the beginning, what is done, was stopped or was made with other settings.
        checkpoint_every: steps between two states within a task; 0 keeps those at the ends of tasks only.
        features: where features of frozen backbones are kept; None computes them in every run, at every evaluation.

    Raises:
        ConfigError: a table that cannot be used, or a record made with other settings (the difference is named).
        RecordError: a record is damaged, is just being written, or cannot be written.
        KeyboardInterrupt: after the running record was closed as interrupted.
    """
    runs = _planned(experiment, Path(out))
    runtime = Runtime(device=runs[0].plan.device, precision=runs[0].plan.precision)
    finished = [not overwrite and _is_done(run) for run in runs] if runtime.is_main else []
    finished = json.loads(runtime.agree(json.dumps(finished)) or "[]")
    left = {run.entry.slug: run for run, done in zip(runs, finished, strict=True) if not done}
    for run in left.values():
        _prepared(experiment, run)
    outcomes = []
    for run, done in zip(runs, finished, strict=True):
        if not done:
            learn = partial(_run_one, experiment, run, overwrite, checkpoint_every, features)
            outcomes.append(_tracked(run, observe, learn))
            continue
        outcomes.append(run.outcome("skipped"))
        if runtime.is_main:
            Checkpoints(run.states).clear()  # which a run that is killed with its last word leaves
            observe(run.entry.label, run.seed, "skipped", {})
    return outcomes


def _planned(experiment: Experiment, out: Path) -> list[Run]:
    """All runs in order, seed by seed, with everything checked that needs no backbone."""
    for entry in experiment.methods:
        method_class(entry.name)
        for seed in experiment.seeds:
            plan = build_plan({**experiment.plan, **entry.plan}, seed)
        Runtime(device=plan.device, precision=plan.precision)
    forecast, theory = build_forecast(experiment.forecast), build_theory(experiment.theory)
    data = build_source(experiment.source)
    by_seed = experiment.stream.get("order_seed") == "seed"
    streams: dict[int, TaskStream] = {}
    runs = []
    for seed in experiment.seeds:
        key = seed if by_seed else 0
        if key not in streams:
            streams[key] = build_stream(data, experiment.stream, seed)
        for entry in experiment.methods:
            plan = build_plan({**experiment.plan, **entry.plan}, seed)
            folder = out / experiment.name / entry.slug / f"seed-{seed}"
            settings = with_defaults(experiment.resolved(entry, seed))
            trackers = build_trackers(experiment.trackers, out)
            runs.append(Run(entry, seed, plan, streams[key], settings, folder, forecast, theory, trackers))
    return runs


def _prepared(experiment: Experiment, run: Run) -> tuple[Backbone, Method, TaskStream]:
    features = build_backbone(experiment.backbone)
    if run.stream.source.modality != features.card.modality:
        raise ConfigError(
            f"the stream '{run.stream.name}' holds {run.stream.source.modality} samples, the backbone "
            f"'{features.card.name}' takes {features.card.modality} samples. Choose another [backbone] name."
        )
    ready = run.stream.with_transforms(*transforms(features, experiment.transform))
    return features, build_method(run.settings["method"], features, run.seed), ready


def _tracked(run: Run, observe: Observe, learn: Callable[[Observe], Outcome]) -> Outcome:
    """``learn`` under the run's trackers, which observe it and are told of its end when the record is closed."""

    def say(tracker: str, reason: str) -> None:
        observe(run.entry.label, run.seed, "tracker_failed", {"tracker": tracker, "error": reason})

    tracking = Tracking(run.trackers, run.folder, run.settings, say)

    def seen(label: str, seed: int, event: str, fields: dict[str, Any]) -> None:
        observe(label, seed, event, fields)
        tracking.event(event, fields)

    try:
        outcome = learn(seen)
    finally:
        tracking.close()
    return replace(outcome, untracked=tracking.failures)


def _run_one(
    experiment: Experiment, run: Run, overwrite: bool, every: int, store: FeatureStore | None, observe: Observe
) -> Outcome:
    runtime = Runtime(device=run.plan.device, precision=run.plan.precision)
    features, method, ready = _prepared(experiment, run)
    about = environment(features, ready, run.plan, runtime, experiment.seeds)
    about["published"] = [result.describe() for result in experiment.published]
    states = Checkpoints(run.states, every=every, outside=lambda: None if writer is None else writer.position())
    if overwrite and runtime.is_main:
        states.clear()
    runtime.agree("states are cleared")
    state = states.found()
    go_on = None if state is None else state.newest["outside"]
    writer: RecordWriter | None = None
    if runtime.is_main:
        writer = RecordWriter(run.folder, run.settings, about, overwrite=overwrite, go_on=go_on)

    def emit(event: str, fields: dict[str, Any]) -> None:
        if writer is not None and not states.replaying:
            writer.event(event, fields)
            observe(run.entry.label, run.seed, event, fields)

    learners = run.folder / "checkpoints"
    if writer is not None and state is None:
        remove_learners(learners)
    watchers = _watchers(experiment, run, ready, writer, emit, fresh=state is None)
    del state  # it holds all that was learned a second time
    try:
        if store is not None and method.reads_features:
            ready = _known(store, ready, features, run.plan, runtime, emit)
        result = run_stream(method, ready, run.plan, runtime=runtime, emit=emit, watchers=watchers, checkpoints=states)
        if writer is not None:
            write_accuracy(writer, ready, result)
            if experiment.save:
                save_learner(method, learners)
            writer.finish("done")
            states.clear()
    except (KeyboardInterrupt, SystemExit) as error:
        if writer is not None:
            asked = "stopped by the user" if isinstance(error, KeyboardInterrupt) else f"the program exited ({error})"
            writer.finish("interrupted", asked)
        raise
    except RecordError as error:
        if writer is not None:
            writer.give_up(str(error))
        raise
    except Exception as error:
        reason = str(error) if isinstance(error, TangentclError) else f"{type(error).__name__}: {error}"
        if runtime.world > 1:
            reason += f" (process {runtime.rank})"
        emit("failed", {"error": reason, "traceback": traceback.format_exc()})
        if writer is not None:
            writer.finish("failed", reason)
        if runtime.world > 1:
            raise  # the other processes may be waiting for this one
        return run.outcome("failed", reason)
    return run.outcome("done")


def _watchers(
    experiment: Experiment, run: Run, stream: TaskStream, writer: RecordWriter | None, emit: Emit, *, fresh: bool
) -> list[StageWatcher]:
    """Who looks on; the last one looks last before a task and first after it."""
    watchers: list[StageWatcher] = []
    if run.theory is not None:
        watchers.append(_theory(run.theory, stream, writer))
    if experiment.save == "tasks":
        watchers.append(LearnerKeeper(run.folder / "checkpoints"))
    watchers.append(MomentsWriter(run.folder, clear=fresh))
    if run.forecast is not None:  # last, so next to training: it counts the seconds between its two looks
        watchers.append(_forecasting(run.forecast, stream, writer, emit))
    return watchers


def _known(
    store: FeatureStore, stream: TaskStream, backbone: Backbone, plan: TrainingPlan, runtime: Runtime, emit: Emit
) -> TaskStream:
    """The stream with features from the store, which computes those that it does not have."""
    began, before = time.perf_counter(), backbone.passes
    backbone.to(runtime.device)

    def say(done: int, total: int) -> None:
        emit("extracting", {"done": done, "total": total})

    keywords: dict[str, Any] = {"precision": plan.precision, "batch_size": plan.eval_batch_size, "say": say}
    found = store.stream(stream, backbone, autocast=runtime.autocast, **keywords)
    passes = backbone.passes - before
    n = sum(len(task.train) + len(task.test) for task in stream)
    if found is not None:
        seconds = time.perf_counter() - began
        emit("features", {"n": n, "backbone_passes": passes, "engine": store.engine, "seconds": seconds})
    return found or stream


def _forecasting(options: ForecastOptions, stream: TaskStream, writer: RecordWriter | None, emit: Emit) -> Forecasting:
    """Forecasts of a run, which go to its record and to whoever observes; every process takes part."""

    def report(found: StageForecast) -> None:
        if writer is None:
            return
        kept = task_forecast(found, stream.class_names)
        writer.forecast(kept)
        if found.training_seconds is None:
            emit("forecast", in_short(kept))
        elif found.forecast is not None:
            emit("forecast_checked", in_short(kept))

    return Forecasting(options, per_task=stream.scenario == "task", report=report, keep=False)


def _theory(options: TheoryOptions, stream: TaskStream, writer: RecordWriter | None) -> TheoryReport:
    """The theory report of a run, which goes to its record; every process takes part."""

    def report(found: StageTheory) -> None:
        if writer is not None:
            writer.theory(task_theory(found))

    return TheoryReport(options, class_names=stream.class_names, report=report)


def task_theory(found: StageTheory) -> TaskTheory:
    """What a record keeps of the quantities of a task."""
    status = "refused" if found.reason is not None else "before" if found.after is None else "learned"
    values = {"reason": found.reason, "before": found.before, "after": found.after, "seconds": found.seconds}
    return TaskTheory(found.task.index, found.task.name, {"status": status, **values})


def write_accuracy(writer: RecordWriter, stream: TaskStream, result: StreamResult) -> None:
    """``accuracy.json`` of a finished run."""
    writer.accuracy(
        scenario=stream.scenario,
        task_names=[task.name for task in stream],
        class_names=list(stream.class_names),
        task_classes=[list(task.classes) for task in stream],
        n_test=result.n_test,
        matrix=result.matrix,
        class_correct=result.class_correct,
        class_total=np.asarray(result.class_total),
    )


def _is_done(run: Run) -> bool:
    """Whether the folder of a run holds its finished record.

    Raises:
        ConfigError: it holds a record of other settings that is finished, or that could be continued.
        RecordError: it holds a damaged record, or one that is just being written.
    """
    if not (run.folder / "status.json").exists():
        return False
    stopped = Checkpoints(run.states).exist
    try:
        abandoned = is_abandoned(run.folder)
        if abandoned and not stopped:
            return False  # whatever else of it there is
        record = Record.read(run.folder)
    except RecordError as error:
        raise RecordError(f"{error} -- Repeat with --overwrite to replace that record.") from error
    if record.status.status == "running" and not abandoned:
        raise RecordError(
            f"another run is writing {run.folder}. Wait for it or stop it; if there is none, repeat with --overwrite."
        )
    done = record.status.status == "done"
    differences = difference(dict(record.config), plain(run.settings)) if done or stopped else []
    if differences:
        raise ConfigError(
            f"{run.folder} holds a {'finished' if done else 'stopped'} run with other settings: "
            f"{'; '.join(differences)}. Give the experiment or the method another name, or run with --overwrite."
        )
    return done


def difference(before: Table, after: Table, prefix: str = "") -> list[str]:
    """What changed between two nested tables, one phrase per key.

    >>> difference({"plan": {"lr": 0.1}, "seed": 0}, {"plan": {"lr": 0.2}, "seed": 0})
    ['plan.lr was 0.1, now 0.2']
    """
    found: list[str] = []
    for key in sorted({*before, *after}):
        old, new = before.get(key), after.get(key)
        if isinstance(old, dict) or isinstance(new, dict):
            found += difference(old or {}, new or {}, f"{prefix}{key}.")
        elif old != new:
            found.append(f"{prefix}{key} was {_shown(old)}, now {_shown(new)}")
    return found


def _shown(value: Any) -> str:
    return "not set" if value is None else repr(value)

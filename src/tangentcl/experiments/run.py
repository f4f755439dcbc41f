"""Run an experiment: every method and seed gets a record; what is done is not done again."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tangentcl.data import TaskStream
from tangentcl.errors import ConfigError, RecordError, TangentclError
from tangentcl.experiments.build import build_backbone, build_method, build_plan, build_stream, transforms
from tangentcl.experiments.config import Experiment, MethodEntry, Table
from tangentcl.experiments.environment import environment
from tangentcl.methods import method_class
from tangentcl.records import Record, RecordWriter
from tangentcl.training import Runtime, StreamResult, TrainingPlan, run_stream
from tangentcl.training.checkpoint import save_learner


@dataclass(frozen=True)
class Outcome:
    """How one run ended: ``status`` is "done", "skipped" (was done before) or "failed" with a ``reason``."""

    label: str
    seed: int
    folder: Path
    status: str
    reason: str | None = None


Observe = Callable[[str, int, str, dict[str, Any]], None]  # label, seed, event, fields


def run_experiment(
    experiment: Experiment, out: str | Path, *, observe: Observe, overwrite: bool = False
) -> list[Outcome]:
    """Run every method and seed of ``experiment``; records lie in ``out/<experiment>/<label>/seed-<seed>``.

    A run whose record is done with the same settings is skipped. A run that fails is recorded with its reason and does
    not stop the others. All tables are checked before the first run starts.

    Args:
        experiment: what to run.
        out: folder of all records.
        observe: called with label, seed, event and fields, in the main process only.
        overwrite: run again what is done, running or was made with other settings.

    Raises:
        ConfigError: a table that cannot be used, or a record made with other settings (the difference is named).
        KeyboardInterrupt: after the running record was closed as interrupted.
    """
    out = Path(out)
    plans = {
        (entry.slug, seed): build_plan({**experiment.plan, **entry.plan}, seed)
        for entry in experiment.methods
        for seed in experiment.seeds
    }
    for entry in experiment.methods:
        method_class(entry.name)
    streams: dict[Any, TaskStream] = {}
    outcomes = []
    for seed in experiment.seeds:
        key = seed if experiment.stream.get("order_seed") == "seed" else None
        if key not in streams:
            streams[key] = build_stream(experiment.source, experiment.stream, seed)
        for entry in experiment.methods:
            folder = out / experiment.name / entry.slug / f"seed-{seed}"
            plan = plans[entry.slug, seed]
            outcomes.append(_run_one(experiment, entry, seed, plan, streams[key], folder, observe, overwrite))
    return outcomes


def _run_one(
    experiment: Experiment,
    entry: MethodEntry,
    seed: int,
    plan: TrainingPlan,
    stream: TaskStream,
    folder: Path,
    observe: Observe,
    overwrite: bool,
) -> Outcome:
    runtime = Runtime(device=plan.device, precision=plan.precision)
    settings = experiment.resolved(entry, seed)
    done = runtime.agree(str(_is_done(folder, settings)) if runtime.is_main and not overwrite else "False")
    if done == "True":
        return Outcome(entry.label, seed, folder, "skipped")
    features = build_backbone(experiment.backbone)
    if stream.source.modality != features.card.modality:
        raise ConfigError(
            f"the stream '{stream.name}' holds {stream.source.modality} samples, the backbone "
            f"'{features.card.name}' takes {features.card.modality}. Choose another [backbone] name."
        )
    ready = stream.with_transforms(*transforms(features, experiment.transform))
    method = build_method(settings["method"], features, seed)
    about = environment(features, ready, plan, runtime, experiment.seeds)
    writer = RecordWriter(folder, settings, about, overwrite=overwrite) if runtime.is_main else None

    def emit(event: str, fields: dict[str, Any]) -> None:
        if writer is not None:
            writer.event(event, fields)
            observe(entry.label, seed, event, fields)

    try:
        result = run_stream(method, ready, plan, runtime=runtime, emit=emit)
    except KeyboardInterrupt:
        if writer is not None:
            writer.finish("interrupted", "stopped by the user")
        raise
    except RecordError:
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
        return Outcome(entry.label, seed, folder, "failed", reason)
    if writer is not None:
        write_accuracy(writer, ready, result)
        if experiment.save:
            save_learner(method, folder / "checkpoints")
        writer.finish("done")
    return Outcome(entry.label, seed, folder, "done")


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


def _is_done(folder: Path, settings: Table) -> bool:
    """Whether ``folder`` holds the finished record of these settings.

    Raises:
        ConfigError: it holds the finished record of other settings.
    """
    if not (folder / "status.json").exists():
        return False
    record = Record.read(folder)
    if record.status.status != "done":
        return False
    differences = difference(dict(record.config), settings)
    if differences:
        raise ConfigError(
            f"{folder} holds a finished run with other settings: {'; '.join(differences)}. "
            f"Give the experiment or the method another name, or run with --overwrite."
        )
    return True


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

"""A run built again from its record: data, backbone and method as they were, and the learner at any task."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tangentcl.data import TaskStream
from tangentcl.errors import RecordError
from tangentcl.experiments.build import (
    build_backbone,
    build_method,
    build_plan,
    build_source,
    build_stream,
    transforms,
)
from tangentcl.methods import Method
from tangentcl.nn import Backbone
from tangentcl.records import Record
from tangentcl.training import Runtime, TrainingPlan
from tangentcl.training.checkpoint import LEARNER, restore_learner, task_folder
from tangentcl.training.loop import Emit
from tangentcl.training.stream import learn_task


@dataclass(frozen=True)
class RebuiltRun:
    """What a run was made of, made again; the method has learned nothing yet.

    Attributes:
        record: of the run.
        stream: under the transforms of the run.
        backbone: of the method.
        method: freshly constructed, with the weights that the run began with.
        plan: of the run.
        runtime: device and precision of the plan.
    """

    record: Record
    stream: TaskStream
    backbone: Backbone
    method: Method
    plan: TrainingPlan
    runtime: Runtime

    def restore(self, n_tasks: int) -> Method:
        """The method as it was after ``n_tasks`` tasks, from the record's files.

        Raises:
            RecordError: the record does not hold that learner. ModelError: it is damaged or does not fit.
        """
        checkpoints = self.record.folder / "checkpoints"
        folder = task_folder(checkpoints, n_tasks - 1)
        if n_tasks == len(self.stream) and not (folder / LEARNER).exists():
            folder = checkpoints
        if not (folder / LEARNER).exists():
            raise RecordError(f"{self.record.folder} does not hold the learner after task {n_tasks - 1}: {self._why()}")
        restore_learner(self.method, self.stream.tasks[:n_tasks], folder, seed=self.plan.seed)
        self.method.to(self.runtime.device).eval()
        return self.method

    def _why(self) -> str:
        if self.record.config.get("save") == "tasks":
            return f"the run is {self.record.status.status}, and {self.record.method} may have learned nothing there."
        return (
            f'it was run with save = {_toml(self.record.config.get("save"))}. Run it again with save = "tasks", '
            "or train the tasks before once more: --replay"
        )

    def replay(self, n_tasks: int, emit: Emit) -> Method:
        """The method after training the first ``n_tasks`` tasks again, which gives what the run had (same versions)."""
        self.method.to(self.runtime.device)
        for task in self.stream.tasks[:n_tasks]:
            learn_task(self.method, task, self.plan, self.runtime, emit)
        self.method.eval()
        return self.method


def rebuild(record: Record) -> RebuiltRun:
    """Stream, backbone, method and plan of a record, with the seeds of the run.

    Raises:
        RecordError: a record without settings, or data or weights that are not those of the run any more.
        ConfigError, DataError, ModelError: they cannot be made.
    """
    config = record.config
    tables = {name: _table(record, name) for name in ("source", "stream", "backbone", "plan", "method")}
    plan = build_plan(tables["plan"], record.seed)
    runtime = Runtime(device=plan.device, precision=plan.precision)
    stream = build_stream(build_source(tables["source"]), tables["stream"], record.seed)
    features = build_backbone(tables["backbone"])
    _check_same(record, "stream", "fingerprint", stream.source.fingerprint, "the data have changed since")
    _check_same(record, "backbone", "sha256", features.card.sha256, "the backbone has other weights than then")
    ready = stream.with_transforms(*transforms(features, dict(config.get("transform") or {})))
    method = build_method(tables["method"], features, record.seed)
    return RebuiltRun(record, ready, features, method, plan, runtime)


def _table(record: Record, name: str) -> dict[str, Any]:
    table = record.config.get(name)
    if not isinstance(table, Mapping):
        raise RecordError(f"{record.folder / 'config.toml'} has no table [{name}], so the run cannot be built again.")
    return dict(table)


def _check_same(record: Record, about: str, key: str, found: str, problem: str) -> None:
    described = record.environment.get(about)
    known = described.get(key) if isinstance(described, Mapping) else None
    if known is not None and known != found:
        raise RecordError(
            f"{record.folder}: {problem} ({about} {key} was {str(known)[:12]}, is {found[:12]}), so the learner cannot "
            "be built again."
        )


def _toml(value: object) -> str:
    return f'"{value}"' if isinstance(value, str) else str(value).lower()

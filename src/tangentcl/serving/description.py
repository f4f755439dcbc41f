"""What a trained learner is, apart from its tensors: the content of ``export.json``."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

import tangentcl
from tangentcl.data import Samples, Table, Task
from tangentcl.errors import ModelError, RecordError
from tangentcl.records import Accuracy, Record
from tangentcl.records.files import plain

EXPORT = "export.json"
FORMAT = 1
KIND = "tangentcl export"
VERSIONS = ("tangentcl", "python", "torch", "git_revision", "packages")  # of environment.json
DIGEST = "sha256"  # key of the digest over everything else in the file


@dataclass(frozen=True)
class Description:
    """All that is needed to build a learner again without its data, and what there is to say of it.

    Attributes:
        experiment, label, seed: of the run.
        method: name and keywords of the method.
        backbone: keywords of `tangentcl.nn.backbone`; pretrained: the card of what they made then.
        transform: changes to the backbone's transforms; transforms: of evaluation, in words.
        modality: "image", "text" or "array".
        scenario: "class", "domain", "task" or "few_shot".
        class_names: of all labels seen, in order.
        tasks: name, classes and number of training samples of each task learned. n_tasks: of the whole stream.
        precision, batch_size: of the run's evaluation.
        data: name, licence and citation of what was learned.
        metrics: of the whole run; accuracy: on each task learned, after the last of them (None where not evaluated);
            class_accuracy: of each class, likewise, or None.
        versions: of what the run was made with.
        files: SHA-256 of the files beside the description.
        onnx: how the ONNX file was checked; None without one.
    """

    experiment: str
    label: str
    seed: int
    method: dict[str, Any]
    backbone: dict[str, Any]
    pretrained: dict[str, Any]
    transform: dict[str, Any]
    transforms: dict[str, Any] | None
    modality: str
    scenario: str
    class_names: list[str]
    tasks: list[dict[str, Any]]
    n_tasks: int
    precision: str
    batch_size: int
    data: dict[str, Any]
    metrics: dict[str, Any]
    accuracy: list[float | None]
    class_accuracy: list[float | None] | None
    versions: dict[str, Any]
    files: dict[str, str] = field(default_factory=dict)
    onnx: dict[str, Any] | None = None

    @staticmethod
    def of_record(record: Record, after_task: int | None = None) -> Description:
        """What a run has learned, after a task (from 0) or at its end.

        Raises:
            RecordError: an unfinished run, no such task, or a record without the tables of an experiment.
        """
        accuracy = _finished(record)
        n_tasks = len(accuracy.task_names)
        last = n_tasks - 1 if after_task is None else after_task
        if not 0 <= last < n_tasks:
            raise RecordError(f"{record.folder} has the tasks 0 to {n_tasks - 1}, there is no task {last}.")
        config, environment = record.config, record.environment
        plan, stream = _table(record, "plan"), dict(environment.get("stream") or {})
        sizes = [task.get("n_train") for task in stream.get("tasks", [])] or [None] * n_tasks
        classes = [list(classes) for classes in accuracy.task_classes[: last + 1]]
        n_seen = len(accuracy.class_names) if accuracy.scenario == "domain" else len(set().union(*classes))
        source, card = dict(stream.get("source") or {}), environment.get("backbone")
        if not isinstance(card, Mapping):
            raise RecordError(f"{record.folder / 'environment.json'} has no backbone: was it written by hand?")
        row = accuracy.matrix[last, : last + 1]
        return Description(
            experiment=record.experiment,
            label=record.label,
            seed=record.seed,
            method=_table(record, "method"),
            backbone=_table(record, "backbone"),
            pretrained=dict(card),
            transform=dict(config.get("transform") or {}),
            transforms=(stream.get("transforms") or {}).get("evaluation"),
            modality=str(card.get("modality")),
            scenario=accuracy.scenario,
            class_names=list(accuracy.class_names[:n_seen]),
            tasks=[
                {"name": name, "classes": members, "n_train": size}
                for name, members, size in zip(accuracy.task_names, classes, sizes)
            ],
            n_tasks=n_tasks,
            precision=str(plan.get("precision", "fp32")),
            batch_size=int(plan.get("eval_batch_size", 256)),
            data={key: source.get(key) or "" for key in ("name", "licence", "citation")},
            metrics=dict(accuracy.metrics) if last == n_tasks - 1 else {},
            accuracy=[None if np.isnan(value) else float(value) for value in row],
            class_accuracy=_class_accuracy(accuracy, last, n_seen),
            versions={key: environment.get(key) for key in VERSIONS},
        )

    def stream(self) -> list[Task]:
        """The tasks learned, with their classes and without a sample."""
        none = Samples(Table([], np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)))
        made: list[Task] = []
        n_seen = 0
        for index, task in enumerate(self.tasks):
            if self.scenario == "domain":
                new = tuple(range(len(self.class_names))) if index == 0 else ()
            else:
                new = tuple(c for c in task["classes"] if c >= n_seen)
            n_seen += len(new)
            classes = tuple(task["classes"])
            made.append(Task(index, str(task["name"]), classes, new, n_seen, self.n_tasks, none, none, none))
        return made

    def to_json(self) -> bytes:
        """The content of ``export.json``, with a digest over it."""
        content = plain({"kind": KIND, "format": FORMAT, **asdict(self), "exported_with": _exporter()}, EXPORT)
        content[DIGEST] = _digest(content)
        return (json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()

    @staticmethod
    def read(folder: Path) -> Description:
        """Of an export folder.

        Raises:
            ModelError: not an export, of a later version, or damaged.
        """
        path = folder / EXPORT
        try:
            content = json.loads(path.read_bytes())
        except FileNotFoundError as error:
            raise ModelError(
                f"{folder} is neither an export (it has no {EXPORT}) nor the record of a run (no status.json). Records "
                "lie in runs/<experiment>/<label>/seed-<seed>; tangentcl export makes exports of them."
            ) from error
        except (OSError, ValueError) as error:
            raise ModelError(f"{path} is damaged: {error}. Copy the export again.") from error
        if not isinstance(content, dict) or content.get("kind") != KIND:
            raise ModelError(f"{path} does not describe an export of tangentcl (kind = {KIND!r}).")
        if content.get("format") != FORMAT:
            raise ModelError(
                f"{path} has format {content.get('format')!r}, this version of tangentcl reads {FORMAT}. Export the "
                "run again with this version, or load the folder with the version that wrote it."
            )
        known = content.pop(DIGEST, None)
        if known != _digest(content):
            raise ModelError(
                f"{path} is damaged: its content does not have the checksum it was written with. Copy the export "
                "again; a backbone that lies elsewhere now is given by backbone=... (--backbone)."
            )
        try:
            return Description(**{f.name: content[f.name] for f in fields(Description)})
        except KeyError as error:
            raise ModelError(f"{path} is damaged: {error.args[0]!r} is missing.") from error

    def with_files(self, files: Mapping[str, str], onnx: dict[str, Any] | None) -> Description:
        """The same with the files that lie beside it."""
        return replace(self, files=dict(files), onnx=onnx)


def file_digest(path: Path) -> str:
    """SHA-256 of a file, as ``export.json`` keeps it."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _exporter() -> dict[str, str]:
    return {"tangentcl": tangentcl.__version__, "torch": torch.__version__}


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _finished(record: Record) -> Accuracy:
    status = record.status
    if status.status != "done" or record.accuracy is None:
        why = f": {status.reason}" if status.reason else ""
        raise RecordError(
            f"the run in {record.folder} is not done but {status.status}{why}. Repeat its command, tangentcl run, "
            "which goes on with what is not done; then it can be used."
        )
    return record.accuracy


def _class_accuracy(accuracy: Accuracy, last: int, n_seen: int) -> list[float | None] | None:
    if accuracy.class_correct is None or accuracy.class_total is None:
        return None
    right, total = accuracy.class_correct[last, :n_seen], accuracy.class_total[:n_seen]
    return [None if np.isnan(r) or not n else float(r / n) for r, n in zip(right, total)]


def _table(record: Record, name: str) -> dict[str, Any]:
    table = record.config.get(name)
    if not isinstance(table, Mapping):
        raise RecordError(f"{record.folder / 'config.toml'} has no table [{name}], so the learner cannot be built.")
    return dict(table)

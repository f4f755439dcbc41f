"""Valid files of records, learners, moments and sketches, and what reading them gives."""

from __future__ import annotations

import functools
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.readable_data import Read
from tangentcl.data import ArrayTransform, Samples, class_incremental, from_arrays
from tangentcl.linalg import LowRankDiagonal, load_sketch, save_sketch
from tangentcl.methods import NCM
from tangentcl.nn import Backbone, FeatureStore, backbone, from_module
from tangentcl.nn.feature_store import Space
from tangentcl.protect.spectral import SpectralRegularizer
from tangentcl.records import Record, RecordWriter, TaskForecast, TaskTheory
from tangentcl.records.files import plain
from tangentcl.training import Checkpoints, TrainingPlan, run_stream
from tangentcl.training.checkpoint import load_learner, save_learner
from tangentcl.training.moments import load_moments, save_moments
from tangentcl.training.state_file import write_state

PARTS: dict[str, Any] = {
    "accuracy": {},
    "classes": [],
    "tasks": [],
    "at_risk": [],
    "flips": {},
    "modes": {},
    "cost": {},
}


def record(folder: Path) -> None:
    """A finished record with everything that a record can hold as text."""
    started(folder).finish()


def started(folder: Path) -> RecordWriter:
    """A record that is being written."""
    writer = RecordWriter(folder, {"name": "x", "seed": 3, "label": "ncm"}, {"threads": 4, "published": []})
    writer.event("run_started", {"loss": 0.25, "text": "größer"})
    writer.event("step", {"task": 0, "terms": {"ce": 1.5}})
    writer.accuracy(
        scenario="class",
        task_names=["0-1", "2-3"],
        class_names=["a", "b", "c", "d"],
        task_classes=[[0, 1], [2, 3]],
        n_test=[20, 30],
        matrix=[[0.9, None], [0.5, 0.8]],
        class_correct=[[8, 10, 0, 0], [4, 6, 12, 12]],
        class_total=[10, 10, 15, 15],
    )
    numbers = np.linspace(0, 1, 8, dtype=np.float32).reshape(4, 2)
    arrays = {"labels": np.arange(4) % 2, "tasks": np.zeros(4, dtype=np.int64), "outputs": numbers, "drift": -numbers}
    modes = {key: np.linspace(1, 2, 3) for key in ("values", "energy", "multiplicity")}
    writer.forecast(TaskForecast(1, "2-3", {"status": "forecast", **PARTS}, {**arrays, **modes}))
    writer.theory(TaskTheory(1, "2-3", {"status": "refused", "reason": "no features"}))
    return writer


def running(folder: Path) -> None:
    """A record whose process is gone before it finished."""
    started(folder)._events.close()


def read_record(folder: Path) -> Any:
    """Everything in a record."""
    found = Record.read(folder)
    accuracy = None if found.accuracy is None else plain(found.accuracy.to_json())
    forecasts = [(f.task, f.name, f.summary, {k: v.tolist() for k, v in f.arrays.items()}) for f in found.forecasts]
    theory = [(t.task, t.name, t.values) for t in found.theory]
    parts = (vars(found.status), found.config, found.environment, found.events, accuracy, forecasts, theory)
    return json.dumps([*parts, [p.describe() for p in found.published]], sort_keys=True)


def linear_backbone() -> Any:
    """A frozen layer over 4 numbers."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = nn.Linear(4, 8)
    return from_module(module, None, 8, name="linear", modality="array", sample=torch.zeros(2, 4))


def stream() -> Any:
    """Two tasks of two classes."""
    x = np.random.default_rng(0).normal(size=(24, 4)).astype(np.float32)
    y = np.arange(24) % 4
    made = class_incremental(from_arrays(x, y, x, y, modality="array"), n_tasks=2)
    return made.with_transforms(ArrayTransform(), ArrayTransform())


def learner(folder: Path) -> None:
    """A trained learner."""
    method = NCM(linear_backbone())
    run_stream(method, stream(), TrainingPlan(epochs=1, device="cpu"))
    save_learner(method, folder)


def learner_reader() -> Read:
    """Reads a learner into a method that is led through its tasks once."""
    method = NCM(linear_backbone())
    for task in stream():
        method.begin_task(task)

    def read(folder: Path) -> Any:
        state = load_learner(method, folder).state_dict()
        return {key: (value.dtype, value.tolist()) for key, value in state.items()}

    return read


def moments(folder: Path) -> None:
    """Moments of one task."""
    task = stream()[0]
    save_moments(NCM(linear_backbone()), task, folder, k=2, layers_k=0)


def read_moments(folder: Path) -> Any:
    """The tensors and the header of the moments."""
    return [(m.header, {key: value.tolist() for key, value in m.tensors().items()}) for m in load_moments(folder)]


def sketch(folder: Path) -> None:
    """A sketch."""
    made = LowRankDiagonal(3, k=2)
    made.update(torch.eye(3))
    save_sketch(made, folder / "sketch.safetensors")


def read_sketch(folder: Path) -> Any:
    """The numbers of a sketch."""
    found = load_sketch(folder / "sketch.safetensors")
    return found.header, {key: value.tolist() for key, value in found.tensors().items()}


def guard(folder: Path) -> None:
    """A regulariser."""
    SpectralRegularizer.of_old(nn.Linear(3, 2), torch.eye(3), k=2).save(folder / "guard.safetensors")


def read_guard(folder: Path) -> Any:
    """The settings and numbers of a regulariser."""
    found = SpectralRegularizer.load(folder / "guard.safetensors", nn.Linear(3, 2))
    return found.strength, found.k, {key: value.tolist() for key, value in found.state_dict().items()}


def state(folder: Path) -> None:
    """The state of a run at the end of a task."""
    write_state(
        folder / "state-000.safetensors", {"task": 0, "method": {"w": torch.arange(4.0)}, "result": [0.5, None]}
    )


def read_run_state(folder: Path) -> Any:
    """The state that a run would go on from."""
    found = Checkpoints(folder).found()
    if found is None:
        raise AssertionError("the state is gone")
    return repr(found.after)


@functools.cache
def _network() -> Backbone:
    return backbone()


def _known(folder: Path) -> list[list[float]]:
    images = np.random.RandomState(0).randint(0, 255, (3, 8, 8), dtype=np.uint8)
    source = from_arrays(np.concatenate([images, images]), np.arange(6) % 2, modality="image")
    samples = Samples(source.train, transform=_network().eval_transform)
    rows = FeatureStore(folder).rows(_network(), samples, Space({"precision": "bf16"}, folder / "space"))
    return [rows[i].tolist() for i in range(len(rows))]


def features(folder: Path) -> None:
    """A feature store of a few images."""
    _known(folder)
    (segment,) = folder.glob("space/*.safetensors")
    segment.rename(folder / "space" / "features.safetensors")


def read_features(folder: Path) -> list[list[float]]:
    """From a copy: what is damaged is replaced."""
    with tempfile.TemporaryDirectory() as aside:
        shutil.copytree(folder, Path(aside) / "store")
        return _known(Path(aside) / "store")

"""Runs that learned a little, with a Vision Transformer small enough for every method."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tangentcl.data import ImageTransform, TaskStream
from tangentcl.experiments import run as experiment_runs
from tangentcl.experiments.build import build_source, build_stream
from tangentcl.experiments.config import experiment_from
from tangentcl.methods import Method
from tangentcl.nn import Backbone, from_module
from tangentcl.nn.backbone import PooledTokens
from tangentcl.nn.vit import SmallViT
from tangentcl.training import Runtime
from tangentcl.training.evaluate import predicted_scores

STREAM = {"kind": "class_incremental", "base": 4, "increment": 3, "train_per_class": 5, "test_per_class": 3}
SIDE, WIDTH = 8, 24


def make_small_vit(seed: int = 7) -> Backbone:
    """A Vision Transformer for 8x8 pixels, in milliseconds."""
    module = SmallViT(image_size=SIDE, patch=4, width=WIDTH, depth=2, heads=3, stem=(4, 8), seed=seed)
    half = (0.5, 0.5, 0.5)
    return from_module(
        module,
        PooledTokens("mean"),
        WIDTH,
        name="small",
        modality="image",
        train_transform=ImageTransform(SIDE, half, half, train=True, scale=(0.8, 1.0), flip=0.0),
        eval_transform=ImageTransform(SIDE, half, half, crop_ratio=1.0),
        sample=torch.randn(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0)),
    )


@pytest.fixture
def small_vit() -> Callable[..., Backbone]:
    """`make_small_vit`, for tests."""
    return make_small_vit


@pytest.fixture
def small_backbones(monkeypatch: pytest.MonkeyPatch) -> None:
    """Experiments get `make_small_vit` for every ``[backbone]``."""

    def small(name: str = "bundled", *, pooling: str | None = None, trust_remote_code: bool = False) -> Backbone:
        return make_small_vit()

    monkeypatch.setattr("tangentcl.experiments.build.backbone", small)


@dataclass
class Learned:
    """A run: its record, the learner as it stood at the end, and the scores it gave to raw test images."""

    folder: Path
    method: Method
    stream: TaskStream

    def raw(self, task: int) -> list[Any]:
        """Raw test samples of a task."""
        test = self.stream[task].test
        return [test.table.inputs[i] for i in test.positions]

    def scores(self, task: int, batch_size: int = 256) -> np.ndarray:
        """Of the learner in memory, on the test samples of a task."""
        found = predicted_scores(self.method, self.stream[task].test, Runtime(device="cpu"), batch_size=batch_size)
        return found.numpy()


Learn = Callable[..., Learned]


@pytest.fixture
def learn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Learn:
    """Run one method on a small stream; further tables of the experiment by keyword."""

    def run(method: dict[str, Any], **tables: Any) -> Learned:
        kept: list[Method] = []
        save = experiment_runs.save_learner
        monkeypatch.setattr(
            experiment_runs, "save_learner", lambda method, folder: [kept.append(method), save(method, folder)]
        )
        plan = {"epochs": 1, "batch_size": 8, "device": "cpu", **tables.pop("plan", {})}
        document = {"name": "small", "stream": dict(STREAM), "plan": plan, "method": [method], **tables}
        experiment = experiment_from(document)
        outcome = experiment_runs.run_experiment(experiment, tmp_path / "runs")[0]
        assert outcome.status == "done", outcome.reason
        stream = build_stream(build_source(experiment.source), experiment.stream, 0)
        backbones = [m for m in kept[0].modules() if isinstance(m, Backbone)] if kept else []
        transform = backbones[0].eval_transform if backbones else None
        return Learned(outcome.folder, kept[0] if kept else None, stream.with_transforms(transform, transform))

    return run

"""Three streams of features: digits by class, digits by angle, CLINC150 by domain."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.head_table import Features
from tangentcl.data import TaskStream, class_incremental, domain_incremental, load
from tangentcl.data.transforms import ArrayTransform, to_image
from tangentcl.heads import RandomReLU
from tangentcl.nn import Backbone, FeatureStore, from_module
from tangentcl.nn import backbone as build_backbone
from tangentcl.training import TrainingPlan

UNITS = 192
ANGLES = (0, 20, 40, 60, 80)
VALIDATION = 0.2


class Pixels:
    """Images of 8 x 8 -> 64 values in [0, 1]."""

    def __call__(self, raw: Any, rng: np.random.Generator | None) -> Tensor:
        return torch.from_numpy(np.asarray(to_image(raw).convert("L"), dtype=np.float32).reshape(-1) / 255)

    def collate(self, items: list[Tensor]) -> Tensor:
        return torch.stack(items)

    def describe(self) -> dict[str, Any]:
        return {"kind": "pixels"}


@dataclasses.dataclass(frozen=True)
class Setting:
    """A stream, how its heads are trained, and how much may be remembered.

    Attributes:
        stream: of samples, by seed; with a number of tasks, the stream of so many that values are chosen on.
        backbone: that makes the features.
        k: directions, samples or anchors kept. fewer: smaller numbers that the sketches are compared at as well.
        plan: the recipe of every method that takes gradient steps.
        tuned_on: tasks that values are chosen on.
        grids: what is tried of each kind of row, as many values of each.
    """

    name: str
    stream: Callable[[int, int | None], TaskStream]
    tuned_on: int
    backbone: Callable[[], Backbone]
    k: int
    fewer: tuple[int, ...]
    plan: TrainingPlan
    grids: Mapping[str, tuple[float, ...]]


GRIDS: dict[str, tuple[float, ...]] = {
    "rate": (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0),
    "ewc": (1.0, 10.0, 1e2, 1e3, 1e4, 1e5, 1e6),
    "lwf": (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0),
    "threshold": (0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.99),
    "anchors": (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0),
    "strength": (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0),
    "ridge": (1e-3, 0.01, 0.1, 1.0, 10.0, 100.0, 1e3),
}


def random_features() -> Backbone:
    """Random ReLU features of pixels, drawn once."""
    lift = RandomReLU(64, UNITS, seed=0)
    sample = torch.zeros(2, 64)
    return from_module(lift, None, UNITS, name=f"relu{UNITS}", modality="image", eval_transform=Pixels(), sample=sample)


def mini_lm() -> Backbone:
    """all-MiniLM-L6-v2 in $TANGENTCL_MODELS, mean of tokens."""
    return build_backbone(os.path.expandvars("$TANGENTCL_MODELS/all-MiniLM-L6-v2"), pooling="mean")


def _digits(seed: int, tuning: int | None) -> TaskStream:
    source, held_out = load("digits", test_seed=seed), 0.0 if tuning is None else VALIDATION
    return class_incremental(source, 5, order_seed=seed, validation=held_out, split_seed=seed, tuning_tasks=tuning)


def _rotated(seed: int, tuning: int | None) -> TaskStream:
    source, held_out = load("digits", test_seed=seed), 0.0 if tuning is None else VALIDATION
    return domain_incremental(source, rotations=ANGLES, validation=held_out, split_seed=seed, tuning_tasks=tuning)


def _clinc150(seed: int, tuning: int | None) -> TaskStream:
    return class_incremental(load("clinc150"), groups=True, order_seed=seed, tuning_tasks=tuning)  # has its own split


SMALL = TrainingPlan(epochs=10, batch_size=32, lr=1e-2)  # 270 samples a task
LARGE = TrainingPlan(epochs=5, batch_size=128, lr=1e-2)  # 1,500
LONGER = TrainingPlan(epochs=15, batch_size=128, lr=1e-2)  # 1,350 of few pixels, which take longer to learn
SETTINGS = {
    "digits": Setting("digits", _digits, 5, random_features, 20, (10,), SMALL, GRIDS),
    "rotated": Setting("rotated", _rotated, 5, random_features, 50, (10,), LONGER, GRIDS),
    "clinc150": Setting("clinc150", _clinc150, 5, mini_lm, 150, (10, 50), LARGE, GRIDS),
}


class Streams:
    """Streams of a setting with features in place of samples; each sample passes the backbone once.

    Args:
        store: where features are kept on disk; those of a random map are not.
    """

    def __init__(self, setting: Setting, store: FeatureStore | None = None) -> None:
        self.setting, self.store = setting, store or FeatureStore()
        self.backbone = setting.backbone()
        self.known = Features(self.backbone, setting.plan)

    def test(self, seed: int) -> TaskStream:
        """All training samples, tested on the test samples."""
        return self._features(self.setting.stream(seed, None))

    def tuning(self, seed: int) -> TaskStream:
        """The first tasks, tested on samples held out of their training samples; no test sample is looked at."""
        return self._features(self.setting.stream(seed, self.setting.tuned_on))

    def _features(self, stream: TaskStream) -> TaskStream:
        evaluation = self.backbone.eval_transform
        assert evaluation is not None
        stream = stream.with_transforms(evaluation, evaluation)
        stored = self.store.stream(stream, self.backbone)
        return self.known.stream(stream) if stored is None else stored


def identity(width: int) -> Backbone:
    """The backbone of methods that see features."""
    made = from_module(
        nn.Identity(), None, width, name="features", modality="array", sample=torch.zeros(1, width),
        eval_transform=ArrayTransform(),
    )  # fmt: skip
    return made

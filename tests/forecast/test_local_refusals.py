"""What a local forecast refuses, and what it says then."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tangentcl.errors import ConfigError, DataError, ModelError
from tangentcl.forecast import SGD, Dynamics, Ridge, forecast_forgetting

BATCHES = [[0, 1, 2], [3, 4, 5], [5, 0, 3], [2, 4, 1]] * 2
LABELS = torch.tensor([0, 1, 2, 2, 1, 2])
OLD, NEW = torch.linspace(-1, 1, 20).double().view(5, 4), torch.linspace(-2, 1, 24).double().view(6, 4)


def sgd(loss: str = "cross_entropy", lr: float = 2e-3, batches: Sequence[Sequence[int]] = BATCHES) -> Dynamics:
    return SGD(lr=lr, batches=batches, momentum=0.5, loss=loss)


def mlp() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Tanh(), nn.Linear(8, 3)).double()


class Random(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.dropout(self.body(x), 0.5, training=True))


REFUSED: dict[str, tuple[type[Exception], str, Callable[[], Any]]] = {
    "memory": (
        ConfigError,
        r"would take up to \S+ GB; memory is 1e-06 GB.*fewer directions",
        lambda: forecast_forgetting(mlp(), OLD, (NEW, LABELS), sgd(), memory=1e3),
    ),
    "form": (
        ConfigError,
        r"form must be one of auto, exact, bilinear, ntk, got 'bilinar'\..*bilinear",
        lambda: forecast_forgetting(mlp(), OLD, (NEW, LABELS), sgd(), form="bilinar"),  # type: ignore[arg-type]
    ),
    "no old samples": (
        DataError,
        "old: expected a batch.* at least one sample",
        lambda: forecast_forgetting(mlp(), OLD[:0], (NEW, LABELS), sgd()),
    ),
    "no new samples": (
        DataError,
        "new: expected a batch.* at least one sample",
        lambda: forecast_forgetting(mlp(), OLD, (NEW[:0], LABELS[:0]), sgd()),
    ),
    "no labels": (
        DataError,
        r"new samples need labels: pass new=\(batch, labels\)",
        lambda: forecast_forgetting(mlp(), OLD, NEW, sgd()),
    ),
    "fewer labels": (
        DataError,
        "new has 6 samples and 5 labels",
        lambda: forecast_forgetting(mlp(), OLD, (NEW, LABELS[:5]), sgd()),
    ),
    "labels of old samples": (
        DataError,
        "old has 5 samples and 6 labels",
        lambda: forecast_forgetting(mlp(), (OLD, LABELS), (NEW, LABELS), sgd()),
    ),
    "a class without an output": (
        DataError,
        r"labels \[3\] of the new samples are not among the outputs",
        lambda: forecast_forgetting(mlp(), OLD, (NEW, LABELS + 1), sgd()),
    ),
    "seen": (
        DataError,
        "seen must be from 1 to the 3 outputs, got 4",
        lambda: forecast_forgetting(mlp(), OLD, (NEW, LABELS), sgd(), seen=4),
    ),
    "randomness": (
        ModelError,
        "Random is not deterministic",
        lambda: forecast_forgetting(Random().double(), OLD, (NEW, LABELS), sgd()),
    ),
    "nothing trains": (
        ModelError,
        "nothing of Sequential trains",
        lambda: forecast_forgetting(mlp().requires_grad_(False), OLD, (NEW, LABELS), sgd()),
    ),
    "refine": (
        ConfigError,
        "refine is a share of the training, at least 0 and below 1, got 1.0",
        lambda: forecast_forgetting(mlp(), OLD, (NEW, LABELS), sgd(), refine=1.0),
    ),
    "negative refine": (
        ConfigError,
        "at least 0 and below 1, got -0.1",
        lambda: forecast_forgetting(mlp(), OLD, (NEW, LABELS), sgd(), refine=-0.1),
    ),
    "divergence": (
        ConfigError,
        r"SGD diverges at step \d of 8.*smaller lr",
        lambda: forecast_forgetting(mlp(), OLD, (NEW, LABELS), sgd("squared_error", lr=1e60)),
    ),
    "no steps": (
        ConfigError,
        "Ridge has no steps to follow",
        lambda: forecast_forgetting(mlp(), OLD, (NEW, LABELS), Ridge(strength=1.0)),
    ),
    "batches of other samples": (
        DataError,
        "positions from 0 to 5 of the new samples, got",
        lambda: forecast_forgetting(mlp(), OLD, (NEW, LABELS), sgd(batches=[[0, 6]])),
    ),
    "labels of two axes": (
        DataError,
        r"expected 6 labels, one per new sample, got \[6, 1\]",
        lambda: forecast_forgetting(mlp(), OLD, (NEW, LABELS[:, None]), sgd()),
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_refused_says_what_to_do(kind: str) -> None:
    error, message, make = REFUSED[kind]
    with pytest.raises(error) as caught:
        make()
    assert re.search(message, str(caught.value), re.DOTALL), str(caught.value)

"""The PAC-Bayes certificate of a task that was just learned: what it needs of the method, and when there is none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from tangentcl.data import Samples
from tangentcl.forecast.head import Linear
from tangentcl.kernels.network import Network
from tangentcl.methods import Method
from tangentcl.theory import (
    Certificate,
    capacity_radius,
    exact_certificate,
    gaussian_head_error,
    sampled_certificate,
)
from tangentcl.training.stage import Stage

SAME = 1e-4  # relative difference up to which scores count as the same
ELSEWHERE = "the method's predictions changed by more than what trains, so the divergence does not cover them"
NOTHING = "nothing trains by gradient, so there is no move of weights to certify"
NO_DRAWS = "more than a linear head trains, and theory.draws is 0"


class Looked(Protocol):
    """What is remembered from before the task.

    Attributes:
        start: what trains. batch: a few samples. scores: on them; None where nothing trains.
        head: the linear layer that makes the method's scores; None without one.
        samples, labels: of the task.
    """

    start: dict[str, Tensor]
    batch: Any
    scores: Tensor | None
    head: Linear | None
    samples: Samples
    labels: Tensor


@torch.no_grad()
def scores_at(method: Method, x: Any, values: Mapping[str, Tensor] | None = None) -> Tensor:
    """Scores in evaluation mode, [n, C] on the CPU, with other values of some parameters."""
    network = Network(method, parameters=tuple(values or ()))
    with network.evaluating(), torch.no_grad():
        return network.at(dict(values or {}), x).float().cpu()


def certificate(
    stage: Stage, look: Looked, features: Tensor, *, draws: int, seed: int
) -> tuple[Certificate | None, str | None]:
    """The certificate of a task after it was learned, or why there is none.

    With what trains set back to the start the method has to score as it did then; otherwise its predictions depend on
    the task's samples by another way, and a divergence of weights does not cover that.

    Args:
        features: of the task's samples now, [n, d].
        draws: of the noise where more than the head trains; 0 = no certificate then. seed: of the noise.

    Raises:
        DataError: fewer than 8 samples.
    """
    method, labels = stage.method, look.labels
    if look.scores is None:
        return None, NOTHING
    again = scores_at(method, look.batch, look.start)
    near = SAME * _size(look.scores)
    if again.shape != look.scores.shape or not torch.allclose(again, look.scores, SAME, near, equal_nan=True):
        return None, ELSEWHERE
    now = {name: p.detach() for name, p in method.named_parameters() if name in look.start}
    distance = capacity_radius(look.start, now)
    trained = {id(p) for name, p in method.named_parameters() if name in look.start}
    if look.head is not None and trained <= {id(p) for p in look.head.parameters(recurse=False)}:
        f, reach = _head_scores(look.head, features, trained)
        return exact_certificate(distance, len(labels), lambda s: gaussian_head_error(f, labels, s * reach)), None
    if not draws:
        return None, NO_DRAWS
    return sampled_certificate(
        distance, len(labels), lambda pairs: _noisy_errors(stage, now, look.samples, pairs), draws=draws, seed=seed
    ), None


def _size(scores: Tensor) -> float:
    finite = scores[scores.isfinite()]
    return float(finite.abs().max()) if len(finite) else 0.0


def _head_scores(head: Linear, features: Tensor, trained: set[int]) -> tuple[Tensor, Tensor]:
    """Scores [n, C] of a head, and the length of what its trained weights are multiplied by, [n]."""
    weight, bias = (None if p is None else p.detach().double().cpu() for p in (head.weight, head.bias))
    assert weight is not None
    h = features.double().cpu()
    f = h @ weight.T if bias is None else h @ weight.T + bias
    square = h.square().sum(dim=1) * (id(head.weight) in trained)
    if head.bias is not None and id(head.bias) in trained:
        square = square + 1
    return f, square.sqrt()


@torch.no_grad()
def _noisy_errors(
    stage: Stage, values: Mapping[str, Tensor], samples: Samples, pairs: Sequence[tuple[float, int]]
) -> list[float]:
    """The share of wrong predictions with each noise, in one pass over the samples."""
    network = Network(stage.method, parameters=tuple(values))
    wrong = torch.zeros(len(pairs), dtype=torch.int64)
    with network.evaluating(), torch.no_grad():
        for x, y in samples.batches(stage.plan.eval_batch_size):
            x = stage.runtime.to_device(x)
            for i, (sigma, seed) in enumerate(pairs):
                generator = torch.Generator().manual_seed(seed)
                noisy = {
                    name: value + sigma * torch.randn(value.shape, generator=generator).to(value)
                    for name, value in values.items()
                }
                wrong[i] += int((network.at(noisy, x).argmax(dim=1).cpu() != y).sum())
    return (wrong / len(samples)).tolist()

"""Features of many samples, once."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from tangentcl.data.samples import Samples
from tangentcl.errors import ModelError
from tangentcl.nn.backbone import Backbone, BackboneCard, Batch, to_device


class FeatureExtractor(Protocol):
    """A `Backbone`, or a module around one that makes other features of it: batch -> ``[B, width]``."""

    width: int

    @property
    def card(self) -> BackboneCard: ...

    @property
    def device(self) -> torch.device: ...

    def modules(self) -> Iterator[nn.Module]: ...

    def eval(self) -> Any: ...

    def __call__(self, x: Batch) -> Tensor: ...


def extract_features(
    backbone: Backbone | FeatureExtractor, samples: Samples, batch_size: int = 256
) -> tuple[Tensor, Tensor]:
    """Features and labels of ``samples`` in order, in evaluation mode and without gradients.

    When ``torch.distributed`` is initialised each process computes one stretch of the samples, and every process gets
    all of them.

    Args:
        backbone: its modes are restored afterwards.
        samples: under the evaluation transform.
        batch_size: samples per forward pass.

    Returns:
        features, float32 on the CPU [n, d], and labels, int64 on the CPU [n].

    Raises:
        ModelError: a feature that is not finite; the sample's position is named.
    """
    n, shared = len(samples), dist.is_available() and dist.is_initialized()
    rank, world = (dist.get_rank(), dist.get_world_size()) if shared else (0, 1)
    edges = [n * r // world for r in range(world + 1)]
    part = samples.subset(range(edges[rank], edges[rank + 1])) if world > 1 else samples
    features, labels = _extract(backbone, part, batch_size)
    if world > 1:
        sizes = [b - a for a, b in itertools.pairwise(edges)]
        features, labels = _gather(features, sizes, backbone.device), _gather(labels, sizes, backbone.device)
    bad = (~features.isfinite().all(1)).nonzero().flatten()
    if len(bad):
        raise ModelError(
            f"{len(bad)} of {n} samples have features that are not finite; the first is sample {int(bad[0])} "
            f"(label {int(labels[bad[0]])}). Check that sample and the weights of {backbone.card.name}; "
            "in half precision try bf16 or float32."
        )
    return features, labels


@contextmanager
def evaluating(backbone: Backbone | FeatureExtractor) -> Iterator[None]:
    """Evaluation mode for a block; the mode of each module is restored afterwards."""
    modes = {module: module.training for module in backbone.modules()}
    backbone.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


@torch.no_grad()
def _extract(backbone: Backbone | FeatureExtractor, samples: Samples, batch_size: int) -> tuple[Tensor, Tensor]:
    device = backbone.device
    features, labels = [torch.empty(0, backbone.width)], [torch.empty(0, dtype=torch.int64)]
    order = samples.short_first()
    with evaluating(backbone):
        for x, y in samples.subset(order).batches(batch_size):
            features.append(backbone(to_device(x, device)).float().cpu())
            labels.append(y.cpu())
    back = torch.from_numpy(np.argsort(order))
    return torch.cat(features)[back], torch.cat(labels)[back]


def _gather(own: Tensor, sizes: list[int], device: torch.device) -> Tensor:
    """The stretches of all processes in order; padded to one length on the way, as all_gather needs."""
    target = device if dist.get_backend() == "nccl" else torch.device("cpu")
    padded = torch.zeros(max(sizes), *own.shape[1:], dtype=own.dtype, device=target)
    padded[: len(own)] = own.to(target)
    parts = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(parts, padded)
    return torch.cat([part[:size] for part, size in zip(parts, sizes)]).cpu()

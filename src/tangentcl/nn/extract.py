"""Features of many samples, once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from tangentcl.data.samples import Samples
from tangentcl.errors import ModelError
from tangentcl.nn.backbone import Backbone, BackboneCard, Batch, to_device
from tangentcl.processes import joined, own_stretch


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
    n = len(samples)
    start, stop = own_stretch(n)
    own = samples.subset(range(start, stop))
    features, labels = (joined(part) for part in _extract(backbone, own, batch_size))
    bad = (~features.isfinite().all(1)).nonzero().flatten()
    if len(bad):
        raise ModelError(
            f"{len(bad)} of {n} samples have features that are not finite; the first is sample {int(bad[0])} "
            f"(label {int(labels[bad[0]])}). Check that sample and the weights of {backbone.card.name}; "
            "in half precision try bf16 or float32."
        )
    return features, labels


@contextmanager
def evaluating(backbone: nn.Module | FeatureExtractor) -> Iterator[None]:
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

"""A batch whose features are known: backbones hand them on instead of computing them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class KnownFeatures:
    """Features of a batch, [B, width]. `tangentcl.nn.Backbone` returns them as they are.

    >>> KnownFeatures(torch.zeros(3, 2)).to(torch.device("cpu")).features.shape
    torch.Size([3, 2])
    """

    features: Tensor

    def to(self, device: torch.device, non_blocking: bool = False) -> KnownFeatures:
        """On another device."""
        return KnownFeatures(self.features.to(device, non_blocking=non_blocking))

    def __len__(self) -> int:
        return len(self.features)


class FeatureTransform:
    """Rows of features -> `KnownFeatures`; the transform of samples that a feature store has replaced.

    Args:
        made_by: description of the transform that the features were computed under.
    """

    def __init__(self, made_by: dict[str, Any]) -> None:
        self.made_by = made_by

    def __call__(self, raw: Any, rng: np.random.Generator | None) -> Tensor:
        return torch.from_numpy(np.array(raw, dtype=np.float32))

    def collate(self, items: list[Tensor]) -> KnownFeatures:
        return KnownFeatures(torch.stack(items))

    def describe(self) -> dict[str, Any]:
        return self.made_by

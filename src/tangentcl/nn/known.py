"""A batch whose features are known: backbones hand them on instead of computing them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

KNOWN = "known_features"  # the only key of such a batch


class FeatureTransform:
    """Rows of features -> a batch ``{KNOWN: [B, width]}``; the transform of samples that a feature store has replaced.

    Args:
        made_by: description of the transform that the features were computed under.
    """

    def __init__(self, made_by: dict[str, Any]) -> None:
        self.made_by = made_by

    def __call__(self, raw: Any, rng: np.random.Generator | None) -> Tensor:
        return torch.from_numpy(np.array(raw, dtype=np.float32))

    def collate(self, items: list[Tensor]) -> dict[str, Tensor]:
        return {KNOWN: torch.stack(items)}

    def describe(self) -> dict[str, Any]:
        return self.made_by


def known_features(x: Any) -> Tensor | None:
    """The features of a batch [B, width], if it holds them.

    >>> known_features({KNOWN: torch.ones(1, 2)}), known_features(torch.ones(1, 2))
    (tensor([[1., 1.]]), None)
    """
    return x.get(KNOWN) if isinstance(x, dict) else None

"""Where parameters stood, and how far they have gone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Anchors(nn.Module):
    r"""Values that parameters are held to: :math:`\sum_j \|p_j - p_j^*\|^2`.

    Args:
        parameters: by name; the anchors are their values now.

    >>> p = nn.Parameter(torch.tensor([1.0, 2.0]))
    >>> anchors = Anchors({"p": p})
    >>> _ = p.data.add_(3)
    >>> anchors.distance({"p": p}).item()
    18.0
    """

    def __init__(self, parameters: Mapping[str, Tensor]) -> None:
        super().__init__()
        for name, value in parameters.items():
            self.register_buffer(self._key(name), value.detach().clone())

    @staticmethod
    def _key(name: str) -> str:
        return name.replace(".", "__")

    def distance(self, parameters: Mapping[str, Tensor]) -> Tensor:
        """Squared Euclidean distance from the anchors, a scalar."""
        moved = [(p - self.get_buffer(self._key(name))).square().sum() for name, p in parameters.items()]
        return torch.stack(moved).sum()

    @torch.no_grad()
    def move_to(self, parameters: Mapping[str, Tensor]) -> None:
        """Anchor at these values from now on."""
        for name, value in parameters.items():
            self.get_buffer(self._key(name)).copy_(value)

    @contextmanager
    def in_place_of(self, parameters: Mapping[str, Tensor]) -> Iterator[None]:
        """The parameters have the anchors' values inside the block, and their own again after it."""
        own = {name: value.detach().clone() for name, value in parameters.items()}
        with torch.no_grad():
            for name, value in parameters.items():
                value.copy_(self.get_buffer(self._key(name)))
        try:
            yield
        finally:
            with torch.no_grad():
                for name, value in parameters.items():
                    value.copy_(own[name])

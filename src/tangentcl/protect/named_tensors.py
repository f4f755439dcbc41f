"""Tensors shaped like parameters, under the parameters' names, as buffers of a module."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn


class NamedTensors(nn.Module):
    """A mapping from names with dots, such as ``"head.weight"``, to buffers: saved, moved and counted by themselves.

    A slash stands for a dot in the state dict, since buffers cannot have one in their names.

    >>> kept = NamedTensors()
    >>> kept.fit({"head.weight": torch.ones(1, 2)})
    >>> kept.assign({"head.weight": torch.ones(1, 2)})
    >>> kept.fit({"head.weight": torch.ones(2, 2)})
    >>> kept["head.weight"], list(kept.state_dict())
    (tensor([[1., 1.],
            [0., 0.]]), ['/head/weight'])
    """

    def fit(self, like: Mapping[str, Tensor]) -> None:
        """Take the shapes of ``like``: names that are new start at zero, tensors that grew gain rows of zeros."""
        for name, value in like.items():
            key = _key(name)
            old = self._buffers.get(key)
            if old is None:
                old = value.new_zeros(0, *value.shape[1:]) if value.ndim else torch.zeros_like(value)
                self.register_buffer(key, old)
            if value.ndim and len(old) < len(value):
                self._buffers[key] = torch.cat([old, old.new_zeros(len(value) - len(old), *value.shape[1:])])

    @torch.no_grad()
    def assign(self, values: Mapping[str, Tensor]) -> None:
        """Copy the values of names that are there; shapes have to be those of the last `fit`."""
        for name, value in values.items():
            self[name].copy_(value.detach())

    def __getitem__(self, name: str) -> Tensor:
        return self.get_buffer(_key(name))

    def __contains__(self, name: str) -> bool:
        return _key(name) in self._buffers

    def __len__(self) -> int:
        return len(self._buffers)

    def items(self) -> Iterator[tuple[str, Tensor]]:
        """Names with dots, and tensors, in the order in which they came."""
        for key in self._buffers:
            yield key[1:].replace("/", "."), self.get_buffer(key)


def _key(name: str) -> str:
    return "/" + name.replace(".", "/")  # the first slash: no buffer can hide an attribute of the module


def trained_parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that a gradient step may change, by name.

    >>> layer = nn.Linear(2, 1)
    >>> _ = layer.bias.requires_grad_(False)
    >>> list(trained_parameters(layer))
    ['weight']
    """
    return {name: p for name, p in module.named_parameters() if p.requires_grad}

"""A frozen copy of modules that follows them from task to task."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from tangentcl.errors import ConfigError


class EmaBank(nn.Module):
    r"""Copies whose tensors are the running mean of those of ``live`` at the times of `update`.

    After t updates :math:`\bar p_t = \frac{t-1}{t} \bar p_{t-1} + \frac1t p_t`, the arithmetic mean ("adaptive" EMA of
    NTK-CL); with a decay m, :math:`\bar p_t = m \bar p_{t-1} + (1 - m) p_t` from the second update on, and m = 0 is
    the last task's weights. To first order in the weights the mean's features are the mean of the tasks' features, so
    the kernel stays near that of every past task. Before the first update a copy is what ``live`` starts as.

    The copies' tensors are buffers, since no gradient reaches them; they are in evaluation mode unless ``dropout``.

    Args:
        live: the modules to follow.
        decay: m in [0, 1), or None for the mean.
        dropout: leave dropout on in training mode.

    Raises:
        ConfigError: a decay outside [0, 1).

    >>> layer = nn.Linear(1, 1, bias=False)
    >>> bank = EmaBank(layer)
    >>> for value in (1.0, 2.0, 6.0):
    ...     _ = nn.init.constant_(layer.weight, value)
    ...     bank.update(layer)
    >>> round(bank.copy.weight.item(), 6)
    3.0
    """

    count: Tensor

    def __init__(self, live: nn.Module, *, decay: float | None = None, dropout: bool = False) -> None:
        super().__init__()
        if decay is not None and not 0 <= decay < 1:
            raise ConfigError(f"the decay of the running mean must be in [0, 1), got {decay}")
        self.copy = as_buffers(copy.deepcopy(live).eval())
        self.decay, self.dropout = decay, dropout
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def update(self, live: nn.Module) -> None:
        """Take in the weights that ``live`` has now."""
        self.count += 1
        mean = self.decay is None or int(self.count) == 1
        share = 1 / int(self.count) if mean else 1 - float(self.decay or 0)
        for kept, new in zip(self.copy.buffers(), live.parameters(), strict=True):
            kept.lerp_(new, share)

    def train(self, mode: bool = True) -> EmaBank:
        """Evaluation mode, unless dropout was asked for."""
        super().train(mode and self.dropout)
        return self


def as_buffers(module: nn.Module) -> nn.Module:
    """The module with every parameter, at any depth, turned into a buffer of its name.

    >>> len(list(as_buffers(nn.Linear(2, 2)).parameters()))
    0
    """
    for part in module.modules():
        for name, parameter in list(part.named_parameters(recurse=False)):
            delattr(part, name)
            part.register_buffer(name, parameter.detach())
    return module

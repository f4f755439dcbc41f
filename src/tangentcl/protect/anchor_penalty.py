"""A penalty on the drift of a model's outputs on some old samples that were kept."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tangentcl.errors import ConfigError
from tangentcl.kernels.batch import n_samples, tensors, with_tensors

Outputs = Callable[[nn.Module, Any], Tensor]


class AnchorPenalty(nn.Module):
    r""":math:`\frac1m \sum_{i \in B} \|f(x_i) - f_0(x_i)\|^2` on ``per_step`` of the anchors, in turn.

    The drift itself and no local approximation. Old samples are kept, and every step runs the model on a few of them:
    b beside a batch of B take b / B longer. Outputs that the model gained since are left out.

    Args:
        model: in the state to be kept.
        anchors: a batch of old samples, on the model's device.
        outputs: ``outputs(model, batch) -> [B, C]``.
        per_step: b.
    """

    kept: Tensor
    turn: Tensor

    def __init__(self, model: nn.Module, anchors: Any, outputs: Outputs, *, per_step: int = 16) -> None:
        super().__init__()
        if per_step < 1:
            raise ConfigError(f"per_step is a number of anchors, at least 1, got {per_step}")
        self.anchors, self.outputs = anchors, outputs
        self.n, self.per_step = n_samples(anchors), min(per_step, n_samples(anchors))
        self.register_buffer("turn", torch.zeros((), dtype=torch.int64))
        self.hold(model)

    def hold(self, model: nn.Module) -> None:
        """The outputs now are those to be kept."""
        modes = {module: module.training for module in model.modules()}
        model.eval()
        try:
            with torch.no_grad():
                parts = [
                    self.outputs(model, self._part(torch.arange(i, min(i + 64, self.n)))) for i in range(0, self.n, 64)
                ]
        finally:
            for module, mode in modes.items():
                module.training = mode
        self.register_buffer("kept", torch.cat(parts).float())

    def energy(self, model: nn.Module) -> Tensor:
        """Mean squared drift per anchor, summed over outputs, of the next few anchors."""
        place = (int(self.turn) + torch.arange(self.per_step)) % self.n
        if self.training:
            self.turn += self.per_step
        f = self.outputs(model, self._part(place)).float()
        kept = self.kept[place.to(self.kept.device)]
        return (f[:, : kept.shape[1]] - kept).square().sum(dim=1).mean()

    def _part(self, place: Tensor) -> Any:
        return with_tensors(self.anchors, [t[place.to(t.device)] for t in tensors(self.anchors)])

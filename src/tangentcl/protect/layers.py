"""Linear layers that keep what they put out on the inputs of old tasks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from tangentcl.data import Samples
from tangentcl.forecast.layer_moments import adapted_layers
from tangentcl.nn import Backbone, GrowingLinear
from tangentcl.nn.layer_inputs import input_moments
from tangentcl.nn.lora_stack import LoRAStack
from tangentcl.protect.projection import ProtectedSpace, uncovered_directions

HEAD = "head"


class ProtectedLayers(nn.Module):
    r"""A `ProtectedSpace` of input directions for a head and every linear layer of a backbone that trains.

    A plain layer is held as the matrix that multiplies inputs with a constant, so weight and bias move together. Of a
    `tangentcl.nn.lora_stack.LoRAStack` the A of its newest pair is projected out of the space: with :math:`A U = 0` the
    product :math:`B A x` is zero for x in the span of U, whatever B is. One pair that trains on for ever has no such
    rule: :math:`B A - B_0 A_0 = (B - B_0) A_0 + B (A - A_0)` asks for :math:`(B - B_0) A_0 U = 0` as well, and once
    :math:`A_0 U` has full rank, B may not move at all. So each task needs a pair of its own.

    Args:
        backbone, head: looked at and changed, but not part of this module.

    Attributes:
        layers: by name; the head first.
    """

    def __init__(self, backbone: Backbone, head: GrowingLinear) -> None:
        super().__init__()
        self._backbone = [backbone]  # in a list: its tensors are somebody else's
        found = {
            name: layer
            for name, layer in adapted_layers(backbone).items()
            # the output layer of torch's own attention is never called, so nobody sees its inputs
            if not isinstance(layer, NonDynamicallyQuantizableLinear)
        }
        self.layers: dict[str, nn.Module] = {HEAD: head, **found}
        self.spaces = nn.ModuleList(ProtectedSpace(self._width(name)) for name in self.layers)

    def _width(self, name: str) -> int:
        weight, bias = self._weights(name)
        return weight.shape[1] + (bias is not None)

    def _weights(self, name: str) -> tuple[Tensor, Tensor | None]:
        """What is held of a layer: weight and bias, or A."""
        layer: Any = self.layers[name]
        return (layer.pair[0].weight, None) if isinstance(layer, LoRAStack) else (layer.weight, layer.bias)

    def hold(self, head_rows: int | None = None) -> None:
        """What the layers put out along the protected directions is to stay, from now on.

        Args:
            head_rows: only so many rows of the head; None = all.
        """
        for space, name in zip(self._spaces(), self.layers):
            rows = _augmented(*self._weights(name))
            if isinstance(self.layers[name], LoRAStack):
                rows = torch.zeros_like(rows)
            space.hold(rows[:head_rows] if name == HEAD else rows)

    @torch.no_grad()
    def project(self) -> None:
        """Undo what moved the layers along the protected directions."""
        for space, name in zip(self._spaces(), self.layers):
            if space.held.numel():
                weight, bias = self._weights(name)
                rows = space.project(_augmented(weight, bias))
                weight.copy_(rows[:, : weight.shape[1]])
                if bias is not None:
                    bias.copy_(rows[:, -1])

    def grow(self, forward: Callable[[Any], Tensor], samples: Samples, threshold: float) -> None:
        """Protect what the inputs of some samples add, so that a share ``threshold`` of their energy is inside.

        Args:
            forward: runs a batch through all layers. samples: under the evaluation transform.
        """
        moments = input_moments(self._backbone[0], self.layers, samples, forward=forward, constant=True)
        for space, name in zip(self._spaces(), self.layers):
            d = len(space.basis)  # without the constant for a layer that has no bias
            space.grow(uncovered_directions(moments[name][:d, :d], space.basis, threshold))

    def _spaces(self) -> list[ProtectedSpace]:
        return [space for space in self.spaces if isinstance(space, ProtectedSpace)]

    @property
    def sizes(self) -> dict[str, int]:
        """Protected directions per layer."""
        return {name: space.k for name, space in zip(self.layers, self._spaces())}


def _augmented(weight: Tensor, bias: Tensor | None) -> Tensor:
    """The matrix that multiplies inputs with a constant, [d_out, d_in + 1]; the weight alone without a bias."""
    return weight.detach() if bias is None else torch.cat([weight, bias[:, None]], dim=1).detach()

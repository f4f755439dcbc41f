"""The low-rank updates of a backbone as the matrices that they add to its weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tangentcl.nn.heads import at_least_float32
from tangentcl.protect.named_tensors import NamedTensors


@dataclass(frozen=True)
class LoRAUpdate:
    r"""The update :math:`\Delta W = s B A` of one linear layer, by the names of its tensors in the model.

    Attributes:
        weight: of the frozen W, ``[d_out, d_in]``; a derivative with respect to it is one with respect to W + ΔW.
        down: of A, ``[r, d_in]``; up: of B, ``[d_out, r]``.
        scale: s.
    """

    weight: str
    down: str
    up: str
    scale: float

    def change(self, values: Mapping[str, Tensor], reference: Mapping[str, Tensor] | NamedTensors) -> Tensor:
        r""":math:`s (B A - B_{ref} A_{ref})`, ``[d_out, d_in]``, in float32 at least and one product of rank 2r."""
        up = torch.cat([at_least_float32(values[self.up]), -reference[self.up]], dim=1)  # [d_out, 2 r]
        down = torch.cat([at_least_float32(values[self.down]), reference[self.down].to(up)], dim=0)  # [2 r, d_in]
        with torch.autocast(up.device.type, enabled=False):
            return self.scale * (up @ down)


def lora_updates(model: nn.Module) -> list[LoRAUpdate]:
    """Those of all linear layers of a model that `tangentcl.nn.add_lora` adapted, in the model's order.

    >>> lora_updates(nn.Linear(2, 2))
    []
    """
    found = []
    for name, module in model.named_modules():
        layer: Any = module
        if isinstance(getattr(layer, "lora_A", None), nn.ModuleDict) and isinstance(layer.base_layer, nn.Linear):
            for adapter in layer.active_adapters:
                down, up = (f"{name}.{factor}.{adapter}.weight" for factor in ("lora_A", "lora_B"))
                found.append(LoRAUpdate(f"{name}.base_layer.weight", down, up, float(layer.scaling[adapter])))
    return found

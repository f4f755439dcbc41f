"""The two factors of every LoRA layer, and the second moment of what goes into it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from tangentcl.errors import DataError, ModelError
from tangentcl.forecast.layer_moments import adapted_layers
from tangentcl.forecast.moments import TaskMoments


@dataclass(frozen=True)
class LoraFactors:
    r"""One adapted layer, :math:`\Delta W = s B A`.

    Attributes:
        layer: its name in the model.
        up: B, float64 [d_out, r]. down: A, float64 [r, d_in]. scale: s.
        names: of the parameters B and A in the model.
    """

    layer: str
    up: Tensor = field(repr=False)
    down: Tensor = field(repr=False)
    scale: float
    names: tuple[str, str]

    @property
    def change(self) -> Tensor:
        r""":math:`\Delta W`, float64 [d_out, d_in]."""
        return self.scale * self.up @ self.down


def lora_factors(model: nn.Module, values: Mapping[str, Tensor] | None = None) -> list[LoraFactors]:
    """The factors of all layers of a model that train by LoRA of peft, in the model's order, on the CPU.

    Args:
        values: other values of some parameters, by their names in ``model``.

    Raises:
        ModelError: no such layer; or one with several adapters, a merged one, or one that is not s B A (DoRA).
    """
    found = []
    for name, layer in adapted_layers(model).items():
        made: Any = layer
        if not hasattr(made, "lora_A"):
            continue
        adapters = list(made.lora_A)
        if len(adapters) != 1 or made.merged or len(getattr(made, "lora_magnitude_vector", ())):
            raise ModelError(
                f"layer '{name}' has the adapters {adapters}{', merged' if made.merged else ''}; expected one LoRA "
                "adapter of two factors, not merged and without a magnitude (DoRA)"
            )
        prefix = f"{name}." if name else ""
        names = tuple(f"{prefix}lora_{which}.{adapters[0]}.weight" for which in "BA")
        known = dict(model.named_parameters())
        up, down = ((values or {}).get(n, known[n]).detach().to("cpu", torch.float64, copy=True) for n in names)
        found.append(LoraFactors(name, up, down, float(made.scaling[adapters[0]]), (names[0], names[1])))
    if not found:
        raise ModelError(f"no layer of {type(model).__name__} trains by LoRA. Add adapters: tangentcl.add_lora")
    return found


def input_moment(layer: str, moments: Sequence[TaskMoments]) -> Tensor:
    r"""Mean over the tokens of some tasks of :math:`a a^\top`, inputs of a layer, float64 [d_in, d_in].

    Raises:
        DataError: no task, or one without moments of this layer.
    """
    for task in moments:
        if layer not in task.layers:
            raise DataError(
                f"the moments of task {task.task} are of {len(task.layers)} layers {sorted(task.layers)[:2]}, and not "
                f"of '{layer}'. Make them with the same adapters, and layers_k above 0."
            )
    tokens = sum(task.layers[layer].n for task in moments)
    if not tokens:
        raise DataError(f"expected moments of the inputs of '{layer}' from at least one task with samples")
    total = sum((task.layers[layer].matrix() for task in moments), torch.tensor(0.0))
    return total[:-1, :-1] / tokens

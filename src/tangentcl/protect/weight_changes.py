"""How the matrices of trained layers have changed, and what that does to the layers' outputs on old inputs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tangentcl.errors import ModelError
from tangentcl.forecast.layer_moments import base_weight, is_linear
from tangentcl.nn.heads import at_least_float32
from tangentcl.protect.dense_energy import dense_energies
from tangentcl.protect.moment import Moment

Values = Mapping[str, Tensor]  # parameters by their names in the model
Key = tuple[Any, ...]


class WeightChanges(nn.Module, ABC):
    r"""Changes :math:`\Delta_l` [d_in + 1, d_out] of L layers of one shape since a reference, and their energies

    .. math:: e_l = \mathrm{tr}(\Delta_l^\top M_l \Delta_l\, G_l)

    with M the second moment of a layer's inputs a (with a constant last, which a bias is the weight of), and G the
    identity or the second moment of gradients at its outputs; both are low rank plus diagonal (`Moment`). All layers
    of a group are computed in one product, since a step of training waits for them.

    Args:
        layers: by their names in the model.
    """

    d_in: int
    d_out: int

    def __init__(self, layers: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.layers = tuple(layers)
        weight = base_weight(next(iter(layers.values())))
        self.d_in, self.d_out = weight.shape[1], weight.shape[0]

    @property
    @abstractmethod
    def names(self) -> tuple[str, ...]:
        """Parameters that are looked at, by their names in the model."""

    @abstractmethod
    def hold(self, values: Values) -> None:
        """Take these values as the reference."""

    @abstractmethod
    def energies(self, values: Values, inputs: Moment, outputs: Moment | None = None) -> Tensor:
        """e, [L]; differentiable in ``values``.

        Args:
            inputs: M, of width d_in + 1. outputs: G, of width d_out; None for the identity.
        """

    @abstractmethod
    def change(self, values: Values) -> Tensor:
        """The changes themselves, [L, d_in + 1, d_out]."""


class DenseChanges(WeightChanges):
    """Linear layers whose weight, bias or both train."""

    def __init__(self, layers: Mapping[str, nn.Module]) -> None:
        super().__init__(layers)
        self._own = {
            part: tuple(_name(name, part) for name in layers)
            for part in ("weight", "bias")
            if getattr(next(iter(layers.values())), part, None) is not None
            and getattr(next(iter(layers.values())), part).requires_grad
        }

    @staticmethod
    def key(layer: nn.Module) -> Key | None:
        """What layers of one group have in common; None for a layer of another kind."""
        if not is_linear(layer):
            return None
        trains = layer.weight.requires_grad, layer.bias is not None and layer.bias.requires_grad
        return tuple(layer.weight.shape), *trains

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(name for names in self._own.values() for name in names)

    def hold(self, values: Values) -> None:
        for part, names in self._own.items():
            stacked = torch.stack([values[name].detach() for name in names]).clone()
            self.register_buffer(part, stacked)
            self.d_out = stacked.shape[1]

    def energies(self, values: Values, inputs: Moment, outputs: Moment | None = None) -> Tensor:
        parts = {part: [values[name] for name in names] for part, names in self._own.items()}
        return dense_energies(parts, {part: self.get_buffer(part) for part in parts}, inputs, outputs)

    def change(self, values: Values) -> Tensor:
        return self._delta(values).transpose(1, 2)

    def _delta(self, values: Values) -> Tensor:
        moved = {
            part: _stacked(values, names) - at_least_float32(self.get_buffer(part)) for part, names in self._own.items()
        }
        any_moved = next(iter(moved.values()))
        weight = moved.get("weight", any_moved.new_zeros(len(self.layers), self.d_out, self.d_in))
        bias = moved.get("bias", any_moved.new_zeros(len(self.layers), self.d_out))
        return torch.cat([weight, bias[:, :, None]], dim=2)


class LoRAChanges(WeightChanges):
    r"""Layers with LoRA of peft: :math:`s (B A - B_0 A_0) = s\,(B - B_0)\,A + s\,B_0\,(A - A_0)`, never multiplied out.

    Written so that it is exactly zero at the reference, where a difference of products is rounding.
    """

    def __init__(self, layers: Mapping[str, Any]) -> None:
        super().__init__(layers)
        self._pairs = {
            adapter: [
                (_name(name, f"lora_A.{adapter}.weight"), _name(name, f"lora_B.{adapter}.weight")) for name in layers
            ]
            for adapter in _adapters(next(iter(layers.values())))
        }
        scales = [[float(layer.scaling[a]) for a in self._pairs] for layer in layers.values()]
        self.register_buffer("scale", torch.tensor(scales), persistent=False)

    @staticmethod
    def key(layer: Any) -> Key | None:
        """What layers of one group have in common; None for a layer of another kind."""
        adapters = _adapters(layer)
        if not adapters:
            return None
        ranks = tuple(layer.lora_A[a].weight.shape[0] for a in adapters)
        return (*layer.base_layer.weight.shape, adapters, ranks)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(name for pairs in self._pairs.values() for pair in pairs for name in pair)

    def hold(self, values: Values) -> None:
        for i, pairs in enumerate(self._pairs.values()):
            for part, names in zip("AB", zip(*pairs)):
                self.register_buffer(f"{part}{i}", torch.stack([values[name].detach() for name in names]).clone())

    def energies(self, values: Values, inputs: Moment, outputs: Moment | None = None) -> Tensor:
        left, right = self._factors(values)  # [L, q, d_out], [L, q, d_in]
        without_constant = Moment(inputs.rows[:, :, :-1], inputs.diagonal[:, :-1])
        outer = left @ left.transpose(1, 2) if outputs is None else outputs.gram(left)  # [L, q, q]
        return (outer * without_constant.gram(right)).sum(dim=(1, 2))

    def change(self, values: Values) -> Tensor:
        left, right = self._factors(values)
        delta = right.transpose(1, 2) @ left  # [L, d_in, d_out]
        return torch.cat([delta, torch.zeros_like(delta[:, :1])], dim=1)

    def _factors(self, values: Values) -> tuple[Tensor, Tensor]:
        left, right = [], []
        for i, pairs in enumerate(self._pairs.values()):
            a, b = (_stacked(values, names) for names in zip(*pairs))
            a0, b0 = (at_least_float32(self.get_buffer(f"{part}{i}")) for part in "AB")
            scale = self.get_buffer("scale")[:, i, None, None].to(a)
            left += [scale * (b - b0), scale * b0]
            right += [a, a - a0]
        return torch.cat(left, dim=2).transpose(1, 2), torch.cat(right, dim=1)


class ProbedChange(WeightChanges):
    """One adapted layer of any other kind (DoRA, IA3, OFT, ...): its matrix by what it does to the unit vectors.

    That takes d_in + 1 tokens through the layer in every step.
    """

    def __init__(self, layers: Mapping[str, nn.Module]) -> None:
        super().__init__(layers)
        ((self._name, layer),) = layers.items()
        self._layer = [layer]  # in a list: not a second name for its parameters
        self._parts = tuple(part for part, p in layer.named_parameters() if p.requires_grad)

    @staticmethod
    def key(layer: nn.Module) -> Key:
        """One group for every layer."""
        return (id(layer),)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(_name(self._name, part) for part in self._parts)

    def hold(self, values: Values) -> None:
        with torch.no_grad():
            self.register_buffer("matrix", self._matrix(values).clone())

    def energies(self, values: Values, inputs: Moment, outputs: Moment | None = None) -> Tensor:
        return _energies(self.change(values).transpose(1, 2), inputs, outputs)

    def change(self, values: Values) -> Tensor:
        return (self._matrix(values) - self.get_buffer("matrix"))[None]

    def _matrix(self, values: Values) -> Tensor:
        layer = self._layer[0]
        chosen = {part: values[_name(self._name, part)] for part in self._parts}
        sample = next(iter(chosen.values()))
        probes = torch.cat([torch.eye(self.d_in), torch.zeros(1, self.d_in)]).to(sample)
        mode = layer.training
        layer.eval()
        try:
            out: Tensor = torch.func.functional_call(layer, chosen, (probes,))
            out = at_least_float32(out)
        finally:
            layer.train(mode)
        return torch.cat([out[:-1] - out[-1], out[-1:]])


KINDS: tuple[type[LoRAChanges] | type[DenseChanges] | type[ProbedChange], ...] = (
    LoRAChanges,
    DenseChanges,
    ProbedChange,
)


def grouped(layers: Mapping[str, nn.Module]) -> list[WeightChanges]:
    """Trained layers of one kind and shape together, in the order of their first.

    >>> two = {"a": nn.Linear(3, 2), "b": nn.Linear(3, 2), "c": nn.Linear(2, 2)}
    >>> [group.layers for group in grouped(two)]
    [('a', 'b'), ('c',)]
    """
    found: dict[tuple[type[WeightChanges], Key], dict[str, nn.Module]] = {}
    for name, layer in layers.items():
        for kind in KINDS:
            key = kind.key(layer)
            if key is not None:
                found.setdefault((kind, key), {})[name] = layer
                break
    return [kind(members) for (kind, _), members in found.items()]


def total_change(groups: Sequence[WeightChanges], values: Values) -> dict[str, Tensor]:
    """The change of every layer, [d_in + 1, d_out] by the layer's name."""
    return {name: delta for group in groups for name, delta in zip(group.layers, group.change(values))}


def _energies(delta: Tensor, inputs: Moment, outputs: Moment | None) -> Tensor:
    """Of changes written out, [L, d_out, d_in + 1]."""
    if outputs is None:
        return inputs.form(delta).sum(dim=1)
    low_rank = inputs.form(outputs.rows.to(delta) @ delta).sum(dim=1)
    return low_rank + (inputs.form(delta) * outputs.diagonal.to(delta)).sum(dim=1)


def _stacked(values: Values, names: Sequence[str]) -> Tensor:
    return torch.stack([at_least_float32(values[name]) for name in names])


def _name(layer: str, part: str) -> str:
    return f"{layer}.{part}" if layer else part


def _adapters(layer: Any) -> tuple[str, ...]:
    """The active adapters of a layer that is nothing but LoRA around a linear layer; () for any other."""
    if not hasattr(layer, "lora_A") or not isinstance(getattr(layer, "base_layer", None), nn.Linear):
        return ()
    active = tuple(a for a in layer.active_adapters if a in layer.lora_A)
    variants = any(getattr(layer, "use_dora", {}).get(a, False) for a in active)
    plain = all(p.requires_grad == (".lora_" in f".{name}") for name, p in layer.named_parameters())
    biased = any(layer.lora_B[a].bias is not None for a in active)
    if layer.merged:
        raise ModelError("an adapter is merged into its layer; call unmerge_adapter() before protecting it")
    return () if variants or biased or not plain else active

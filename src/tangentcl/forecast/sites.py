"""Where a network is adapted: the trainable layers, and what a change of their weights does to their outputs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from tangentcl.kernels.network import Network
from tangentcl.nn.lora_stack import DecoupledStack, LoRAStack

Values = dict[str, Tensor]


class Site(ABC):
    """Layers whose change of output is linear in their input: ``dy = M(values) a``.

    Attributes:
        source: the module whose input is a; target: the module whose output is y.
        names: of its parameters in the network; start: their values where the change is 0.
    """

    source: nn.Module
    target: nn.Module
    names: tuple[str, ...]
    start: Values
    indexed = False  # whether inputs are whole numbers that name rows, and not factors

    def tokens(self, x: Tensor, n: int) -> Tensor:
        """What M multiplies, from the source's input for n samples, [n, T, d_in]."""
        return self.inputs(x.reshape(n, -1, x.shape[-1]))

    @abstractmethod
    def inputs(self, x: Tensor) -> Tensor:
        """What M multiplies, from the source's input, [..., d_in]."""

    @abstractmethod
    def change(self, a: Tensor, values: Values) -> Tensor:
        """Change of the target's output for inputs a [tokens, d_in], [tokens, d_out]."""

    def reduced(self, a: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs [T, d_in] and gradients [T, k, d_out] of one sample, as ``change`` wants to meet them."""
        return a, g

    @abstractmethod
    def numbers(self, k: int, tokens: int) -> int:
        """How many numbers are kept of one sample in k directions, with at most so many tokens."""

    @property
    def is_blind(self) -> bool:
        """Whether some of its parameters have no influence to first order, because others are zero."""
        return False


class LinearSite(Site):
    r"""A linear layer: :math:`\Delta y = (W - W_0) x + (b - b_0)`. The bias is a column for a constant input."""

    def __init__(self, module: nn.Module, weight: str | None, bias: str | None, start: Values) -> None:
        self.source = self.target = module
        self.weight, self.bias = weight, bias
        self.names = tuple(name for name in (weight, bias) if name is not None)
        self.start = {name: start[name] for name in self.names}

    def inputs(self, x: Tensor) -> Tensor:
        parts = [x] if self.weight else []
        return torch.cat([*parts, x.new_ones(*x.shape[:-1], 1)], dim=-1) if self.bias else x

    def numbers(self, k: int, tokens: int) -> int:
        d_out, d_in = self.source.weight.shape  # type: ignore[misc]
        return tokens * (int(d_in) + 1 + k * int(d_out))

    def change(self, a: Tensor, values: Values) -> Tensor:
        parts = []
        if self.weight:
            parts.append(values[self.weight] - self.start[self.weight])
        if self.bias:
            parts.append((values[self.bias] - self.start[self.bias])[:, None])
        return a @ torch.cat(parts, dim=1).T


class NormSite(Site):
    r"""A layer norm's scale and shift: :math:`\Delta y = \Delta\gamma \odot \hat x + \Delta\beta`.

    Summed over tokens at once: one product per sample, with the constant 1 as its input.
    """

    def __init__(self, module: nn.LayerNorm, names: tuple[str, ...], start: Values) -> None:
        self.source = self.target = self.module = module
        self.names = names
        self.start = {name: start[name] for name in names}

    def inputs(self, x: Tensor) -> Tensor:
        return nn.functional.layer_norm(x, self.module.normalized_shape, None, None, self.module.eps)

    def reduced(self, a: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
        parts = {"weight": (g * a[:, None]).sum(dim=0), "bias": g.sum(dim=0)}
        rows = torch.cat([parts[name.rsplit(".", 1)[-1]] for name in self.names], dim=1)  # [k, d or 2 d]
        return a.new_ones(1, 1), rows[None]

    def numbers(self, k: int, tokens: int) -> int:
        return 1 + k * sum(value.numel() for value in self.start.values())

    def change(self, a: Tensor, values: Values) -> Tensor:
        return a * torch.cat([values[name] - self.start[name] for name in self.names])


class EmbeddingSite(Site):
    r"""A table of vectors: :math:`\Delta y = (E - E_0)_i` for the index i."""

    indexed = True

    def __init__(self, module: nn.Embedding, name: str, start: Values) -> None:
        self.source = self.target = module
        self.names = (name,)
        self.start = {name: start[name]}
        self.padding = module.padding_idx

    def tokens(self, x: Tensor, n: int) -> Tensor:
        return x.reshape(n, -1, 1)

    def inputs(self, x: Tensor) -> Tensor:
        return x

    def reduced(self, a: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
        if self.padding is None:
            return a, g
        learned = a[:, 0] != self.padding  # the row of padding has no gradient
        return a[learned], g[learned]

    def numbers(self, k: int, tokens: int) -> int:
        (value,) = self.start.values()
        return tokens * (1 + k * value.shape[1])

    def change(self, a: Tensor, values: Values) -> Tensor:
        (name,), index = self.names, a[:, 0].long()
        return values[name][index] - self.start[name][index]


class LoRASite(Site):
    r"""Two linear layers in a row without bias, :math:`y = B A x` (Hu et al., ICLR 2022).

    To first order :math:`\Delta y = \Delta B\,A_0 x + B_0\,\Delta A\,x`. Where :math:`B_0 = 0` (or :math:`A_0 = 0`), as
    adapters are initialised, first order does not see the other factor at all; there the product is kept whole,
    :math:`\Delta y = B A x`.
    """

    def __init__(
        self, first: nn.Module, second: nn.Module, names: tuple[str, str], start: Values, first_order: bool
    ) -> None:
        self.source, self.target, self.names = first, second, names
        self.start = {name: start[name] for name in names}
        self.A, self.B = self.start.values()
        self._blind = not first_order and not (bool(self.B.any()) and bool(self.A.any()))

    @property
    def is_blind(self) -> bool:
        return self._blind

    def inputs(self, x: Tensor) -> Tensor:
        return x

    def numbers(self, k: int, tokens: int) -> int:
        return tokens * (self.A.shape[1] + k * self.B.shape[0])

    def change(self, a: Tensor, values: Values) -> Tensor:
        A, B = (values[name] for name in self.names)
        if self.is_blind:
            return (a @ A.T) @ B.T - (a @ self.A.T) @ self.B.T
        return (a @ self.A.T) @ (B - self.B).T + (a @ (A - self.A).T) @ self.B.T


def wide_values(network: Network) -> Values:
    """Copies of the parameters that move, in float32 or more: steps smaller than the rounding of bfloat16 add up."""
    return {
        name: value.to(torch.promote_types(value.dtype, torch.float32), copy=True)
        for name, value in network.values.items()
    }


def find_sites(
    network: Network, apart: nn.Module | None, *, first_order: bool = False
) -> tuple[list[Site], tuple[str, ...]]:
    """Linear and LoRA layers that train, and the names of all other parameters that move.

    Args:
        network: its parameters are those that move.
        apart: a module that is treated elsewhere, the head.
        first_order: leave out the product of LoRA factors where it is not of first order.
    """
    names = {id(p): name for name, p in network.parameters.items()}
    start = wide_values(network)  # the model may move on
    excluded = {id(p) for p in apart.parameters()} if apart is not None else set()
    pairs = {id(first): second for first, second in _pairs(network.model)}
    seconds = {id(second) for second in pairs.values()}
    sites: list[Site] = []
    for module in network.model.modules():
        own = {key: names.get(id(p)) for key, p in module.named_parameters(recurse=False) if id(p) not in excluded}
        second = pairs.get(id(module))
        if second is not None:
            pair = (own.get("weight"), names.get(id(second.weight)))
            if pair[0] is not None and pair[1] is not None:
                sites.append(LoRASite(module, second, (pair[0], pair[1]), start, first_order))
                continue
        if second is not None or id(module) in seconds or not any(own.values()) or not set(own) <= {"weight", "bias"}:
            continue
        if isinstance(module, nn.Linear):
            sites.append(LinearSite(module, own.get("weight"), own.get("bias"), start))
        elif isinstance(module, nn.Embedding) and own.get("weight"):
            sites.append(EmbeddingSite(module, str(own["weight"]), start))
        elif isinstance(module, nn.LayerNorm) and len(module.normalized_shape) == 1:
            sites.append(NormSite(module, tuple(name for name in own.values() if name is not None), start))
    counts: dict[str, int] = {}
    for name in (name for site in sites for name in site.names):
        counts[name] = counts.get(name, 0) + 1
    sites = [site for site in sites if all(counts[name] == 1 for name in site.names)]
    known = {name for site in sites for name in site.names}
    apart_names = {name for name, p in network.parameters.items() if id(p) in excluded}
    return sites, tuple(name for name in network.parameters if name not in known | apart_names)


def _pairs(model: nn.Module) -> Iterator[tuple[nn.Linear, nn.Linear]]:
    """The factors A and B of every LoRA layer that computes ``B A x``: of peft with one active adapter, of stacks."""
    for layer in model.modules():
        if isinstance(layer, (LoRAStack, DecoupledStack)) and layer.A is not None and layer.B is not None:
            if layer.A.weight.requires_grad:
                yield layer.A, layer.B
            continue
        first, second = getattr(layer, "lora_A", None), getattr(layer, "lora_B", None)
        active: Any = getattr(layer, "active_adapters", None)
        if not isinstance(first, nn.ModuleDict) or not isinstance(second, nn.ModuleDict) or not active:
            continue
        dora = getattr(layer, "use_dora", {})
        for name in active:
            if name not in first or (isinstance(dora, dict) and dora.get(name)):
                continue
            A, B = first[name], second[name]
            if isinstance(A, nn.Linear) and isinstance(B, nn.Linear) and A.bias is None and B.bias is None:
                yield A, B

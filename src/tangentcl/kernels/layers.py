"""Per-sample Jacobians layer by layer, from each layer's inputs and the gradients of its outputs.

One forward pass, then one backward pass per output that stops at the outputs of trainable layers: no weight gradient is
ever formed for a batch, and nothing for a frozen layer. A LoRA layer of peft is two linear layers in a row here.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tangentcl.kernels.batch import n_samples, samples
from tangentcl.kernels.network import Network
from tangentcl.kernels.tangent import Factors, Tangent


@dataclass
class Layer:
    """A module that owns parameters that move, and what went through it in one forward pass.

    Attributes:
        weight, bias: their names in the model; None for one that does not move.
    """

    module: nn.Module
    weight: str | None = None
    bias: str | None = None
    inputs: list[Tensor] = field(default_factory=list)
    outputs: list[Tensor] = field(default_factory=list)

    @property
    def is_norm(self) -> bool:
        return isinstance(self.module, nn.LayerNorm)

    def input(self, n: int) -> Tensor:
        """What the weight multiplies, of all calls, as tokens [n, T, d_in]; normalised for a layer norm."""
        found = torch.cat([_tokens(x.detach(), n, self.width(x)) for x in self.inputs], dim=1)
        if isinstance(self.module, nn.LayerNorm):
            d = found.shape[-1]
            shaped = found.view(n, -1, *self.module.normalized_shape)
            found = F.layer_norm(shaped, self.module.normalized_shape, None, None, self.module.eps).view(n, -1, d)
        return found

    def width(self, x: Tensor) -> int:
        """Numbers per token of an input or output."""
        if isinstance(self.module, nn.LayerNorm):
            return self.module.weight.numel()
        return x.shape[-1]

    def weight_rows(self, a: Tensor, g: Tensor) -> Tensor:
        r"""Gradient of the weight per sample, :math:`\sum_t g_t a_t^\top`, [n, p]: a [n, T, d_in], g [n, T, d_out]."""
        if self.is_norm:
            return (g * a).sum(dim=1)
        return torch.bmm(g.transpose(1, 2), a).flatten(1)  # [n, d_out d_in]


def _tokens(x: Tensor, n: int, width: int) -> Tensor:
    """[n, ..., d], or [n k, ..., d] with samples outermost, as [n, T, d]."""
    return x.reshape(n, -1, width)


def find_layers(network: Network) -> tuple[list[Layer], str]:
    """The layers that own the parameters, and why there is no rule for some of them ("" if there is for all)."""
    names = {id(p): name for name, p in network.parameters.items()}
    layers: list[Layer] = []
    owned: list[str] = []
    for prefix, module in network.model.named_modules():
        own = {key: names[id(p)] for key, p in module.named_parameters(recurse=False) if id(p) in names}
        if not own:
            continue
        weight = getattr(module, "weight", None)
        linear = isinstance(weight, Tensor) and weight.ndim == 2 and not isinstance(module, nn.Embedding)
        if not set(own) <= {"weight", "bias"} or not (linear or isinstance(module, nn.LayerNorm)):
            return [], f"there is no rule for '{prefix}' ({type(module).__name__})"
        layers.append(Layer(module, own.get("weight"), own.get("bias")))
        owned += own.values()
    if len(owned) != len(set(owned)):
        return [], "some layers share a parameter"
    return layers, ""


@contextmanager
def _recording(layers: list[Layer]) -> Iterator[None]:
    """Keep inputs and outputs of the layers during a forward pass."""

    def keep(layer: Layer) -> Any:
        def hook(module: nn.Module, inputs: tuple[Any, ...], keywords: dict[str, Any], output: Any) -> None:
            layer.inputs.append([*inputs, *keywords.values()][0])
            layer.outputs.append(output)

        return hook

    handles = [layer.module.register_forward_hook(keep(layer), with_kwargs=True) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _forward(network: Network, layers: list[Layer], x: Any) -> Tensor:
    for layer in layers:
        layer.inputs, layer.outputs = [], []
    with _recording(layers):
        return network(x)


def _pull(f: Tensor, layers: list[Layer], n: int, more: bool) -> dict[int, Tensor]:
    """Gradients of a number at the outputs of each layer that was called: its index -> tokens [n, T, d_out]."""
    wanted = [out for layer in layers for out in layer.outputs]
    found = torch.autograd.grad(f, wanted, retain_graph=more, allow_unused=True, materialize_grads=True)
    left = iter(found)
    result = {}
    for i, layer in enumerate(layers):
        if layer.outputs:
            result[i] = torch.cat([_tokens(next(left), n, layer.width(out)) for out in layer.outputs], dim=1)
    return result


@dataclass(frozen=True)
class Plan:
    """Which weights stay factors, and the columns of all other parameters in the rows."""

    factored: frozenset[str]
    columns: dict[str, slice]
    n_columns: int

    @classmethod
    def of(cls, network: Network, factored: frozenset[str]) -> Plan:
        columns, start = {}, 0
        for name, p in network.parameters.items():
            if name not in factored:
                columns[name] = slice(start, start + p.numel())
                start += p.numel()
        return cls(factored, columns, start)


class LayerRows:
    """Jacobians by hooks on the layers that own the parameters: rows in the order of the network, or factors.

    Args:
        layers: from `find_layers`, accepted by `disagreement`; factored: names of weights to keep as factors.
    """

    def __init__(self, network: Network, layers: list[Layer], factored: frozenset[str] = frozenset()) -> None:
        self.network, self.layers = network, layers
        self.plan = Plan.of(network, factored)

    def __call__(self, x: Any) -> Tangent:
        n, plan = n_samples(x), self.plan
        f = _forward(self.network, self.layers, x)
        C = f.shape[1]
        rows = f.new_zeros(n, C, plan.n_columns)
        inputs = {i: layer.input(n) for i, layer in enumerate(self.layers) if layer.outputs}
        kept: dict[str, list[Tensor]] = {name: [] for name in plan.factored}
        for c in range(C):
            total = f[:, c].sum()
            gradients = _pull(total, self.layers, n, c + 1 < C) if total.requires_grad else {}
            for i, g in gradients.items():
                layer = self.layers[i]
                if layer.weight in plan.factored:
                    kept[str(layer.weight)].append(g)
                elif layer.weight is not None:
                    rows[:, c, plan.columns[layer.weight]] = layer.weight_rows(inputs[i], g)
                if layer.bias is not None:
                    rows[:, c, plan.columns[layer.bias]] = g.sum(dim=1)
        factors = {
            str(layer.weight): Factors(inputs[i], torch.stack(kept[str(layer.weight)], dim=1))
            for i, layer in enumerate(self.layers)
            if layer.weight in plan.factored
        }
        self._forget()
        return Tangent(rows.flatten(0, 1), factors)

    def _forget(self) -> None:
        for layer in self.layers:
            layer.inputs, layer.outputs = [], []


def disagreement(network: Network, layers: list[Layer], x: Any) -> tuple[str, dict[str, int]]:
    """Why the rules do not hold on this model ("" if they do), and the tokens T that each weight saw.

    Autograd's gradient of a random output of the first of two samples has to equal the first row of every rule, and the
    second row has to be zero. This finds layers that are not linear, samples that are not the outermost axis,
    outputs changed in place, and parameters that are used outside their layer.
    """
    few = samples(x, 0, 2)
    n = n_samples(few)
    f = _forward(network, layers, few)
    generator = torch.Generator().manual_seed(0)
    total = (f[0] * torch.randn(f.shape[1], generator=generator).to(f)).sum()
    called = [out for layer in layers for out in layer.outputs]
    if not total.requires_grad or not called:
        return "the outputs depend on no layer that has a rule", {}
    if not all(isinstance(t, Tensor) and t.is_floating_point() and t.numel() % n == 0 for t in called):
        return "a layer does not return one tensor", {}
    true = torch.autograd.grad(
        total, list(network.parameters.values()), retain_graph=True, allow_unused=True, materialize_grads=True
    )
    truth = dict(zip(network.parameters, true))
    scale = torch.stack([g.norm() for g in true]).norm()
    tolerance = float(scale) * torch.finfo(f.dtype).eps ** 0.5
    tokens: dict[str, int] = {}
    try:
        gradients = _pull(total, layers, n, False)
        for i, layer in enumerate(layers):
            found: dict[str, Tensor] = {}
            if i in gradients:
                g, a = gradients[i], layer.input(n)
                found = {str(layer.weight): layer.weight_rows(a, g)} if layer.weight else {}
                found.update({layer.bias: g.sum(dim=1)} if layer.bias else {})
                tokens[str(layer.weight)] = a.shape[1]
            for name in filter(None, (layer.weight, layer.bias)):
                rows = found.get(name, truth[name].new_zeros(n, truth[name].numel()))
                expected = torch.cat([truth[name].view(1, -1), rows.new_zeros(n - 1, rows.shape[1])])
                if float((rows - expected).norm()) > tolerance:
                    return f"the rule for a linear layer does not hold for '{name}'", tokens
    except RuntimeError as error:  # shapes that no rule fits
        return f"the rules do not fit the shapes ({str(error).splitlines()[0][:120]})", tokens
    return "", tokens

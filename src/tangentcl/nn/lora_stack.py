"""Linear layers that gain a pair of LoRA factors with every task, of which only the newest trains."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tangentcl.errors import ModelError
from tangentcl.nn.backbone import Backbone
from tangentcl.nn.peft import refuse_adapted, target_layers
from tangentcl.nn.roles import linear_layers

INITIAL_MAGNITUDE = 0.8  # of the newest pair, in the released code of SD-LoRA


class LoRAStack(nn.Module):
    r"""A frozen linear layer with the sum of past LoRA products, and one pair that trains.

    .. math:: y = (W + D) x + b + B A x, \qquad D = \sum_{i < t} B_i A_i.

    `begin` adds the current product to D and starts a new pair, so neither cost nor memory grows with the tasks. The
    pair stays in its place until then: whoever looks at a task that was learned still finds it.

    Why not several adapters of peft: each would be one more pair of products in every forward pass, and to merge one
    writes into the frozen weights, which are the reference that checkpoints and exports leave out.

    Args:
        base_layer: frozen by the caller.
        keep_directions: whether the rows A of past pairs are kept, in ``old_A`` [sum of ranks, d].

    Attributes:
        A, B: the current pair, linear layers d -> rank -> m without bias; None before the first `begin`. A is drawn as
            in LoRA (Hu et al., ICLR 2022), B is zero.
        merged: D, ``[m, d]``.

    Shapes: ``[..., d]`` -> ``[..., m]``.

    >>> layer = LoRAStack(nn.Linear(3, 2))
    >>> layer.begin(rank=1)
    >>> x = torch.ones(4, 3)
    >>> bool(torch.equal(layer(x), layer.base_layer(x))), [name for name, _ in layer.named_parameters()][2:]
    (True, ['A.weight', 'B.weight'])
    """

    merged: Tensor
    old_A: Tensor

    def __init__(self, base_layer: nn.Linear, *, keep_directions: bool = False) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.keep_directions = keep_directions
        self.A: nn.Linear | None = None
        self.B: nn.Linear | None = None
        weight = base_layer.weight.detach()
        self.register_buffer("merged", torch.zeros_like(weight))
        if keep_directions:
            self.register_buffer("old_A", weight.new_zeros(0, base_layer.in_features))

    @property
    def pair(self) -> tuple[nn.Linear, nn.Linear]:
        """The current A and B.

        Raises:
            ModelError: before the first `begin`.
        """
        if self.A is None or self.B is None:
            raise ModelError("a stack has no pair before its first task. Call begin.")
        return self.A, self.B

    @torch.no_grad()
    def begin(self, rank: int) -> None:
        """Merge the current pair, if there is one, and start a new one from the global torch generator."""
        if self.A is not None and self.B is not None:
            self.merged = self.merged + self.B.weight @ self.A.weight
            if self.keep_directions:
                self.old_A = torch.cat([self.old_A, self.A.weight.detach()])
        self.A, self.B = _pair(self.base_layer, rank)

    def forward(self, x: Tensor) -> Tensor:
        if self.A is None or self.B is None:
            y: Tensor = self.base_layer(x)
            return y
        return F.linear(x, self.base_layer.weight + self.merged, self.base_layer.bias) + self.B(self.A(x))


class DecoupledStack(nn.Module):
    r"""A frozen linear layer with past LoRA directions of learnable magnitude, and one pair that trains.

    .. math:: y = W x + b + \sum_{k < t} \alpha_k \frac{B_k A_k}{\|B_k\|_F \|A_k\|_F} x + \alpha_t B_t A_t x.

    `begin` turns the current pair into a direction whose magnitude makes up for its length, so the layer computes what
    it did. Past pairs lie side by side and are one pair of products, whose cost grows with the sum of their ranks.

    Args:
        base_layer: frozen by the caller.

    Attributes:
        A, B: the current pair as in `LoRAStack`.
        old_A, old_B: past directions, ``[R, d]`` and ``[m, R]``, each pair's factors at length one.
        magnitudes: :math:`\alpha`, a parameter ``[t + 1]``, the current pair's last; it starts at 0.8.

    Shapes: ``[..., d]`` -> ``[..., m]``.

    >>> layer = DecoupledStack(nn.Linear(3, 2))
    >>> layer.begin(rank=2), layer.begin(rank=1)
    (None, None)
    >>> layer.old_A.shape, layer.magnitudes.shape
    (torch.Size([2, 3]), torch.Size([2]))
    """

    old_A: Tensor
    old_B: Tensor
    owner: Tensor

    def __init__(self, base_layer: nn.Linear) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.A: nn.Linear | None = None
        self.B: nn.Linear | None = None
        weight = base_layer.weight.detach()
        self.magnitudes = nn.Parameter(weight.new_zeros(0))
        self.register_buffer("old_A", weight.new_zeros(0, base_layer.in_features))
        self.register_buffer("old_B", weight.new_zeros(base_layer.out_features, 0))
        owner = torch.zeros(0, dtype=torch.int64, device=weight.device)
        self.register_buffer("owner", owner, persistent=False)  # which magnitude each past row of A has, [R]

    @torch.no_grad()
    def begin(self, rank: int) -> None:
        """Turn the current pair, if there is one, into a direction, and start a new one of magnitude 0.8."""
        past = self.magnitudes.detach()  # [t]
        if self.A is not None and self.B is not None:
            a, b = self.A.weight.detach(), self.B.weight.detach()
            lengths = a.norm(), b.norm()
            tiny = torch.finfo(a.dtype).tiny  # a pair that was never trained is zero and stays it
            self.old_A = torch.cat([self.old_A, a / lengths[0].clamp(min=tiny)])
            self.old_B = torch.cat([self.old_B, b / lengths[1].clamp(min=tiny)], dim=1)
            self.owner = torch.cat([self.owner, self.owner.new_full((len(a),), len(past) - 1)])
            past = torch.cat([past[:-1], past[-1:] * lengths[0] * lengths[1]])
        self.magnitudes = nn.Parameter(torch.cat([past, past.new_full((1,), INITIAL_MAGNITUDE)]))
        self.A, self.B = _pair(self.base_layer, rank)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.base_layer(x)
        if self.A is None or self.B is None:
            return y
        if len(self.owner):
            y = y + F.linear(F.linear(x, self.old_A) * self.magnitudes[self.owner], self.old_B)
        return y + self.magnitudes[-1] * self.B(self.A(x))


Stack = TypeVar("Stack", LoRAStack, DecoupledStack)


def add_stacks(backbone: Backbone, targets: Sequence[str], make: Callable[[nn.Linear], Stack]) -> dict[str, Stack]:
    """Put a stack around some linear layers of a backbone.

    Args:
        backbone: changed in place; what trains in it beside the stacks is not touched.
        targets: roles or names of layers, as for `tangentcl.nn.add_lora`.
        make: layer -> stack.

    Returns:
        The stacks by the names of their layers, in the model's order.

    Raises:
        ModelError: a target without a layer, or a backbone that has adapters already.

    >>> from tangentcl.nn.backbone import from_module
    >>> toy = from_module(nn.Sequential(nn.Linear(3, 2)), None, 2, name="toy", modality="array")
    >>> list(add_stacks(toy, ["0"], LoRAStack)), type(toy.model[0]).__name__
    (['0'], 'LoRAStack')
    """
    refuse_adapted(backbone)
    if any(isinstance(module, (LoRAStack, DecoupledStack)) for module in backbone.modules()):
        raise ModelError(f"{backbone.card.name} already has an adapter. Make a new backbone.")
    layers = linear_layers(backbone.model)
    made = {name: make(layers[name]) for name in target_layers(backbone, targets)}
    for name, stack in made.items():
        owner, _, leaf = name.rpartition(".")
        setattr(backbone.model.get_submodule(owner), leaf, stack)
    backbone.train(backbone.training)
    return made


def _pair(base: nn.Linear, rank: int) -> tuple[nn.Linear, nn.Linear]:
    """A: d -> rank as LoRA draws it, and B: rank -> m, zero."""
    if rank < 1:
        raise ModelError(f"rank has to be at least 1, not {rank}.")
    a, b = nn.Linear(base.in_features, rank, bias=False), nn.Linear(rank, base.out_features, bias=False)
    nn.init.kaiming_uniform_(a.weight, a=math.sqrt(5))
    nn.init.zeros_(b.weight)
    return a.to(base.weight), b.to(base.weight)

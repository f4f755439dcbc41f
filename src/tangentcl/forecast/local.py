"""A network replaced by what is known of it near its present parameters, and trained there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from tangentcl.errors import ConfigError
from tangentcl.forecast.dynamics import Dynamics
from tangentcl.forecast.factors import Derivatives
from tangentcl.forecast.problem import loss_residual
from tangentcl.forecast.rules import Rule
from tangentcl.forecast.sites import Values

Outputs = Callable[[Tensor, Values], Tensor]  # samples, parameters -> outputs [B, C]


def saturated(h: Tensor, change: Tensor) -> Tensor:
    r"""Features moved by a change that cannot outgrow them: :math:`h + \Delta / \sqrt{1 + \|\Delta\|^2/\|h\|^2}`.

    Equal to :math:`h + \Delta` to first order. In nearly every pre-trained network the features come out of a
    normalisation, and the first order overshoots where it is large.

    Shapes: [n, d], [n, d] -> [n, d].

    >>> saturated(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1e3]]))[0, 1] <= 1
    tensor(True)
    """
    ratio = change.square().sum(dim=1, keepdim=True) / h.square().sum(dim=1, keepdim=True).clamp(min=1e-30)
    return h + change / (1 + ratio).sqrt()


@dataclass(frozen=True)
class Head:
    """A linear head that may train: its parameters by name, and which of them move."""

    weight: Tensor
    bias: Tensor | None
    names: dict[str, str]  # "weight" or "bias" -> the parameter's name, where it moves

    def at(self, values: Values) -> tuple[Tensor, Tensor | None]:
        """Weight [C, d] and bias [C] with other values of what moves."""
        weight = values[self.names["weight"]] if "weight" in self.names else self.weight
        bias = values[self.names["bias"]] if "bias" in self.names else self.bias
        return weight, bias

    def outputs(self, h: Tensor, values: Values) -> Tensor:
        """[n, d] -> [n, C]."""
        weight, bias = self.at(values)
        found = h @ weight.T
        return found if bias is None else found + bias


@dataclass
class Local:
    r"""Outputs of new samples near the start: :math:`f_i = W\,\sigma(h_i + P_i^\top u_i(\theta)) + b`.

    u is the change of the features along each sample's directions (`Derivatives.change`: linear in every weight, with
    the product kept of LoRA factors that first order does not see), and the head W is multiplied out with it
    (bilinear). Without a head h are the outputs themselves.

    Attributes:
        features: h at the start, [n, d].
        directions: P, orthonormal rows, [n, k, d].
        derivatives: of the features along them.
        head: None where h are the outputs.
        saturate: whether the change of features saturates (see `saturated`).
    """

    features: Tensor
    directions: Tensor
    derivatives: Derivatives
    head: Head | None
    saturate: bool

    def outputs(self, rows: Tensor, values: Values) -> Tensor:
        """Outputs of some new samples, [B, C]."""
        u = self.derivatives.change(rows, values)  # [B, k]
        return self.read(self.features[rows], torch.einsum("bkd,bk->bd", self.directions[rows], u), values)

    def read(self, h: Tensor, change: Tensor, values: Values) -> Tensor:
        """Outputs for features [n, d] and their change [n, d], [n, C]."""
        moved = saturated(h, change) if self.saturate else h + change
        return moved if self.head is None else self.head.outputs(moved, values)


@dataclass
class Course:
    """Parameters on their way, with the memory of their optimisers.

    Attributes:
        values: of every parameter that moves.
        rules: one optimiser for each; step: how many steps were made.
    """

    values: Values
    rules: dict[str, Rule] = field(default_factory=dict)
    step: int = 0


@dataclass(frozen=True)
class Objective:
    """What the loss asks: targets [n, C_active] over the outputs in the loss, columns int64 [C_active]."""

    targets: Tensor
    columns: Tensor
    loss: str


def follow(
    course: Course,
    outputs: Outputs,
    objective: Objective,
    dynamics: Dynamics,
    head_names: Sequence[str],
    stop: int | None = None,
) -> Course:
    """Train step by step up to step ``stop`` (None: to the end), with the recipe's optimiser, rates and batches.

    Args:
        outputs: (rows, values) -> outputs [B, C]; the network's own, or a local model's.
        head_names: parameters that take the head's rate.

    Raises:
        ConfigError: outputs that become infinite.
    """
    n, device = len(objective.targets), objective.targets.device
    found = dynamics.stepwise(n, device)
    end = len(found.rows) if stop is None else min(stop, len(found.rows))
    values = {name: value.clone().requires_grad_() for name, value in course.values.items()}
    rules = course.rules or {name: found.rule() for name in values}
    for step in range(course.step, end):
        rows = found.rows[step]
        index = torch.arange(n, device=device)[rows] if isinstance(rows, slice) else rows
        f = outputs(index, values)[:, objective.columns]
        residual = loss_residual(objective.loss, f.detach(), objective.targets[index]) / len(index)
        if not bool(residual.isfinite().all()):
            raise ConfigError(
                f"training with {type(dynamics).__name__} diverges at step {step + 1} of {len(found.rows)}: outputs "
                "become infinite. Try a smaller lr."
            )
        gradients = torch.autograd.grad(f, list(values.values()), residual, allow_unused=True)
        if found.penalty is not None:
            added = torch.autograd.grad(found.penalty(values), list(values.values()), allow_unused=True)
            gradients = tuple(
                g if more is None else more if g is None else g + more for g, more in zip(gradients, added)
            )
        with torch.no_grad():
            for (name, value), gradient in zip(values.items(), gradients):
                if gradient is None:  # a torch optimiser leaves it alone, decay included
                    continue
                rate = found.head_rates[step] if name in head_names else found.rates[step]
                rules[name](value, gradient, rate)
    return Course({name: value.detach() for name, value in values.items()}, rules, end)

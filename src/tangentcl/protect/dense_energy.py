"""Energies of dense changes with their gradient in closed form, since a step of training waits for both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from tangentcl.nn.heads import at_least_float32
from tangentcl.protect.moment import Moment

Parts = tuple[Tensor | None, Tensor | None]  # of weights [L, d_out, d_in] and biases [L, d_out]


def dense_energies(
    parts: Mapping[str, Sequence[Tensor]], references: Mapping[str, Tensor], inputs: Moment, outputs: Moment | None
) -> Tensor:
    r"""Energies :math:`e = \mathrm{tr}(\Delta^\top M \Delta\, G)` of L layers, [L], once differentiable in ``parts``.

    The gradient :math:`2 M \Delta G` shares its products with the energy, half the inner product of the two: four
    products with k rows each (two where G is the identity) and no graph.

    Args:
        parts: ``"weight"``, ``"bias"`` or both, a tensor per layer.
        references: what the change is from, stacked.
        inputs: M, of width d_in + 1, the constant last. outputs: G, of width d_out; None for the identity.
    """
    names = tuple(parts)
    settings = (names, [references[name] for name in names], inputs, outputs)
    energies: Tensor = _Energies.apply(settings, *(tensor for name in names for tensor in parts[name]))
    return energies


class _Energies(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, settings: Any, *tensors: Tensor) -> Tensor:
        names, references, inputs, outputs = settings
        n = len(references[0])
        moved = {
            name: torch.stack([at_least_float32(t) for t in tensors[i * n : (i + 1) * n]]).sub_(reference)
            for i, (name, reference) in enumerate(zip(names, references))
        }
        gradients = half_gradients((moved.get("weight"), moved.get("bias")), inputs, outputs)
        energies, kept = torch.zeros((), device=references[0].device), []
        for part, gradient in zip(("weight", "bias"), gradients):
            if gradient is not None:
                energies = energies + moved[part].mul_(gradient).flatten(1).sum(dim=1)
                kept.append(gradient)
        ctx.save_for_backward(*kept)
        ctx.dtypes = [t.dtype for t in tensors]
        return energies

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, weights: Tensor) -> Any:
        scaled = [g * (2 * weights).view(-1, *[1] * (g.ndim - 1)) for g in ctx.saved_tensors]
        each = [row for gradient in scaled for row in gradient.unbind()]
        return None, *(g.to(dtype) for g, dtype in zip(each, ctx.dtypes))


def half_gradients(parts: Parts, inputs: Moment, outputs: Moment | None) -> Parts:
    r""":math:`G \Delta^\top M`, laid out as ``parts`` are; :math:`M = S^\top S + r`, :math:`G = Q^\top Q + q`."""
    w, b = parts
    some = w if w is not None else b
    assert some is not None
    S, r = inputs.rows.to(some), inputs.diagonal.to(some)
    S_w, s, r_w, r_b = S[:, :, :-1], S[:, :, -1:], r[:, None, :-1], r[:, -1:]
    seen = _seen(w, b, S_w, s)  # A = Δ'S', [L, d_out, k]
    if outputs is None:
        return (
            None if w is None else torch.baddbmm(w * r_w, seen, S_w),
            None if b is None else (seen @ s)[:, :, 0].addcmul_(b, r_b),
        )
    Q, q = outputs.rows.to(some), outputs.diagonal.to(some)[:, :, None]
    qw, qb = None if w is None else Q @ w, None if b is None else (Q @ b[:, :, None])[:, :, 0]  # [L, k', d_in], [L, k']
    both = _seen(qw, qb, S_w, s)  # [L, k', k]
    seen = q * seen
    if w is not None and qw is not None:
        w = (w * r_w).mul_(q).baddbmm_(seen, S_w).baddbmm_(Q.transpose(1, 2), torch.baddbmm(qw * r_w, both, S_w))
    if b is not None and qb is not None:
        c = (both @ s)[:, :, 0].addcmul_(qb, r_b)  # [L, k']
        b = (seen @ s)[:, :, 0] + b * r_b * q[:, :, 0] + (Q.transpose(1, 2) @ c[:, :, None])[:, :, 0]
    return w, b


def _seen(w: Tensor | None, b: Tensor | None, S_w: Tensor, s: Tensor) -> Tensor:
    """What a change does to the k rows, [L, ., k]."""
    through = None if b is None else b[:, :, None] * s.transpose(1, 2)
    if w is None:
        assert through is not None
        return through
    return w @ S_w.transpose(1, 2) if through is None else torch.baddbmm(through, w, S_w.transpose(1, 2))

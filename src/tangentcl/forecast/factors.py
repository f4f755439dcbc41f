"""Derivatives of a network's features in a few directions per sample, kept as factors of its layers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tangentcl.errors import ModelError
from tangentcl.forecast.inputs import Inputs
from tangentcl.forecast.sites import Site, Values, wide_values
from tangentcl.kernels.batch import n_samples, samples
from tangentcl.kernels.network import Network

TOKENS = 32  # products kept per sample and layer; a longer sum over tokens is compressed to as many


@dataclass(frozen=True)
class SiteFactors:
    r"""For one site: :math:`\partial(p_{ik}^\top h_i) = \sum_t g_{itk}^\top \Delta y(a_{it})`.

    Attributes:
        a: [N, d_in]; g: [N, k, d_out]; over the tokens of all samples, one sample after the other.
        first: where each sample begins, int64 [n + 1].
        lost: largest share of a sample's derivative that compression dropped.
    """

    a: Tensor
    g: Tensor
    first: Tensor
    lost: float = 0.0

    def of(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """a, g, and the place in the batch of every token of some samples."""
        counts = self.first[rows + 1] - self.first[rows]
        owner = torch.repeat_interleave(torch.arange(len(rows), device=rows.device), counts)
        offset = torch.arange(len(owner), device=rows.device) - (counts.cumsum(0) - counts)[owner]
        index = self.first[rows][owner] + offset
        return self.a[index], self.g[index], owner


@dataclass(frozen=True)
class Derivatives:
    """Derivatives of ``p_ik . h_i`` for all samples i and directions k: factors of sites, and rows for the rest.

    Attributes:
        sites: with their factors.
        names: of parameters in rows; rows: [n, k, R] over them, flattened and joined.
        start: values of all parameters.
    """

    sites: list[tuple[Site, SiteFactors]]
    names: tuple[str, ...]
    rows: Tensor
    start: Values

    def change(self, rows: Tensor, values: Values) -> Tensor:
        """Change of the features of some samples along their directions, [B, k]."""
        dtype = torch.promote_types(self.rows.dtype, torch.float32)
        total = torch.zeros(len(rows), self.rows.shape[1], device=rows.device, dtype=dtype)
        for site, factors in self.sites:
            a, g, owner = factors.of(rows)
            moved = site.change(a if site.indexed else a.to(dtype), values)  # [tokens, d_out]
            total = total.index_add(0, owner, torch.einsum("tko,to->tk", g.to(dtype), moved))
        if self.names:
            delta = torch.cat([(values[name] - self.start[name]).flatten() for name in self.names])
            total = total + self.rows[rows].to(dtype) @ delta
        return total


@contextmanager
def recorded(sites: Sequence[Site]) -> Iterator[list[tuple[list[Tensor], list[Tensor]]]]:
    """Inputs of each site's source and outputs of its target during a forward pass."""
    calls: list[tuple[list[Tensor], list[Tensor]]] = [([], []) for _ in sites]
    handles = []

    def before(place: list[Tensor]) -> Any:
        def hook(_: Any, inputs: tuple[Any, ...], keywords: dict[str, Any]) -> None:
            place.append([*inputs, *keywords.values()][0].detach())

        return hook

    def after(place: list[Tensor]) -> Any:
        def hook(_: Any, inputs: Any, output: Tensor) -> Tensor:
            place.append(output)
            return output.clone()  # an activation may change it in place

        return hook

    for site, (into, out) in zip(sites, calls):
        handles.append(site.source.register_forward_pre_hook(before(into), with_kwargs=True))
        handles.append(site.target.register_forward_hook(after(out)))
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def derivatives(
    features: Network,
    sites: list[Site],
    rest: tuple[str, ...],
    inputs: Inputs,
    directions: Tensor,
    *,
    move: Any,
    chunk: int = 16,
    dtype: torch.dtype = torch.float32,
) -> Derivatives:
    """One forward and k backward passes per sample; none goes below the lowest adapted layer.

    Args:
        features: the network up to h, [n, d]; directions: p, [n, k, d].
        sites, rest: from `find_sites`.
        move: puts a batch on the network's device.
        chunk: samples at a time.
        dtype: in which factors are kept.

    Raises:
        ModelError: a layer whose inputs are not tokens of single samples.
    """
    n, k, _ = directions.shape
    kept: list[list[tuple[Tensor, Tensor, float]]] = [[(Tensor(), Tensor(), 0.0)] * n for _ in sites]
    width = sum(features.parameters[name].numel() for name in rest)
    rows = torch.zeros(n, k, width, dtype=dtype, device=directions.device)
    with features.evaluating():
        for x, positions in inputs.parts(chunk):
            x, where = move(x), positions.to(directions.device)
            P = directions[where]
            with recorded(sites) as calls:
                h = features(x)
            for i, found in enumerate(pulled(h, P, sites, calls)):
                for j, position in enumerate(positions.tolist()):
                    kept[i][position] = _kept(sites[i], found[0][j], found[1][j], dtype)
            if rest:
                rows[where] = _rest_rows(features, rest, x, P).to(dtype)
    joined = [(site, _joined(parts)) for site, parts in zip(sites, kept)]
    return Derivatives(joined, rest, rows, wide_values(features))


def pulled(
    h: Tensor, P: Tensor, sites: Sequence[Site], calls: list[tuple[list[Tensor], list[Tensor]]]
) -> list[tuple[Tensor, Tensor]]:
    """For every site the inputs [B, T, d_in] and the gradients [B, T, k, d_out] of the features along P [B, k, d]."""
    outputs = [out for _, outs in calls for out in outs]
    pulled: list[tuple[Tensor, ...]] = []
    for c in range(P.shape[1] if outputs else 0):
        along = (h * P[:, c].to(h.dtype)).sum()
        pulled.append(
            torch.autograd.grad(
                along, outputs, retain_graph=c + 1 < P.shape[1], allow_unused=True, materialize_grads=True
            )
        )
    found, place, B = [], 0, len(h)
    for site, (into, outs) in zip(sites, calls):
        if not outs or any(len(t) % B for t in (*into, *outs)):
            raise ModelError(f"'{site.names[0]}' is not called with one row, or several tokens, per sample")
        a = torch.cat([site.tokens(x, B) for x in into], dim=1)
        gradients = [
            torch.cat([g[place + i].reshape(B, -1, g[place + i].shape[-1]) for i in range(len(outs))], dim=1)
            for g in pulled
        ]
        place += len(outs)
        found.append((a, torch.stack(gradients, dim=2)))
    return found


def _kept(site: Site, a: Tensor, g: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor, float]:
    """What is kept of one sample at a site: a, g, and what compression lost."""
    a, g = site.reduced(*_live(a, g))
    if site.indexed:
        return a, g.to(dtype), 0.0
    a, g, lost = _compressed(a, g)
    return a.to(dtype), g.to(dtype), lost


def _live(a: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens with any gradient; padding has none."""
    live = g.flatten(1).abs().amax(dim=1) > 0
    return a[live], g[live]


def _compressed(a: Tensor, g: Tensor, most: int = TOKENS) -> tuple[Tensor, Tensor, float]:
    r"""At most ``most`` products that stand for :math:`\sum_t g_t a_t^\top`, and the share of its norm that is lost.

    A change of a site depends on this sum alone, so its truncated singular value decomposition is as good as tokens.
    """
    T, k, d = g.shape
    if most >= T:
        return a, g, 0.0
    wide = torch.promote_types(g.dtype, torch.float32)
    Qg, Rg = torch.linalg.qr(g.reshape(T, k * d).T.to(wide))
    Qa, Ra = torch.linalg.qr(a.T.to(wide))
    U, s, Vh = torch.linalg.svd(Rg @ Ra.T)
    root = s[:most].sqrt()
    lost = float(s[most:].norm() / s.norm().clamp(min=1e-30))
    return ((Qa @ Vh[:most].T) * root).T, ((Qg @ U[:, :most]) * root).T.reshape(-1, k, d), lost


def _joined(parts: list[tuple[Tensor, Tensor, float]]) -> SiteFactors:
    counts = torch.tensor([0, *(len(a) for a, _, _ in parts)], device=parts[0][0].device)
    return SiteFactors(
        torch.cat([a for a, _, _ in parts]),
        torch.cat([g for _, g, _ in parts]),
        counts.cumsum(0),
        max(lost for _, _, lost in parts),
    )


def _rest_rows(features: Network, names: tuple[str, ...], x: Any, P: Tensor) -> Tensor:
    """Gradients of ``p . h`` in parameters without a rule, sample by sample, [B, k, R]."""
    parameters = [features.parameters[name] for name in names]
    found = []
    for i in range(n_samples(x)):
        h = features(samples(x, i, i + 1))[0]
        along = P[i].to(h.dtype) @ h  # [k]
        for c in range(len(along)):
            gradients = torch.autograd.grad(
                along[c], parameters, retain_graph=c + 1 < len(along), allow_unused=True, materialize_grads=True
            )
            found.append(torch.cat([g.flatten() for g in gradients]))
    return torch.stack(found).view(n_samples(x), -1, len(found[0]))

"""Whether the rules for adapted layers hold on a model, asked of autograd."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tangentcl.forecast.factors import pulled, recorded
from tangentcl.forecast.sites import Site
from tangentcl.kernels.batch import n_samples, samples
from tangentcl.kernels.network import Network


def checked_sites(
    features: Network, sites: list[Site], rest: tuple[str, ...], x: Any
) -> tuple[list[Site], tuple[str, ...]]:
    """Sites whose rule holds; the parameters of the others join the rest, without those that the features do not use.

    The gradient of a random direction of the first of two samples' features, as each site has it, has to equal
    autograd's, and the second sample's part of it has to be zero. This finds layers that are not called (their weights
    are used elsewhere, as in torch.nn.MultiheadAttention), weights that are used twice, layers that compute something
    else, and samples that are not the outermost axis.

    Args:
        features: the network up to h, [n, d]; x: a batch on its device.
    """
    few = samples(x, 0, 2)
    with features.evaluating():
        with recorded(sites) as calls:
            h = features(few)
        along = torch.randn(h.shape[1], generator=torch.Generator().manual_seed(0)).to(h)
        P = torch.zeros(len(h), 1, h.shape[1], dtype=h.dtype, device=h.device)
        P[0, 0] = along
        names = [*rest, *(name for site in sites for name in site.names)]
        if not names or not h.requires_grad:
            return [], ()
        found = torch.autograd.grad(
            h[0] @ along, [features.parameters[name] for name in names], retain_graph=True, allow_unused=True
        )
        truth = {name: g for name, g in zip(names, found) if g is not None}
        used = [all(name in truth for name in site.names) for site in sites]
        fit = [i for i, (into, outs) in enumerate(calls) if used[i] and _are_tokens([*into, *outs], n_samples(few))]
        tokens = pulled(h, P, [sites[i] for i in fit], [calls[i] for i in fit])
    # eps ** 0.5 of the whole gradient: far above rounding, far below any rule that does not hold
    tolerance = torch.finfo(h.dtype).eps ** 0.5 * float(torch.stack([g.float().norm() for g in truth.values()]).norm())
    good = [
        sites[i]
        for i, (a, g) in zip(fit, tokens)
        if all(_off(sites[i], a, g, truth, j) <= tolerance for j in range(len(h)))
    ]
    kept = {id(site) for site in good}
    others = (name for site in sites if id(site) not in kept for name in site.names)
    return good, tuple(name for name in (*rest, *others) if name in truth)


def _are_tokens(called: list[Any], n: int) -> bool:
    """Whether these are inputs and outputs of a layer that was called, with rows for every sample."""
    return bool(called) and all(isinstance(t, Tensor) and t.ndim > 1 and len(t) % n == 0 for t in called)


def _off(site: Site, a: Tensor, g: Tensor, truth: dict[str, Tensor], j: int) -> float:
    """Distance of one sample's part of a gradient from what it has to be: the whole for the first, else nothing."""
    values = {name: value.clone().requires_grad_() for name, value in site.start.items()}
    dtype = next(iter(values.values())).dtype
    inputs, gradients = site.reduced(a[j], g[j])
    change = (site.change(inputs if site.indexed else inputs.to(dtype), values) * gradients[:, 0].to(dtype)).sum()
    found = torch.autograd.grad(change, list(values.values()))
    expected = [truth[name] if j == 0 else torch.zeros_like(truth[name]) for name in values]
    return float(torch.stack([(f - e.to(f)).norm() for f, e in zip(found, expected)]).norm())

"""The diagonal of the Fisher information of a classifier, from one gradient per sample."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from tangentcl.data import Samples
from tangentcl.errors import ConfigError, nearest
from tangentcl.nn.backbone import to_device
from tangentcl.nn.extract import evaluating
from tangentcl.nn.heads import at_least_float32
from tangentcl.processes import own_stretch, summed

FISHER = ("sampled", "exact", "empirical")
Labels = Literal["sampled", "exact", "empirical"]


def check_fisher(labels: str, n: int | None) -> None:
    """Refuse another kind of labels than `FISHER`, or no sample. Raises ConfigError."""
    if labels not in FISHER:
        raise ConfigError(f"fisher must be one of {', '.join(FISHER)}, got {labels!r}.{nearest(labels, FISHER)}")
    if n is not None and n < 1:
        raise ConfigError(f"fisher_samples is a number of samples and must be at least 1, got {n}")


def diagonal_fisher(
    model: nn.Module,
    values: Mapping[str, Tensor],
    samples: Samples,
    *,
    labels: Labels = "sampled",
    columns: Sequence[int] | None = None,
    n: int | None = None,
    seed: int = 0,
) -> dict[str, Tensor]:
    r"""Mean over samples of the squared gradient of the log-likelihood, entry by entry.

    .. math:: F_i = \frac1n \sum_x E_{y \sim p(y \mid x)}
        \Big(\frac{\partial \log p(y \mid x)}{\partial \theta_i}\Big)^2,
        \qquad p = \mathrm{softmax}(f_A(x)),

    with the expectation over the model's own labels: one draw for each sample (``"sampled"``, unbiased) or the sum
    over all classes (``"exact"``, C backward passes per sample). ``"empirical"`` takes the given labels in place of
    the expectation: this is not the Fisher information and can mislead (Kunstner, Balles, Hennig, "Limitations of the
    empirical Fisher approximation", NeurIPS 2019), but much code does it. Squaring the gradient of a batch's *mean*
    loss, as much code does too, is neither: it shrinks by up to the batch size.

    Samples go through one by one, under evaluation: that needs memory for one gradient, works for every model
    (``torch.func.vmap`` refuses many), and texts need no padding. n forward and backward passes at batch size 1 in all.
    With ``torch.distributed`` each process takes a stretch of the samples and every process gets the result. Autocast
    is off: squares of half-precision gradients vanish.

    Args:
        model: batch -> logits ``[B, C]``; its modes are restored, its parameters stay as they are.
        values: tensors of the model by name, with respect to which the derivative is taken; frozen ones too.
        samples: under the evaluation transform.
        labels: which labels stand for the expectation.
        columns: the classes A that the softmax is over; None = all. Labels of ``"empirical"`` have to be among them.
        n: at most so many samples, drawn without replacement; None = all.
        seed: of that draw and of the labels'; the result does not depend on the number of processes but for rounding.

    Returns:
        By the names of ``values``, in their shapes, float32 at least.

    Raises:
        ConfigError: unknown ``labels``, ``n`` below 1, or no sample.
    """
    check_fisher(labels, n)
    if not len(samples):
        raise ConfigError("the Fisher information needs at least one sample, got none")
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(samples), generator=generator)[:n].sort().values
    draws = torch.rand(len(chosen), generator=generator)
    start, stop = own_stretch(len(chosen))
    leaves = {name: value.detach().requires_grad_() for name, value in values.items()}
    device = next(iter(leaves.values())).device
    totals = [torch.zeros_like(at_least_float32(leaf.detach())) for leaf in leaves.values()]
    inputs = samples.subset(np.asarray(chosen[start:stop])).batches(1)
    with evaluating(model), torch.enable_grad(), torch.autocast(device.type, enabled=False):
        for (x, y), u in zip(inputs, draws[start:stop].tolist()):
            logits = at_least_float32(torch.func.functional_call(model, leaves, (to_device(x, device),))[0])  # [C]
            log_p = logits[list(columns) if columns is not None else slice(None)].log_softmax(dim=0)  # [|A|]
            given = int(y) if columns is None or labels != "empirical" else list(columns).index(int(y))
            for c, share in _labels(log_p, labels, given, u):
                _add_squares(totals, log_p[c], list(leaves.values()), share)
    return {name: summed(total).to(device) / len(chosen) for name, total in zip(leaves, totals)}


def _labels(log_p: Tensor, labels: Labels, given: int, u: float) -> list[tuple[int, float]]:
    """Labels of one sample and their weights; u in [0, 1) chooses the one that is drawn."""
    if labels == "empirical":
        return [(given, 1.0)]
    p = log_p.detach().exp().double().cpu()
    if labels == "exact":
        return list(enumerate(p.tolist()))
    drawn = int((p.cumsum(dim=0) <= u * float(p.sum())).sum())
    return [(min(drawn, len(p) - 1), 1.0)]


def _add_squares(totals: list[Tensor], output: Tensor, leaves: list[Tensor], share: float) -> None:
    gradients = torch.autograd.grad(output, leaves, retain_graph=True, allow_unused=True)
    for total, gradient in zip(totals, gradients):
        if gradient is not None:
            total.addcmul_(gradient.to(total), gradient.to(total), value=share)

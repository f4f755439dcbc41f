"""Whether a model minimises what a recipe says, asked of the model itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tangentcl.errors import ModelError
from tangentcl.forecast.inputs import Inputs
from tangentcl.forecast.problem import check_targets, loss_residual

PROBE = 16  # new samples on which the model's own loss is compared with the loss of the recipe


def loss_columns(
    model: nn.Module,
    new: Inputs,
    outputs: Tensor,
    loss: str,
    candidates: Sequence[Sequence[int] | None],
    move: Callable[[Any], Any],
) -> Sequence[int] | None:
    """The first of some sets of outputs over which the recipe's loss equals the model's own on a few new samples.

    A model without a method ``training_loss`` is not asked, and gets the first.

    Args:
        outputs: of the first `PROBE` new samples, [m, C].
        candidates: outputs in the loss; None = all.

    Raises:
        ModelError: another loss, with both values. DataError: labels without an output.
    """
    own_loss = getattr(model, "training_loss", None)
    if not callable(own_loss):
        return candidates[0]
    assert new.labels is not None
    few = torch.arange(len(outputs))
    if not new.labels.is_floating_point():
        check_targets(new.labels, torch.arange(outputs.shape[1]), len(new))
    actual, terms = _own(model, own_loss, move(new.take(few)), new.labels[few])
    said = []
    for columns in candidates:
        chosen = torch.arange(outputs.shape[1]) if columns is None else torch.tensor(list(columns))
        labels = new.labels[few]
        if not labels.is_floating_point() and not bool((labels[:, None] == chosen).any(dim=1).all()):
            continue
        expected = _loss(loss, outputs[:, chosen], check_targets(labels, chosen, len(labels)))
        if abs(actual - expected) <= 1e-3 * max(abs(expected), 1e-3):
            return columns
        said.append(f"{expected:.6g} over {len(chosen)} outputs")
    raise ModelError(
        f"on {len(few)} new samples {type(model).__name__} has the loss {actual:.6g} ({', '.join(terms)}), but the "
        f"recipe minimises {loss}, which is {' or '.join(said)}. Pass the outputs in the loss as columns "
        "(task.classes), or the loss of the recipe; a model with other terms is not supported so far."
    )


def _own(model: nn.Module, own_loss: Callable[..., dict[str, Tensor]], x: Any, y: Tensor) -> tuple[float, list[str]]:
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad(), torch.random.fork_rng():
            terms = own_loss(x, y.to(next(model.parameters()).device))
    finally:
        for module, mode in modes.items():
            module.training = mode
    return sum(float(term) for term in terms.values()), list(terms)


def _loss(loss: str, outputs: Tensor, targets: Tensor) -> float:
    if loss == "cross_entropy":
        return float(F.cross_entropy(outputs, targets.to(outputs)))
    return float(0.5 * loss_residual(loss, outputs, targets).square().sum(dim=1).mean())

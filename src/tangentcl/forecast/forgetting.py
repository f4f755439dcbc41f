"""Forecasting what training on new samples does to the outputs on old ones, before a gradient step is taken."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tangentcl.data import Samples, Task
from tangentcl.errors import DataError, ModelError
from tangentcl.forecast.dynamics import Dynamics
from tangentcl.forecast.forecast import Forecast
from tangentcl.forecast.old_kernel import FeatureModes
from tangentcl.forecast.problem import LinearProblem, head_matrix, linear_problem, loss_residual
from tangentcl.linalg.operator import BLOCK
from tangentcl.nn import Backbone, GrowingLinear, extract_features
from tangentcl.nn.backbone import to_device

PROBE = 16  # new samples on which the model's own loss is compared with the loss of the recipe


def forecast_linear(
    features_old: Tensor,
    head: nn.Linear | GrowingLinear,
    features_new: Tensor,
    targets_new: Tensor,
    dynamics: Dynamics,
    *,
    columns: Sequence[int] | None = None,
    seen: int | None = None,
    labels_old: Tensor | None = None,
) -> Forecast:
    r"""Forecast for a linear head on features: :math:`D = \Phi_o (W_T - W_0)`.

    The displacement of the head is computed in float64 whatever the features are in; outputs and drift in the
    precision of the old features (at least float32). No matrix is larger than [n, C], [d, C] or [m, m] with m the
    smaller of n2 and d.

    Args:
        features_old: [n1, d].
        head: a linear layer as it is when training starts, with a row for every new class.
        features_new: [n2, d].
        targets_new: labels int64 [n2], or values [n2, C_active].
        dynamics: the training recipe.
        columns: outputs in the loss; None = all.
        seen: outputs that count for the accuracy now; None = all.
        labels_old: int64 [n1], for accuracies and margins; may be given later.

    Raises:
        DataError: shapes, labels or values that do not fit. ConfigError: a recipe that diverges.

    >>> from tangentcl.forecast import GradientDescent
    >>> head = nn.Linear(2, 2, bias=False)
    >>> nn.init.eye_(head.weight).shape
    torch.Size([2, 2])
    >>> forecast = forecast_linear(torch.eye(2), head, torch.tensor([[0.0, 1.0]]), torch.tensor([0]),
    ...                            GradientDescent(lr=1.0, steps=2, loss="squared_error"))
    >>> forecast.drift
    tensor([[ 0.,  0.],
            [ 1., -1.]])
    >>> forecast.accuracy(torch.tensor([0, 1]))
    (1.0, 0.5)
    """
    problem = linear_problem(features_new, head.weight, head.bias, targets_new, columns)
    return _forecast(features_old, head, problem, dynamics, seen=seen, labels_old=labels_old)


def _forecast(
    features: Tensor,
    head: nn.Linear | GrowingLinear,
    problem: LinearProblem,
    dynamics: Dynamics,
    *,
    seen: int | None,
    labels_old: Tensor | None,
    notes: tuple[str, ...] = (),
) -> Forecast:
    n_outputs, d = head.weight.shape
    if features.ndim != 2 or features.shape[1] != d or not len(features):
        raise DataError(f"expected features of old samples [n, {d}], got {list(features.shape)}")
    seen = n_outputs if seen is None else seen
    if not 0 < seen <= n_outputs:
        raise DataError(f"seen must be from 1 to the {n_outputs} outputs of the head, got {seen}")
    moved = dynamics.displacement(problem)
    dtype = torch.promote_types(features.dtype, torch.float32)
    outputs = _linear(features, head_matrix(head.weight, head.bias).to(features.device), head.bias is not None, dtype)
    drift = _linear(features, moved.weight.to(features.device), head.bias is not None, dtype)
    if not bool(outputs.isfinite().all()):
        raise DataError("the features of the old samples must be finite")
    return Forecast(
        outputs=outputs,
        drift=drift,
        seen=seen,
        old_kernel=FeatureModes(features.detach(), head.bias is not None),
        exact=not notes,
        residual=moved.residual,
        notes=notes,
        labels=labels_old,
    )


def _linear(features: Tensor, matrix: Tensor, bias: bool, dtype: torch.dtype) -> Tensor:
    """Features [n, d] (and a constant) times [d (+ 1), C] in ``dtype``, block by block, [n, C]."""
    matrix = matrix.to(dtype)
    weight, constant = (matrix[:-1], matrix[-1]) if bias else (matrix, torch.zeros_like(matrix[0]))
    result = torch.empty(len(features), matrix.shape[1], dtype=dtype, device=features.device)
    for block, rows in zip(features.detach().split(BLOCK), result.split(BLOCK)):
        torch.addmm(constant, block.to(dtype), weight, out=rows)
    return result


def forecast_forgetting(
    model: nn.Module | tuple[Backbone, nn.Linear | GrowingLinear],
    old: Samples,
    new: Samples | Task,
    dynamics: Dynamics,
    *,
    columns: Sequence[int] | None = None,
    seen: int | None = None,
    batch_size: int = 256,
) -> Forecast:
    """What training ``model`` on ``new`` will do to its outputs on ``old``. Nothing is trained or changed.

    For a frozen backbone with a linear head, such as ``Finetune(backbone, tune="head")`` after ``begin_task``: initial
    weights of new rows are part of what is forecast. A model that can compute its training loss is asked for it on a
    few new samples, and refused if it minimises something else than the recipe says.

    Args:
        model: a module with ``backbone`` and ``head``, or the two as a tuple.
        old: samples whose outputs are forecast, e.g. the test samples of past tasks.
        new: the samples that training will see, in the order that batches refer to; or the task they belong to.
        dynamics: the training recipe.
        columns: outputs in the loss; None = all.
        seen: outputs that count for the accuracy now; None = those before the task, where ``new`` is a task, else all.
        batch_size: samples per forward pass.

    Raises:
        ModelError: trainable parameters besides a linear head, or another loss than that of the recipe.
        DataError: labels without an output.
    """
    network, head = _linear_head(model)
    samples = new.train if isinstance(new, Task) else new
    if seen is None and isinstance(new, Task):
        seen = (new.n_seen - len(new.new_classes)) or None
    features_new, labels_new = extract_features(network, samples, batch_size)
    problem = linear_problem(features_new, head.weight.cpu(), _cpu(head.bias), labels_new, columns)
    if isinstance(model, nn.Module):
        _check_loss(model, samples, problem, dynamics)
    notes: tuple[str, ...] = ()
    if _is_random(samples):
        notes = ("training draws random views of the new samples; the forecast is for their fixed views",)
    features_old, labels_old = extract_features(network, old, batch_size)
    return _forecast(features_old, head, problem, dynamics, seen=seen, labels_old=labels_old, notes=notes)


def _cpu(bias: Tensor | None) -> Tensor | None:
    return None if bias is None else bias.cpu()


def _linear_head(model: nn.Module | tuple[Backbone, nn.Module]) -> tuple[Backbone, nn.Linear | GrowingLinear]:
    """The frozen backbone and the linear head of a model, or one clear refusal."""
    name = "the pair" if isinstance(model, tuple) else type(model).__name__
    parts = model if isinstance(model, tuple) else (getattr(model, "backbone", None), getattr(model, "head", None))
    network, head = parts
    if not isinstance(network, Backbone) or not isinstance(head, (nn.Linear, GrowingLinear)):
        raise ModelError(
            f"only linear heads on a frozen backbone are supported so far: {name} has a {type(network).__name__} as "
            f"backbone and a {type(head).__name__} as head. Expected Backbone and Linear or GrowingLinear."
        )
    own = {id(p) for p in head.parameters()}
    whole: nn.Module = nn.ModuleList(model) if isinstance(model, tuple) else model
    others = [key for key, p in whole.named_parameters() if p.requires_grad and id(p) not in own]
    if others:
        raise ModelError(
            f"only linear heads are supported so far: besides its head, {name} trains {len(others)} tensors "
            f"({', '.join(others[:3])}{', ...' if len(others) > 3 else ''}). Try tune='head'."
        )
    if getattr(model, "keeps_samples", False):
        raise ModelError(f"{name} also trains on stored samples of past tasks, which a forecast does not know so far.")
    return network, head


def _check_loss(model: nn.Module, samples: Samples, problem: LinearProblem, dynamics: Dynamics) -> None:
    """Refuse a model whose own loss on a few samples is not the loss that the recipe minimises."""
    if not callable(getattr(model, "training_loss", None)):
        return
    x, y = next(samples.subset(range(min(PROBE, len(samples)))).batches(PROBE))
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad(), torch.random.fork_rng():
            device = next(model.parameters()).device
            terms: dict[str, Tensor] = model.training_loss(to_device(x, device), y.to(device))  # type: ignore[operator]
    finally:
        for module, mode in modes.items():
            module.training = mode
    actual = sum(float(term) for term in terms.values())
    outputs, targets = problem.features[: len(y)] @ problem.active, problem.targets[: len(y)]
    expected = _loss(dynamics.loss, outputs, targets)
    if abs(actual - expected) > 1e-3 * max(abs(expected), 1e-3):
        raise ModelError(
            f"on {len(y)} new samples {type(model).__name__} has the loss {actual:.6g} ({', '.join(terms)}), but the "
            f"recipe minimises {dynamics.loss} over {len(problem.columns)} outputs, which is {expected:.6g}. "
            "Pass the outputs in the loss as columns (task.classes), or the loss of the recipe; a model with other "
            "terms is not supported so far."
        )


def _loss(loss: str, outputs: Tensor, targets: Tensor) -> float:
    if loss == "cross_entropy":
        return float(F.cross_entropy(outputs, targets))
    return float(0.5 * loss_residual(loss, outputs, targets).square().sum(dim=1).mean())


def _is_random(samples: Samples) -> bool:
    """Whether the transform draws: items under two generators differ from each other, on a few samples."""
    for index in range(min(3, len(samples))):
        first, second = (samples.item(index, np.random.default_rng(seed))[0] for seed in (0, 1))
        if not _same(first, second):
            return True
    return False


def _same(first: Any, second: Any) -> bool:
    if isinstance(first, Tensor):
        return torch.equal(first, second)
    if isinstance(first, dict):
        return all(_same(first[key], second[key]) for key in first)
    return bool(np.array_equal(np.asarray(first), np.asarray(second)))

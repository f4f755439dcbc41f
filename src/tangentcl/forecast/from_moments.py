"""What training a model on new samples does to old tasks of which only moments are left."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from tangentcl.errors import ModelError
from tangentcl.forecast.dynamics import Dynamics
from tangentcl.forecast.feature_change import feature_change
from tangentcl.forecast.forgetting import Prepared, prepare_forecast
from tangentcl.forecast.head import Linear
from tangentcl.forecast.layer_moments import LayerForecast, adapted_layers, forecast_layers
from tangentcl.forecast.moment_forecast import MomentForecast, moment_forecast
from tangentcl.forecast.moments import TaskMoments
from tangentcl.forecast.problem import head_matrix
from tangentcl.forecast.trust import Trust
from tangentcl.kernels.network import Outputs

ESTIMATE = (
    "the features train too: how far old ones move is told from the new samples, so drift, accuracies and modes are "
    "estimates, and the bounds are those of the sketch alone"
)
AGED = "moments are of the features at the end of each task, and those of earlier tasks have moved since"
LOCAL = "a part of the head is frozen, and the change of the rest is that of a local model"
OTHER_LAYERS = "the moments are of other layers than those that train now, so no layer is forecast"


def forecast_from_moments(
    moments: Sequence[TaskMoments],
    model: nn.Module | tuple[nn.Module, Linear],
    new: Any,
    dynamics: Dynamics,
    *,
    outputs: Outputs | None = None,
    columns: Sequence[int] | None = None,
    seen: int | None = None,
    batch_size: int = 64,
    memory: float = 4e9,
) -> MomentForecast:
    """What training ``model`` on ``new`` will do to tasks whose data are gone. Nothing is trained or changed.

    For a linear head on a frozen backbone, the one that the moments were made with, the change of the head is exact for
    every recipe, and what the old tasks make of it is as good as their moments.

    Where adapters or everything train, it is an estimate and says so (`MomentForecast.notes`): head and adapters are
    those that a local model of the network has after the recipe (`Prepared.parameters_after`), and old features are
    taken to move as the new samples' do (`feature_change`); how well the local model knows those is the ``trust``.
    ``layers`` adds how far the outputs of each adapted layer move, where the moments have their inputs.

    Args:
        moments: of the old tasks, e.g. `tangentcl.training.moments.load_moments` of a run's record.
        model, new, dynamics, outputs, columns, seen, batch_size, memory: as for `tangentcl.forecast_forgetting`.

    Raises:
        ModelError: outputs that no linear layer makes, or a model that minimises another loss than the recipe.
        DataError: moments that do not fit the model. ConfigError: a recipe that diverges.

    >>> import torch
    >>> from tangentcl.forecast import GradientDescent
    >>> old, new = torch.randn(9, 4), torch.randn(6, 4)
    >>> task = TaskMoments.empty(4, sketch="exact")
    >>> task.add(old, torch.arange(9) % 2)
    >>> head, recipe = nn.Linear(4, 3), GradientDescent(lr=0.1, steps=20)
    >>> found = forecast_from_moments([task], head, (new, torch.full((6,), 2)), recipe, seen=2)
    >>> from tangentcl import forecast_forgetting
    >>> true = forecast_forgetting(head, old, (new, torch.full((6,), 2)), recipe)
    >>> abs(found.rms - float(true.drift.square().mean().sqrt())) < 1e-6
    True
    """
    prepared = prepare_forecast(
        model, None, new, outputs=outputs, columns=columns, seen=seen, batch_size=batch_size, memory=memory
    )
    return prepared_from_moments(prepared, moments, dynamics)


def prepared_from_moments(prepared: Prepared, moments: Sequence[TaskMoments], dynamics: Dynamics) -> MomentForecast:
    """`forecast_from_moments` for a model and new samples that were looked at already, to compare recipes."""
    s = prepared.setting
    if prepared.form == "exact":
        problem = prepared.problem(dynamics.loss)
        moved = dynamics.displacement(problem)
        return moment_forecast(
            moments, moved.weight, problem.weight, seen=s.seen, residual=moved.residual, notes=s.notes
        )
    if s.head is None:
        raise ModelError(
            "moments are of the features that a linear layer makes the outputs of, and no linear layer makes those of "
            f"{type(s.network.model).__name__}. Forecast from old samples: tangentcl.forecast_forgetting"
        )
    after = prepared.parameters_after(dynamics)
    head = _matrix(s.head)
    with s.holding(after):
        moved_head = _matrix(s.head)
    own = {id(p) for p in s.head.parameters()}
    body = {name: value for name, value in after.items() if id(s.network.parameters[name]) not in own}
    if not body:
        return moment_forecast(moments, moved_head - head, head, seen=s.seen, notes=(*s.notes, LOCAL))
    features, moved_features, gap = prepared.new_features(after, dynamics.loss)
    shift = feature_change(features, moved_features) @ moved_head[: features.shape[1]]  # [d + 1, C]
    layers, said = _layers(moments, s.network.model, body)
    aged = (AGED,) if len(moments) > 1 else ()
    notes = (*s.notes, ESTIMATE, *aged, *said)
    found = moment_forecast(moments, moved_head - head + shift, head, seen=s.seen, notes=notes)
    return replace(found, shift=shift, layers=layers, trust=Trust(gap, linearisation_error=gap))


def _matrix(head: Linear) -> Tensor:
    """A head now, float64 [d + 1, C]; a bias that it lacks is zero."""
    bias = head.weight.new_zeros(len(head.weight)) if head.bias is None else head.bias
    return head_matrix(head.weight, bias).cpu()


def _layers(
    moments: Sequence[TaskMoments], model: nn.Module, after: Mapping[str, Tensor]
) -> tuple[LayerForecast | None, tuple[str, ...]]:
    """The report on layers, and why there is none where moments have some."""
    stored = {frozenset(task.layers) for task in moments}
    if stored == {frozenset()}:
        return None, ()
    for prefix, module in model.named_modules():
        if stored == {frozenset(adapted_layers(module))}:
            before = f"{prefix}." if prefix else ""
            inside = {name.removeprefix(before): value for name, value in after.items() if name.startswith(before)}
            return forecast_layers(moments, module, inside), ()
    return None, (OTHER_LAYERS,)

"""What training a model on new samples does to old tasks of which only moments are left."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from tangentcl.data import Task
from tangentcl.forecast.dynamics import Dynamics
from tangentcl.forecast.forgetting import VIEWS, prepare_forecast
from tangentcl.forecast.head import Linear
from tangentcl.forecast.inputs import Inputs
from tangentcl.forecast.moment_forecast import MomentForecast, moment_forecast
from tangentcl.forecast.moments import TaskMoments
from tangentcl.kernels.network import Outputs


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
) -> MomentForecast:
    """What training ``model`` on ``new`` will do to tasks whose data are gone. Nothing is trained or changed.

    For a linear head on a frozen backbone, the one that the moments were made with. The change of the head is exact for
    every recipe; what the old tasks make of it is as good as their moments.

    Args:
        moments: of the old tasks, e.g. `tangentcl.training.moments.load_moments` of a run's record.
        model, new, dynamics, outputs, columns, seen, batch_size: as for `tangentcl.forecast_forgetting`.

    Raises:
        ModelError: more than a linear head trains, or the model minimises another loss than the recipe.
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
    stand_in = new.train if isinstance(new, Task) else new  # no old sample is looked at for the linear problem
    prepared = prepare_forecast(
        model, stand_in, new, outputs=outputs, columns=columns, seen=seen, form="exact", batch_size=batch_size
    )
    problem = prepared.problem(dynamics.loss)
    moved = dynamics.displacement(problem)
    if seen is None and isinstance(new, Task):
        seen = (new.n_seen - len(new.new_classes)) or None
    notes = (VIEWS,) if Inputs.of(stand_in, "new").is_random else ()
    return moment_forecast(moments, moved.weight, problem.weight, seen=seen, residual=moved.residual, notes=notes)

"""Before each task of a stream: what will be forgotten; after it: what was."""

from __future__ import annotations

import dataclasses
import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch

from tangentcl.data import Samples, Task
from tangentcl.errors import ConfigError, DataError, ModelError
from tangentcl.forecast import Forecast, forecast_forgetting
from tangentcl.forecast.effective_time import effective_time
from tangentcl.training.evaluate import predicted_scores
from tangentcl.training.old_samples import OldSamples, old_samples
from tangentcl.training.order import derived_seed
from tangentcl.training.outlook import Outlook, competing_outputs
from tangentcl.training.plan import TrainingPlan
from tangentcl.training.recipe import recipe, recipe_notes
from tangentcl.training.stage import Stage

Form = Literal["auto", "exact", "bilinear", "ntk"]
FORMS = get_args(Form)
BATCH = 64  # samples whose derivatives are held at once
SAME = 1e-3  # relative difference below which outputs of forecast and method count as the same


@dataclass(frozen=True, kw_only=True)
class ForecastOptions:
    """What to forecast within a run; the table ``[forecast]`` of an experiment.

    Args:
        samples: most test samples of past tasks; of more than these every class is drawn from in proportion.
        new_samples: most test samples of the new task, likewise; none by default.
        form: "auto" is exact for a linear head and "bilinear" otherwise; "ntk" is the plain linearised network, see
            `tangentcl.forecast.prepare_forecast`.
        refine: share of the steps, below 1, that are trained on a copy before the rest is forecast; for forecasts that
            are not exact.

    Raises:
        ConfigError: an impossible value.
    """

    samples: int = 2000
    new_samples: int = 0
    form: Form = "auto"
    refine: float = 0.0

    def __post_init__(self) -> None:
        for name, lowest in (("samples", 1), ("new_samples", 0)):
            value = getattr(self, name)
            if type(value) is not int or value < lowest:
                raise ConfigError(f"forecast.{name} must be a whole number of at least {lowest}, got {value!r}")
        if self.form not in FORMS:
            raise ConfigError(f"forecast.form must be one of {', '.join(FORMS)}, got {self.form!r}")
        if not 0 <= self.refine < 1:
            raise ConfigError(f"forecast.refine must be at least 0 and below 1, got {self.refine!r}")


@dataclass(frozen=True)
class StageForecast:
    """The forecast of one task.

    Attributes:
        task: that is about to be learned, or was. past: tasks learned before it.
        recipe: the plan in plain values.
        reason: why there is no forecast, else None.
        forecast: of the old samples; None where it was refused.
        old: the old samples with outputs and drift. new: held-out samples of the task, where asked for.
        error_so_far: largest relative error of the drift among this run's earlier forecasts of the same form;
            None before the first of a local form.
        seconds: that the forecast took. training_seconds: that the training took; None before.
    """

    task: Task
    past: tuple[Task, ...]
    recipe: dict[str, Any]
    reason: str | None = None
    forecast: Forecast | None = None
    old: Outlook | None = None
    new: Outlook | None = None
    error_so_far: float | None = None
    seconds: float = 0.0
    training_seconds: float | None = None


def forecast_stage(
    stage: Stage, past: Sequence[Task], options: ForecastOptions | None = None, *, per_task: bool = False
) -> StageForecast:
    """Forecast what a stage will do to test samples of past tasks. Nothing is trained or changed.

    What cannot be forecast is not an error: the result says why (``reason``).

    Args:
        stage: after ``begin_task``, before training.
        past: tasks learned before, at least one.
        options: which samples.
        per_task: whether a sample's own task is known (task-incremental evaluation).
    """
    began = time.perf_counter()
    options = options or ForecastOptions()
    described = describe(stage.plan, len(stage.samples))
    made = StageForecast(task=stage.task, past=tuple(past), recipe=described)
    if not any(p.requires_grad for p in stage.method.parameters()):
        name = type(stage.method).__name__
        return dataclasses.replace(made, reason=f"{name} trains nothing by gradient steps, so there is no recipe")
    with undisturbed(stage):
        try:
            chosen = old_samples(past, options.samples, _seed(stage, "old"))
            forecast, old = _outlook(stage, chosen, past, options, per_task)
            _ = None if forecast.old_kernel is None else forecast.vulnerability  # decomposed here, so that it is timed
            new = None
            if options.new_samples:
                held_out = old_samples([stage.task], options.new_samples, _seed(stage, "new"))
                _, new = _outlook(stage, held_out, [stage.task], options, per_task)
        except (ConfigError, DataError, ModelError) as refusal:
            return dataclasses.replace(made, reason=str(refusal), seconds=time.perf_counter() - began)
    return dataclasses.replace(made, forecast=forecast, old=old, new=new, seconds=time.perf_counter() - began)


class Forecasting:
    """A `StageWatcher` that forecasts every task but the first and compares with the truth afterwards.

    What is learned is the same with and without it: random generators, modes and parameters stay as they are.

    Args:
        options: which samples.
        per_task: whether a sample's own task is known (task-incremental evaluation).
        report: called with the forecast of a task before training, and again with the truth.
        keep: whether all forecasts stay in memory, or only the last.

    Attributes:
        made: the forecasts so far, task by task.

    >>> Forecasting(ForecastOptions(samples=500)).made
    []
    """

    def __init__(
        self,
        options: ForecastOptions | None = None,
        *,
        per_task: bool = False,
        report: Callable[[StageForecast], None] = lambda forecast: None,
        keep: bool = True,
    ) -> None:
        self.options = options or ForecastOptions()
        self.per_task = per_task
        self.report = report
        self.keep = keep
        self.made: list[StageForecast] = []
        self._past: list[Task] = []
        self._began = 0.0
        self._errors: dict[str, float] = {"exact": 0.0}  # form -> largest relative error of the drift so far

    def before(self, stage: Stage) -> None:
        """Forecast the stage, unless nothing was learned before."""
        if self._past:
            found = forecast_stage(stage, self._past, self.options, per_task=self.per_task)
            self._keep(dataclasses.replace(found, error_so_far=self._errors.get(_form(found))))
        self._began = time.perf_counter()

    def after(self, stage: Stage) -> None:
        """Put the truth beside the forecast."""
        seconds = time.perf_counter() - self._began
        self._past.append(stage.task)
        if not self.made or self.made[-1].task.index != stage.task.index:
            return
        found = self.made.pop()
        with undisturbed(stage):
            old, new = (self._truth(outlook, stage) for outlook in (found.old, found.new))
        quality = None if old is None else old.quality()
        if quality is not None and _form(found) != "exact" and math.isfinite(quality.relative_error):
            self._errors[_form(found)] = max(quality.relative_error, self._errors.get(_form(found), 0.0))
        self._keep(dataclasses.replace(found, old=old, new=new, training_seconds=seconds))

    def state_dict(self) -> dict[str, Any]:
        """Which tasks were learned, and how far forecasts were off."""
        return {"past": [task.index for task in self._past], "errors": dict(self._errors)}

    def load_state_dict(self, state: dict[str, Any], tasks: Sequence[Task]) -> None:
        """Go on from `state_dict`; earlier forecasts are not in `made`."""
        self._past = [tasks[index] for index in state["past"]]
        self._errors = dict(state["errors"])

    def _truth(self, outlook: Outlook | None, stage: Stage) -> Outlook | None:
        return None if outlook is None else outlook.learned(_scores(stage, outlook.samples.samples))

    def _keep(self, forecast: StageForecast) -> None:
        self.made = [*(self.made if self.keep else []), forecast]
        self.report(forecast)


def _form(found: StageForecast) -> str:
    """Errors are remembered by form; a forecast for other views or without clipping is no exact one."""
    if found.forecast is None:
        return "refused"
    return found.forecast.form if found.forecast.form != "exact" or found.forecast.exact else "nearly exact"


def _outlook(
    stage: Stage, chosen: OldSamples, tasks: Sequence[Task], options: ForecastOptions, per_task: bool
) -> tuple[Forecast, Outlook]:
    seen = stage.task.n_seen - len(stage.task.new_classes)
    outputs = _scores(stage, chosen.samples)
    if bool(torch.isneginf(outputs[:, seen:]).all(dim=0).any()):
        raise ConfigError(
            f"{type(stage.method).__name__} scores a new class by what it stores of it after training, so its outputs "
            "do not follow from the steps of the recipe. The theory report says how far old classes move."
        )
    forecast = forecast_forgetting(
        stage.method,
        chosen.samples,
        stage.task,
        recipe(stage.plan, len(stage.samples), stage.task.index),
        seen=seen,
        form=options.form,
        refine=options.refine,
        batch_size=min(BATCH, stage.plan.eval_batch_size),
    )
    notes = (*recipe_notes(stage.plan), *_differing(forecast, outputs, stage.plan))
    if notes:
        forecast = dataclasses.replace(forecast, exact=False, notes=(*forecast.notes, *notes))
    competing = competing_outputs(tasks, chosen, outputs.shape[1], per_task=per_task)
    return forecast, Outlook(chosen, outputs, forecast.drift.detach().float().cpu(), competing, seen)


def _scores(stage: Stage, samples: Samples) -> torch.Tensor:
    return predicted_scores(stage.method, samples, stage.runtime, batch_size=stage.plan.eval_batch_size)


def _differing(forecast: Forecast, outputs: torch.Tensor, plan: TrainingPlan) -> tuple[str, ...]:
    """Whether the forecast starts from other outputs than the method predicts with."""
    if plan.precision != "fp32":
        return ()
    apart = float((forecast.outputs.detach().float().cpu() - outputs).norm() / outputs.norm().clamp(min=1e-30))
    if apart <= SAME:
        return ()
    return (
        f"the method predicts with other outputs than it trains: they differ by {100 * apart:.2g} % before training",
    )


def _seed(stage: Stage, which: str) -> int:
    return derived_seed(stage.plan.seed, "forecast", which, stage.task.index)


def describe(plan: TrainingPlan, n: int) -> dict[str, Any]:
    """The recipe in plain values, for a record; of SGD with its `effective_time` (at the head's rate, from rest).

    >>> found = describe(TrainingPlan(optimizer="sgd", lr=0.1, momentum=0.0, schedule="constant", epochs=2), 100)
    >>> found["steps"], round(found["effective_time"], 6)
    (8, 0.8)
    """
    found: dict[str, Any] = {
        "optimizer": plan.optimizer,
        "lr": plan.lr,
        "head_lr": plan.head_lr,
        "steps": plan.steps(n),
        "epochs": plan.epochs,
        "batch_size": plan.batch_size * plan.accumulate,
        "schedule": plan.schedule,
        "warmup": plan.warmup,
        "weight_decay": plan.weight_decay,
    }
    own: dict[str, Any] = {"betas": plan.betas}
    if plan.optimizer == "sgd":
        time = effective_time(plan, steps=plan.steps(n), from_rest=True) if plan.momentum < 1 else None
        own = {"momentum": plan.momentum, "nesterov": plan.nesterov, "effective_time": time}
    return {**found, **own, "clip_norm": plan.clip_norm, "precision": plan.precision}


@contextmanager
def undisturbed(stage: Stage) -> Iterator[None]:
    """Leave random generators and the modes of the method's modules as they were."""
    modes = {module: module.training for module in stage.method.modules()}
    states = random.getstate(), np.random.get_state()
    device = stage.runtime.device
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode
        random.setstate(states[0])
        np.random.set_state(states[1])

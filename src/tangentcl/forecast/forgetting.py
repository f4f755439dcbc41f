"""Forecasting what training on new samples does to the outputs on old ones, before a gradient step is taken."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from tangentcl.data import Samples, Task
from tangentcl.errors import ConfigError, DataError, ModelError, nearest
from tangentcl.forecast.dynamics import Dynamics
from tangentcl.forecast.forecast import Cost, Forecast
from tangentcl.forecast.head import Linear, linear_head
from tangentcl.forecast.inputs import Inputs
from tangentcl.forecast.linear import linear_forecast
from tangentcl.forecast.local_forecast import LocalForecaster
from tangentcl.forecast.own_loss import PROBE, loss_columns
from tangentcl.forecast.penalised import Penalised
from tangentcl.forecast.problem import LinearProblem, check_columns, check_targets, linear_problem
from tangentcl.forecast.setting import Setting
from tangentcl.kernels.batch import tensors, with_tensors
from tangentcl.kernels.network import Network, Outputs

Form = Literal["auto", "exact", "bilinear", "ntk"]
FORMS = ("auto", "exact", "bilinear", "ntk")
DROPOUT = "training runs dropout, in the forecast none is"
VIEWS = "training draws random views of the new samples; the forecast is for their fixed views"


class Prepared:
    """A model, old and new samples, looked at once; a forecast for every recipe that is asked for.

    The model must stay as it is while forecasts are made. Made by `prepare_forecast`.

    Attributes:
        form: "exact", "bilinear" or "ntk".
        columns: outputs in the loss; None = all.
    """

    def __init__(self, setting: Setting, *, form: Form, columns: Candidates, loss_of: nn.Module) -> None:
        self._setting, self._candidates, self._model = setting, columns, loss_of
        self._settled: dict[str, Sequence[int] | None] = {}  # loss of a recipe -> outputs in it
        self._old: Tensor | None = None  # features
        self._new: Tensor | None = None
        self._local: dict[str, LocalForecaster] = {}
        self.form = self._form(form)

    @property
    def setting(self) -> Setting:
        """Model, head and samples, as they were found."""
        return self._setting

    def forecast(self, dynamics: Dynamics, *, refine: float = 0.0, strength: float | None = None) -> Forecast:
        """What this recipe will do to the old outputs.

        Args:
            dynamics: the training recipe.
            refine: share of the steps, in [0, 1), that are really trained (on a copy of the parameters) before the
                rest is forecast from there. Of use where `Forecast.trust` is low; it costs that share of the training.
            strength: of the penalty that the model adds to its loss (``model.penalty(values, strength=...)``), in
                place of its own; the model stays as it is.

        Raises:
            ModelError: the model minimises another loss, or has no penalty of a strength. DataError: labels without an
                output. ConfigError: a recipe that diverges, or that the form cannot follow.
        """
        if not 0 <= refine < 1:
            raise ConfigError(f"refine is a share of the training, at least 0 and below 1, got {refine!r}")
        began = time.perf_counter()
        dynamics = self._as_trained(dynamics, strength)
        columns = self.columns(dynamics.loss)
        if self.form == "exact":
            found = self._exactly(dynamics, columns)
        else:
            found = self._localised(dynamics.loss, columns).forecast(dynamics, refine=refine)
        return replace(found, cost=Cost(time.perf_counter() - began, found.cost.forward_passes))

    def parameters_after(self, dynamics: Dynamics) -> dict[str, Tensor]:
        """What trains, by its name in the model, as the recipe will leave it; old samples are not looked at.

        Exact for a linear head, else of the local model.
        """
        dynamics = self._as_trained(dynamics)
        columns = self.columns(dynamics.loss)
        if self.form != "exact":
            return self._localised(dynamics.loss, columns).parameters_after(dynamics)
        return self._moved(dynamics.displacement(self._problem(columns)).weight)

    def _moved(self, moved: Tensor) -> dict[str, Tensor]:
        """Values of the head's parameters after a change of the head, [d (+ 1), C]."""
        s = self._setting
        assert s.head is not None
        names = {id(p): name for name, p in s.network.parameters.items()}
        pieces = {"weight": moved[: s.head.weight.shape[1]].T, "bias": moved[-1]}
        own = {key: p for key, p in s.head.named_parameters(recurse=False) if id(p) in names}
        return {names[id(p)]: (p.detach().double() + pieces[key].to(p.device)).to(p.dtype) for key, p in own.items()}

    def new_features(self, after: dict[str, Tensor], loss: str = "cross_entropy") -> tuple[Tensor, Tensor, float]:
        """What goes into the head on the new samples now and with the parameters ``after``, [n, d], and the gap there.

        For forms that follow features; see `tangentcl.forecast.Trust` for the gap.
        """
        return self._localised(loss, self.columns(loss)).new_features(after)

    def look(self, loss: str = "cross_entropy") -> Prepared:
        """Do now what all recipes with this loss share, instead of at the first forecast; returns itself."""
        columns = self.columns(loss)
        if self.form == "exact":
            self._problem(columns)
            self._old_features()
        else:
            self._localised(loss, columns).look()
        return self

    def columns(self, loss: str) -> Sequence[int] | None:
        """Outputs in a loss; None = all. Where none were named, the model is asked."""
        if loss not in self._settled:
            s = self._setting
            few = s.new.take(torch.arange(min(PROBE, len(s.new))))
            with s.network.evaluating(), torch.no_grad():
                outputs = s.network(s.move(few)).float().cpu()
            self._settled[loss] = loss_columns(self._model, s.new, outputs, loss, self._candidates, s.move)
        return self._settled[loss]

    def problem(self, loss: str) -> LinearProblem:
        """Features of the new samples and the head, all that an exact forecast of the head's change needs.

        Raises:
            ModelError: more than a linear head trains, or the model minimises another loss.
        """
        if self.form != "exact":
            raise ModelError(f"only the exact form has a linear problem, this forecast has the form '{self.form}'")
        return self._problem(self.columns(loss))

    def _as_trained(self, dynamics: Dynamics, strength: float | None = None) -> Dynamics:
        """The recipe with the penalty that the model adds to its loss: one that has a method ``penalty`` is asked."""
        own = getattr(self._model, "penalty", None)
        s = self._setting
        if strength is not None:
            if not callable(own) or isinstance(dynamics, Penalised):
                what = "the recipe brings its own penalty" if callable(own) else "it adds no penalty to its loss"
                raise ModelError(
                    f"{type(self._model).__name__} cannot be forecast at a strength of {strength:g}: {what}"
                )
            own = partial(own, strength=strength)
        if not callable(own) or not dynamics.has_steps or isinstance(dynamics, Penalised):
            return dynamics
        parts = {} if s.head is None else {part: f"{s.head_name}.{part}" for part, _ in s.head.named_parameters()}
        return Penalised(inner=dynamics, penalty=own, **parts)

    def _problem(self, columns: Sequence[int] | None) -> LinearProblem:
        s = self._setting
        assert s.head is not None
        assert s.new.labels is not None
        if self._new is None:
            self._new = s.features(s.new)
        bias = None if s.head.bias is None else s.head.bias.cpu()
        return linear_problem(self._new, s.head.weight.cpu(), bias, s.new.labels, columns)

    def _form(self, form: Form) -> str:
        s = self._setting
        head = {id(p) for p in s.head.parameters()} if s.head is not None else set()
        trains = {id(p): name for name, p in s.network.parameters.items()}
        if set(trains) == head:
            return "exact" if form == "auto" else form
        if form == "exact":
            others = [name for key, name in trains.items() if key not in head]
            why = f"{', '.join(others[:3])} of {len(others)} others train" if others else "a part of it is frozen"
            raise ModelError(
                "form='exact' needs a linear head that trains as a whole, and nothing else that does; here "
                f"{why if s.head is not None else 'no linear layer makes the outputs'}. Use form='auto'."
            )
        return "bilinear" if form == "auto" else form

    def _exactly(self, dynamics: Dynamics, columns: Sequence[int] | None) -> Forecast:
        s = self._setting
        assert s.head is not None
        problem = self._problem(columns)
        moved = dynamics.displacement(problem)
        found = linear_forecast(
            self._old_features(),
            s.head,
            problem,
            dynamics,
            seen=s.seen,
            labels_old=s.old.labels,
            notes=s.notes,
            moved=moved,
        )
        cost = Cost(forward_passes=len(s.new) + len(s.old))
        return replace(found, cost=cost, origin=s.origin(self._moved(moved.weight)))

    def _old_features(self) -> Tensor:
        if self._old is None:
            self._old = self._setting.features(self._setting.old)
        return self._old

    def _localised(self, loss: str, columns: Sequence[int] | None) -> LocalForecaster:
        if loss not in self._local:
            s = self._setting
            assert s.new.labels is not None
            chosen = check_columns(columns, s.n_outputs)
            targets = check_targets(s.new.labels, chosen, len(s.new))
            self._local[loss] = LocalForecaster(s, chosen, targets, loss, first_order=self.form == "ntk")
        return self._local[loss]


Candidates = Sequence[Sequence[int] | None]


def prepare_forecast(
    model: nn.Module | tuple[nn.Module, Linear],
    old: Any,
    new: Any,
    *,
    outputs: Outputs | None = None,
    columns: Sequence[int] | None = None,
    seen: int | None = None,
    form: Form = "auto",
    directions: int = 8,
    modes: int = 128,
    batch_size: int = 64,
    memory: float = 4e9,
) -> Prepared:
    """Look at a model, old and new samples, so that forecasts for several recipes share the work.

    Args:
        model: any module; what requires grad is what trains. Or a pair (backbone, head).
        old: samples whose outputs are forecast: `Samples`, a batch (a tensor, or a dict, list or tuple of tensors), or
            a pair (batch, labels). None where only `Prepared.parameters_after` is wanted.
        new: what training will see, in the order that the recipe's batches refer to: `Samples`, a pair (batch,
            targets), or the `Task` they belong to.
        outputs: ``outputs(model, batch) -> [n, C]``; None calls ``model(batch)``.
        columns: outputs in the loss; None = all, or for a method of this library what its own loss says.
        seen: outputs that count for the accuracy now; None = those before the task, where ``new`` is a task, else all.
        form: "exact": a linear head, and nothing else, trains. "bilinear": a local model of the features, multiplied
            out with the head (docs/forecast.md). "ntk": the plain linearised network. "auto": exact where possible,
            else bilinear.
        directions: of the features per sample that the bilinear form follows.
        modes: old samples whose kernel the bilinear and the plain form decompose; 0 for none.
        batch_size: samples per forward pass.
        memory: bytes for derivatives.

    Raises:
        ModelError: nothing trains, or the model is random, mixes samples, or gives no [n, C].
        DataError: no samples, no labels, or both do not fit. ConfigError: an unknown form.

    >>> from tangentcl.forecast import SGD
    >>> _ = torch.manual_seed(0)
    >>> model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
    >>> prepared = prepare_forecast(model, torch.randn(5, 4), (torch.randn(6, 4), torch.tensor([0, 1] * 3)))
    >>> [prepared.forecast(SGD(lr=lr, batches=[[0, 1, 2], [3, 4, 5]])).form for lr in (0.01, 0.1)]
    ['bilinear', 'bilinear']
    """
    if form not in FORMS:
        raise ConfigError(f"form must be one of {', '.join(FORMS)}, got {form!r}.{nearest(str(form), FORMS)}")
    whole: nn.Module = nn.Sequential(*model) if isinstance(model, tuple) else model
    candidates: list[Sequence[int] | None] = [columns]
    if isinstance(new, Task):
        seen = (new.n_seen - len(new.new_classes)) or None if seen is None else seen
        candidates = [None, new.classes] if columns is None else candidates
    given_old = None if old is None else Inputs.of(old, "old")
    given_new = Inputs.of(_training_samples(model, new), "new")
    if given_new.labels is None:
        raise DataError("new samples need labels: pass new=(batch, labels)")
    network = Network(whole, outputs)
    device = next(iter(network.parameters.values())).device
    move: Callable[[Any], Any] = partial(_moved, device=device)
    with network.evaluating():
        probe = network.check(move(given_new.take(torch.arange(min(2, len(given_new))))))
        head = linear_head(network, move(given_new.take(torch.arange(min(2, len(given_new))))))
    n_outputs = probe.shape[1]
    if seen is not None and not 0 < seen <= n_outputs:
        raise DataError(f"seen must be from 1 to the {n_outputs} outputs, got {seen}")
    setting = Setting(
        network=network,
        head=head,
        given_old=given_old,
        new=given_new,
        n_outputs=n_outputs,
        seen=n_outputs if seen is None else seen,
        move=move,
        notes=(*((VIEWS,) if given_new.is_random else ()), *((DROPOUT,) if network.drops_in_training else ())),
        directions=directions,
        modes=modes,
        batch_size=batch_size,
        memory=memory,
    )
    return Prepared(setting, form=form, columns=candidates, loss_of=whole)


def _moved(x: Any, device: torch.device) -> Any:
    """A batch on another device; what is not a tensor stays."""
    return with_tensors(x, [t.to(device, non_blocking=True) for t in tensors(x)])


def _training_samples(model: Any, new: Any) -> Any:
    """What a task means to a method: its own samples, and stored ones where it keeps some."""
    if not isinstance(new, Task):
        return new
    asked = getattr(model, "training_samples", None)
    samples: Samples | None = asked(new) if callable(asked) else new.train
    if samples is None:
        raise ModelError(f"{type(model).__name__} learns nothing at task {new.index} ('{new.name}')")
    return samples


def forecast_forgetting(
    model: nn.Module | tuple[nn.Module, Linear],
    old: Any,
    new: Any,
    dynamics: Dynamics,
    *,
    outputs: Outputs | None = None,
    columns: Sequence[int] | None = None,
    seen: int | None = None,
    form: Form = "auto",
    refine: float = 0.0,
    batch_size: int = 64,
    memory: float = 4e9,
) -> Forecast:
    """What training ``model`` on ``new`` will do to its outputs on ``old``. Nothing is trained or changed.

    Exact for a frozen backbone with a linear head; a local forecast with a measure of trust for LoRA, adapters and full
    fine-tuning. The arguments are those of `prepare_forecast`, and ``dynamics`` and ``refine`` those of
    `Prepared.forecast`.

    >>> from tangentcl.forecast import SGD
    >>> _ = torch.manual_seed(0)
    >>> model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
    >>> new = torch.randn(6, 4), torch.tensor([0, 1, 0, 1, 0, 1])
    >>> forecast = forecast_forgetting(model, torch.randn(5, 4), new, SGD(lr=0.1, batches=[[0, 1, 2], [3, 4, 5]]))
    >>> forecast.drift.shape, forecast.exact, forecast.trust.level
    (torch.Size([5, 2]), False, 'high')
    """
    prepared = prepare_forecast(
        model, old, new, outputs=outputs, columns=columns, seen=seen, form=form, batch_size=batch_size, memory=memory
    )
    return prepared.forecast(dynamics, refine=refine)

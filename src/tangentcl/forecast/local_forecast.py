"""The forecast for LoRA, adapters and full fine-tuning: a local model of the network is trained, not the network."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from tangentcl.errors import ConfigError
from tangentcl.forecast.directions import feature_directions, output_directions
from tangentcl.forecast.dynamics import Dynamics
from tangentcl.forecast.factors import TOKENS, derivatives
from tangentcl.forecast.forecast import Cost, Forecast
from tangentcl.forecast.inputs import Inputs
from tangentcl.forecast.local import Course, Head, Local, Objective, follow, saturated
from tangentcl.forecast.ntk_closed_form import closed_form_values
from tangentcl.forecast.old_kernel import JacobianModes
from tangentcl.forecast.old_modes import old_modes
from tangentcl.forecast.problem import linear_problem, loss_residual
from tangentcl.forecast.setting import Setting
from tangentcl.forecast.site_check import checked_sites
from tangentcl.forecast.sites import Site, Values, find_sites, wide_values
from tangentcl.forecast.tangent import along
from tangentcl.forecast.trust import Trust, belief
from tangentcl.kernels.network import Network

PROBE = 32  # new samples on which the local model is compared with the network


@dataclass(frozen=True)
class Around:
    """What is known of the network near some values of its parameters.

    Attributes:
        local: the new samples; sites: where they are adapted; start: the values.
        fixed: parameters that training moves and the local model does not.
        passes: forward passes of one sample that it took.
    """

    local: Local
    sites: list[Site]
    start: Values
    fixed: tuple[str, ...]
    passes: float


class LocalForecaster:
    r"""Forecasts by following the true recipe through a local model of the network.

    1. Derivatives of the features of new samples, in a few directions each (`feature_directions`).
    2. The recipe, step by step, with its optimiser, rates and batches, on the local model (`Local`): no network is run.
    3. Old samples: one forward-mode derivative along the displacement, multiplied out with the moved head:
       :math:`D = W_T\,\sigma(h + \dot h) + b_T - f`.
    4. The network itself at the forecast's parameters, one forward pass of each old sample: near the start it is the
       better answer, far from it the worse one. The drift is the mean of both with weights by their gap (`belief`),
       and the gap is the trust.

    With ``first_order`` no saturation, no products and no last step: the plain linearised network in all outputs
    (Jacot et al., NeurIPS 2018; Lee et al., NeurIPS 2019, equation 9).

    Args:
        columns: outputs in the loss, int64 [C_active]; targets: [n, C_active]; loss: of the recipes.
    """

    def __init__(
        self, setting: Setting, columns: Tensor, targets: Tensor, loss: str, *, first_order: bool = False
    ) -> None:
        self.setting, self.first_order = setting, first_order
        device, dtype = setting.device, self._dtype()
        self.objective = Objective(targets.to(device, dtype), columns.to(device), loss)
        self._around: Around | None = None
        self._modes: JacobianModes | None = None

    @cached_property
    def outputs(self) -> Tensor:
        """Of the old samples before training, [n1, C]."""
        return self.setting.each(self.setting.old, self.setting.network, {})

    def forecast(self, dynamics: Dynamics, *, refine: float = 0.0) -> Forecast:
        """The drift of the old outputs under a recipe; a share ``refine`` of it is really trained first."""
        s = self.setting
        course, passes, pilot = Course(wide_values(s.network)), 0.0, math.nan
        around = self._here()
        if refine:
            stop = max(1, round(refine * len(dynamics.stepwise(len(s.new), s.device).rows)))
            guess = self._drift(around, self._follow(around, dynamics, stop).values)[0]
            course, before = self._really(course, dynamics, stop), self.outputs  # of the values held now
            with s.holding(course.values):
                truth = s.each(s.old, s.network, {}) - before
                around = self._look(course.values)
                passes += 3 * sum(len(r) for r in _rows(dynamics, s, stop)) + 4 * len(s.old)
                pilot = _cosine(guess, truth)
        if self.first_order and not dynamics.has_steps:
            course = Course(closed_form_values(s, self.objective, dynamics))
        else:
            course = self._follow(around, dynamics, None, course)
        with s.holding(around.start):
            drift, trust, looked = self._judged(around, course.values, pilot)
        if s.modes and self._modes is None:
            self._modes, cost = old_modes(s)
            passes += cost
        return Forecast(
            outputs=self.outputs,
            drift=drift,
            seen=s.seen,
            old_kernel=self._modes,
            form="ntk" if self.first_order else "bilinear",
            exact=False,
            notes=(*s.notes, *self._said(around)),
            labels=None if s.old.labels is None or s.old.labels.is_floating_point() else s.old.labels,
            trust=trust,
            cost=Cost(forward_passes=passes + around.passes + looked),
            origin=s.origin(course.values),
        )

    def parameters_after(self, dynamics: Dynamics) -> Values:
        """Values of what trains at the end of the recipe, by name, as the local model has them."""
        return self._follow(self._here(), dynamics, None).values

    def new_features(self, values: Values) -> tuple[Tensor, Tensor, float]:
        """Features of the new samples before and after, [n, d] on the CPU, and the gap of their outputs (see `Trust`).

        After: the mean of the network's and the local model's, with weights by the gap (`belief`). The network has to
        have a head.
        """
        s, around = self.setting, self._here()
        body, head = s.body(), around.local.head
        assert head is not None
        h, moved = along(s, body, around.sites, around.start, values, s.new)
        local = saturated(h, moved)
        actual = s.each(s.new, body, {name: values[name] for name in body.parameters})
        before, near, there = (
            head.outputs(x.to(s.device, self._dtype()), at).double()
            for x, at in ((h, around.start), (local, values), (actual, values))
        )
        gap = _relative(there - near, near - before)
        weight = belief(gap)
        return h, weight * actual + (1 - weight) * local, gap

    def look(self) -> None:
        """Find what forecasts of all recipes share."""
        self._here()

    def _here(self) -> Around:
        if self._around is None:
            self._around = self._look(wide_values(self.setting.network))
        return self._around

    def _look(self, values: Values) -> Around:
        """Derivatives around the values that the model holds now."""
        s, body = self.setting, self.setting.body()
        body = s.network if self.first_order else body
        head = None if self.first_order or s.head is None else s.head
        sites, rest = find_sites(body, head, first_order=self.first_order)
        sites, rest = checked_sites(body, sites, rest, s.move(s.new.take(torch.arange(min(2, len(s.new))))))
        h = s.each(s.new, body, {})
        directions = self._directions(h).to(s.device, self._dtype())
        rest, fixed = self._affordable_rest(body, rest, directions)
        kept = self._affordable(body, sites, rest, directions)
        found = derivatives(body, sites, rest, s.new, directions, move=s.move, chunk=min(16, s.batch_size), dtype=kept)
        local = Local(h.to(s.device, self._dtype()), directions, found, self._head(), head is not None)
        start = {name: value.clone() for name, value in values.items()}
        return Around(local, sites, start, fixed, len(h) * (2.0 + directions.shape[1]))

    def _head(self) -> Head | None:
        head = self.setting.head
        if head is None or self.first_order:
            return None
        names = {id(p): name for name, p in self.setting.network.parameters.items()}
        own = {key: names[id(p)] for key, p in head.named_parameters(recurse=False) if id(p) in names}
        bias = None if head.bias is None else head.bias.detach().clone().to(self._dtype())
        return Head(head.weight.detach().clone().to(self._dtype()), bias, own)

    def _directions(self, h: Tensor) -> Tensor:
        s, o = self.setting, self.objective
        columns = o.columns.cpu()
        if self.first_order or s.head is None:
            most = len(columns) if self.first_order else max(s.directions, 16)
            residual = loss_residual(o.loss, h[:, columns].double(), o.targets.cpu().double())
            return output_directions(h, residual, columns, most)
        bias = None if s.head.bias is None else s.head.bias.cpu()
        targets = o.targets.cpu().double()
        problem = linear_problem(h, s.head.weight.cpu(), bias, targets, columns.tolist())
        own = (s.directions + 1) // 2
        trains = any(p is q for p in s.head.parameters() for q in s.network.parameters.values())
        return feature_directions(problem, o.loss, own, s.directions - own, width=h.shape[1], trains=trains)

    def _affordable_rest(
        self, body: Network, names: tuple[str, ...], directions: Tensor
    ) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Parameters without a rule whose rows fit a quarter of the memory, smallest first, and those that do not."""
        room = self.setting.memory / 4 / self._dtype().itemsize / directions[..., 0].numel()
        rest: set[str] = set()
        for name in sorted(names, key=lambda name: body.parameters[name].numel()):
            room -= body.parameters[name].numel()
            if room >= 0:
                rest.add(name)
        return tuple(n for n in names if n in rest), tuple(n for n in names if n not in rest)

    def _affordable(self, body: Network, sites: list[Site], rest: tuple[str, ...], directions: Tensor) -> torch.dtype:
        """The precision in which derivatives fit the memory; ConfigError where none does."""
        s, (n, k, _) = self.setting, directions.shape
        values = body.values
        numbers = n * k * sum(values[name].numel() for name in rest)
        for site in sites:
            numbers += n * site.numbers(k, TOKENS)
        for dtype in (self._dtype(), torch.bfloat16):
            if numbers * dtype.itemsize <= s.memory:
                return dtype
        raise ConfigError(
            f"derivatives of {n} new samples in {k} directions would take up to {numbers * 2 / 1e9:.3g} GB; memory is "
            f"{s.memory / 1e9:.3g} GB. Pass fewer new samples, fewer directions, or more memory; or train fewer layers."
        )

    def _follow(self, around: Around, dynamics: Dynamics, stop: int | None, course: Course | None = None) -> Course:
        course = course or Course(around.start)
        return follow(course, around.local.outputs, self.objective, dynamics, self._head_names(), stop)

    def _head_names(self) -> tuple[str, ...]:
        """Parameters at the head's rate."""
        head = self.setting.head
        own = {id(p) for p in head.parameters()} if head is not None else set()
        return tuple(name for name, p in self.setting.network.parameters.items() if id(p) in own)

    def _really(self, course: Course, dynamics: Dynamics, stop: int) -> Course:
        """Train the network itself for some steps, on a copy of its parameters."""
        s = self.setting

        def outputs(rows: Tensor, values: Values) -> Tensor:
            return s.network.at(values, s.move(s.new.take(rows.cpu())))

        with s.network.evaluating():
            return follow(course, outputs, self.objective, dynamics, self._head_names(), stop)

    def _drift(self, around: Around, values: Values, inputs: Inputs | None = None) -> tuple[Tensor, Tensor]:
        """Change of the outputs since ``around``, and outputs there, [n, C]; the model holds ``around.start``."""
        s = self.setting
        inputs = s.old if inputs is None else inputs
        body = s.network if self.first_order else s.body()
        h, moved = along(s, body, around.sites, around.start, values, inputs)
        local, device = around.local, s.device
        h, moved = h.to(device), moved.to(device)
        before = local.read(h, torch.zeros_like(h), around.start)
        return (local.read(h, moved, values) - before).cpu(), before.cpu()

    def _judged(self, around: Around, values: Values, pilot: float) -> tuple[Tensor, Trust, float]:
        """Drift since the beginning, trust, and what looking took; the model holds ``around.start``."""
        s = self.setting
        drift, start = self._drift(around, values)
        already = start - self.outputs
        actual = s.each(s.old, s.network, values) - start
        gap = _relative(actual - drift, drift)
        few = torch.arange(0, len(s.new), max(1, len(s.new) // PROBE))[:PROBE]
        probe = Inputs(s.new.take(few), None)
        near, before = self._drift(around, values, probe)
        on_new = s.each(probe, s.network, values) - before
        body = s.network if self.first_order else s.body()
        here = along(s, body, around.sites, around.start, values, probe)[1]
        there = along(s, body, around.sites, around.start, values, probe, at=values)[1]
        weight = 0.0 if self.first_order else belief(gap)
        whole = _relative(actual - drift, already + drift)  # what was really trained is not in doubt
        trust = Trust(whole, _relative(on_new - near, near), _relative(there - here, here), pilot)
        passes = 4.4 * len(s.old) + 8 * len(few)
        return already + weight * actual + (1 - weight) * drift, trust, passes

    def _said(self, around: Around) -> tuple[str, ...]:
        if self.first_order:
            return ("the network is replaced by its first-order expansion",)
        k = around.local.directions.shape[1]
        lost = max((factors.lost for _, factors in around.local.derivatives.sites), default=0.0)
        said = f"the network is replaced by a local model; features of new samples move along {k} directions each"
        if around.fixed:
            said += f"; {len(around.fixed)} tensors without a rule stay as they are ({', '.join(around.fixed[:2])})"
        if lost > 0.01:
            said += f"; sums over tokens are compressed and lose up to {100 * lost:.0f} % of a derivative"
        return (said,)

    def _dtype(self) -> torch.dtype:
        parameter = next(iter(self.setting.network.parameters.values()))
        return torch.promote_types(parameter.dtype, torch.float32)


def _rows(dynamics: Dynamics, s: Setting, stop: int) -> list[Tensor]:
    every = torch.arange(len(s.new))
    return [
        every[rows.cpu() if isinstance(rows, Tensor) else rows]
        for rows in dynamics.stepwise(len(s.new), s.device).rows[:stop]
    ]


def _relative(difference: Tensor, whole: Tensor) -> float:
    return float(difference.double().norm() / whole.double().norm().clamp(min=1e-30))


def _cosine(first: Tensor, second: Tensor) -> float:
    return float(
        (first.double() * second.double()).sum() / (first.double().norm() * second.double().norm()).clamp(min=1e-30)
    )

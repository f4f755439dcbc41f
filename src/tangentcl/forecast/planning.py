"""Choosing how to train by forecasts, without training."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from tangentcl.data import Samples, Task
from tangentcl.errors import ConfigError, DataError, ModelError
from tangentcl.forecast.dynamics import Dynamics
from tangentcl.forecast.forecast import Forecast
from tangentcl.forecast.forgetting import Prepared, prepare_forecast
from tangentcl.forecast.inputs import Inputs
from tangentcl.forecast.training_choice import Prospect, TrainingChoice, sampling_margin
from tangentcl.kernels.batch import tensors, with_tensors

Model = Any  # what `prepare_forecast` takes: a module, or (backbone, head)


@dataclass(frozen=True)
class Candidate:
    """A recipe that could be taken.

    Attributes:
        settings: its settings by name, for tables and for the experiment file.
        dynamics: what training with them does.
        model: as it is when training would start (with rows for new classes); or a function without arguments that
            makes it, called once for all candidates that hold the same function.
        columns: outputs in the loss; None = as the model's own loss says.
        training_samples: samples that training would go through, every epoch counted.
        strength: of the penalty that the model adds to its loss; None = as the model has it. See `Prepared.forecast`.
    """

    settings: Mapping[str, Any]
    dynamics: Dynamics
    model: Model | Callable[[], Model]
    columns: tuple[int, ...] | None = None
    training_samples: int = 0
    strength: float | None = None


def plan_training(
    candidates: Sequence[Candidate],
    old: Any,
    new: Any,
    new_test: Any,
    *,
    max_forgetting: float = 0.02,
    min_learned: float = 0.8,
    seen: int | None = None,
    outputs: Any = None,
    refine: float = 0.0,
    confidence: float = 0.0,
    batch_size: int = 64,
    observe: Callable[[int, Prospect], None] = lambda number, row: None,
) -> TrainingChoice:
    """Forecast every candidate and choose the one that learns most and forgets no more than allowed.

    A model is prepared once (features, or Jacobians) for all recipes that share it. A recipe that would diverge, or
    whose model cannot be forecast, is kept as a row that says so. A forecast of low trust is shown and never chosen.

    Args:
        candidates: recipes, see `Candidate`.
        old: old samples with labels, `Samples` or (batch, labels): what is not to be forgotten.
        new: the samples that training would see: `Samples`, a `Task`, or (batch, labels).
        new_test: held-out new samples with labels.
        max_forgetting: share of old samples that may be lost.
        min_learned: share of the best new accuracy among believable candidates that a recipe has to reach.
        seen: outputs that count for the old accuracy now; None = those before the task, where ``new`` is one, else all.
        outputs, batch_size: of `prepare_forecast`.
        refine: share of the training that is really done (on a copy) where a forecast is of low trust, before it is
            made again from there; see `Prepared.forecast`. 0 trains nothing.
        confidence: probability, below 1, with which forgetting is to stay within the tolerance on other old samples of
            the same kind as well; see `Prospect.old_margin`. 0 asks for these samples alone.
        observe: called with the number of the candidate and its row as soon as it is known.

    Raises:
        ConfigError: no candidate, or demands that make no sense. DataError: samples without labels.
        ModelError: no model can be forecast.

    >>> from tangentcl.forecast import Ridge
    >>> head = nn.Linear(2, 2)
    >>> _ = head.weight.data.copy_(torch.tensor([[3.0, 0.0], [0.0, 0.0]])), head.bias.data.zero_()
    >>> old = torch.tensor([[1.0, 0.0], [1.0, 0.1]]), torch.tensor([0, 0])
    >>> new = torch.tensor([[0.0, 1.0], [0.1, 1.0]]), torch.tensor([1, 1])
    >>> recipes = [Candidate({"strength": k}, Ridge(strength=k), head) for k in (0.1, 1e4)]
    >>> choice = plan_training(recipes, old, new, new, max_forgetting=0.0)
    >>> choice.chosen.settings, [row.new_after for row in choice.rows]
    ({'strength': 0.1}, [1.0, 0.5])
    """
    if not candidates:
        raise ConfigError("expected at least one candidate, got none")
    TrainingChoice((), max_forgetting, min_learned)  # refuses demands before any work
    if not 0 <= confidence < 1:
        raise ConfigError(f"confidence is a probability, at least 0 and below 1, got {confidence!r}")
    if seen is None and isinstance(new, Task):
        seen = (new.n_seen - len(new.new_classes)) or None
    both, labels, n_old = _together(old, new_test)
    groups: dict[tuple[int, tuple[int, ...] | None], list[int]] = {}
    for number, candidate in enumerate(candidates):
        groups.setdefault((id(candidate.model), candidate.columns), []).append(number)
    rows: dict[int, Prospect] = {}
    unknown: list[ModelError] = []
    for (_, columns), members in groups.items():
        model = _made(candidates[members[0]].model)
        try:
            prepared = prepare_forecast(
                model, both, new, outputs=outputs, columns=columns, seen=seen, modes=0, batch_size=batch_size
            )
            for number in members:
                found = _prospect(candidates[number], prepared, labels, n_old, refine)
                margin = sampling_margin(found.old_lost, found.old_gained, n_old, confidence)
                rows[number] = replace(found, old_margin=margin)
                observe(number, rows[number])
        except ModelError as error:
            unknown.append(error)
            rows |= {number: _refused(candidates[number], error) for number in members}
    if len(unknown) == len(groups):
        raise unknown[0]
    return TrainingChoice(tuple(rows[i] for i in range(len(candidates))), max_forgetting, min_learned)


def _refused(candidate: Candidate, error: Exception) -> Prospect:
    unknown = math.nan
    return Prospect(candidate.settings, unknown, unknown, unknown, "refused", str(error), candidate.training_samples)


def _prospect(candidate: Candidate, prepared: Prepared, labels: Tensor, n_old: int, refine: float) -> Prospect:
    began = time.perf_counter()
    try:
        forecast = prepared.forecast(candidate.dynamics, strength=candidate.strength)
        refine = refine if _level(forecast) == "low" else 0.0
        if refine:
            forecast = prepared.forecast(candidate.dynamics, refine=refine, strength=candidate.strength)
    except ConfigError as error:
        return _refused(candidate, error)
    positions = torch.arange(len(labels))
    old = forecast.subset(positions[:n_old])
    now, after = old.accuracy(labels[:n_old])
    lost = int(old.flips(labels[:n_old]).sum())
    predicted = forecast.subset(positions[n_old:]).after.argmax(dim=1).cpu()
    return Prospect(
        settings=candidate.settings,
        old_now=now,
        old_after=after,
        new_after=float((predicted == labels[n_old:]).double().mean()),
        trust=_level(forecast),
        sentence=forecast.sentence,
        training_samples=candidate.training_samples,
        seconds=time.perf_counter() - began,
        old_cautious=_cautious(forecast, labels[:n_old]),
        refined=refine,
        old_lost=lost,
        old_gained=lost - round((now - after) * n_old),
    )


def _cautious(forecast: Forecast, labels: Tensor) -> float | None:
    """Accuracy on the first samples if the drift were larger by the gap of a local forecast, at most the forecast's."""
    if forecast.trust is None or not math.isfinite(forecast.trust.gap):
        return None
    outputs, drift = forecast.outputs[: len(labels)], forecast.drift[: len(labels)]
    further = (outputs + (1 + forecast.trust.gap) * drift).argmax(dim=1).cpu() == labels
    said = forecast.after[: len(labels)].argmax(dim=1).cpu() == labels
    return min(float(right.double().mean()) for right in (further, said))


def _level(forecast: Forecast) -> str:
    if forecast.trust is not None:
        return forecast.trust.level
    return "exact" if forecast.exact else "medium"


def _made(model: Model | Callable[[], Model]) -> Model:
    return model() if callable(model) and not isinstance(model, nn.Module) else model


def _together(old: Any, new_test: Any) -> tuple[Any, Tensor, int]:
    """Old and held-out new samples as one, their labels, and how many are old."""
    parts = Inputs.of(old, "old"), Inputs.of(new_test, "new_test")
    labels = []
    for part, name in zip(parts, ("old", "new_test")):
        if part.labels is None or part.labels.is_floating_point():
            raise DataError(f"planning needs whole numbers as labels of {name}: Samples, or (batch, labels)")
        labels.append(part.labels)
    sources = [part.source for part in parts]
    if all(isinstance(source, Samples) for source in sources):
        return Samples.concat(sources), torch.cat(labels), len(labels[0])
    if any(isinstance(source, Samples) for source in sources):
        raise DataError("old and new_test must both be Samples, or both batches with labels")
    pieces = list(zip(tensors(sources[0]), tensors(sources[1])))
    if any(a.shape[1:] != b.shape[1:] for a, b in pieces):
        raise DataError(
            f"batches of old and new_test differ in shape: {[(list(a.shape), list(b.shape)) for a, b in pieces]}"
        )
    batch = with_tensors(sources[0], [torch.cat(pair) for pair in pieces])
    return (batch, torch.cat(labels)), torch.cat(labels), len(labels[0])

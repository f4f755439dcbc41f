"""A forecast of one task, and what came true, as records keep it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tangentcl.errors import DataError
from tangentcl.forecast import Forecast
from tangentcl.records import TaskForecast
from tangentcl.training import StageForecast
from tangentcl.training.outlook import Outlook

AT_RISK = 10  # samples named
WORST = 3  # classes in an event
TOP = 5  # eigenspaces described, and classes and samples of each
SHARES = (90, 95, 99)


def task_forecast(found: StageForecast, class_names: Sequence[str]) -> TaskForecast:
    """What a record keeps of a forecast; what needs the truth is None until the task is learned.

    Args:
        found: before or after training.
        class_names: in the order of stream labels.
    """
    task = found.task
    head: dict[str, Any] = {"task": task.index, "name": task.name, "recipe": found.recipe}
    if found.forecast is None or found.old is None:
        refused = {"status": "refused", "reason": found.reason, "exact": False, "cost": _cost(found, None)}
        return TaskForecast(task.index, task.name, {**head, **refused}, {})
    forecast, old = found.forecast, found.old
    quality = old.quality()
    summary = {
        **head,
        "status": "forecast",
        "reason": None,
        "form": forecast.form,
        "exact": forecast.exact,
        "notes": list(forecast.notes),
        "trust": None if forecast.trust is None else forecast.trust.to_dict(),
        "sentence": forecast.sentence,
        "n_old": len(old.labels),
        "n_old_available": old.samples.n_available,
        "samples_note": old.samples.note,
        "competing": "all outputs" if bool(old.competing.all()) else "own task",
        "accuracy": _accuracy(old, found.error_so_far),
        "classes": _classes(old, class_names),
        "tasks": _tasks(old, {past.index: past.name for past in found.past}),
        "at_risk": _at_risk(old, class_names),
        "flips": _flips(old),
        "modes": _modes(forecast, old, class_names),
        "quality": None if quality is None else quality.to_dict(),
        "cost": _cost(found, forecast),
    }
    return TaskForecast(task.index, task.name, summary, _arrays(forecast, old, found.new))


def in_short(kept: TaskForecast) -> dict[str, Any]:
    """The fields of the event: what is printed while a run goes on."""
    keys = ("status", "reason", "exact", "sentence", "n_old", "accuracy", "flips", "cost")
    worst = sorted(kept.summary.get("classes", []), key=lambda c: float(c["predicted"] - c["now"]))[:WORST]
    short = {key: kept.summary[key] for key in keys if key in kept.summary}
    return {"task": kept.task, "name": kept.name, **short, **({"classes": worst} if worst else {})}


def _accuracy(old: Outlook, error: float | None) -> dict[str, float | None]:
    predicted = old.accuracy("predicted")
    band = (None, None) if error is None else old.band(error)
    return {
        "now": old.accuracy("now"),
        "predicted": predicted,
        "real": None if old.real_drift is None else old.accuracy("real"),
        "low": band[0],
        "high": band[1],
    }


def _classes(old: Outlook, names: Sequence[str]) -> list[dict[str, Any]]:
    return [{"class": c, "name": names[c], **shares} for c, shares in _by_group(old, old.labels)]


def _tasks(old: Outlook, names: Mapping[int, str]) -> list[dict[str, Any]]:
    tasks = torch.from_numpy(old.samples.tasks)
    return [{"task": t, "name": names[t], **shares} for t, shares in _by_group(old, tasks)]


def _by_group(old: Outlook, groups: Tensor) -> list[tuple[int, dict[str, Any]]]:
    """Samples and accuracies of each group that occurs."""
    values, index = groups.unique(return_inverse=True)
    counts = torch.bincount(index)
    shares: dict[str, list[Any]] = {"n": counts.tolist(), "real": [None] * len(values)}
    for when in ("now", "predicted", "real"):
        if when != "real" or old.real_drift is not None:
            right = old.correct(when).double()
            shares[when] = (torch.bincount(index, weights=right) / counts).tolist()
    rows = [{key: shares[key][i] for key in ("n", "now", "predicted", "real")} for i in range(len(values))]
    return list(zip(values.tolist(), rows, strict=True))


def _at_risk(old: Outlook, names: Sequence[str]) -> list[dict[str, Any]]:
    chosen = old.at_risk(AT_RISK)
    before, after = _margins_now(old)[chosen], old.margins("predicted")[chosen]
    real = None if old.real_drift is None else old.margins("real")[chosen]
    return [
        {
            **_sample(old, position, names),
            "margin_now": float(before[i]),
            "margin_predicted": float(after[i]),
            "margin_real": None if real is None else float(real[i]),
        }
        for i, position in enumerate(chosen.tolist())
    ]


def _margins_now(old: Outlook) -> Tensor:
    """Margins before training; where only one class was known, over the outputs that the new task adds."""
    margins = old.margins("now")
    whole = replace(old, seen=old.outputs.shape[1]).margins("now")
    return torch.where(margins.isfinite(), margins, whole)


def _sample(old: Outlook, position: int, names: Sequence[str]) -> dict[str, Any]:
    samples = old.samples.samples
    label = int(samples.labels[position])
    return {"id": str(samples.ids[position]), "class": label, "name": names[label]}


def _flips(old: Outlook) -> dict[str, int | None]:
    predicted = old.lost("predicted")
    if old.real_drift is None:
        return {"predicted": int(predicted.sum()), "real": None, "both": None}
    real = old.lost("real")
    return {"predicted": int(predicted.sum()), "real": int(real.sum()), "both": int((predicted & real).sum())}


def _modes(forecast: Forecast, old: Outlook, names: Sequence[str]) -> dict[str, Any]:
    """Ranks and the eigenspaces with most energy; empty where the forecast has no kernel of its old samples."""
    if forecast.old_kernel is None:
        return {}
    found, positions = forecast.vulnerability, forecast.mode_samples.cpu()
    return {
        "n_spaces": len(found.values),
        **{f"rank{share}": _rank(forecast, share / 100) for share in SHARES},
        "stable_rank": found.stable_rank,
        "effective_rank": found.effective_rank,
        "outside_share": found.outside / found.total if found.total else 0.0,
        "n_samples": len(positions),
        "kronecker_bound": forecast.old_kernel.rank_bound,
        "top": [
            {
                "eigenvalue": mode.eigenvalue,
                "share": mode.share,
                **_loads(mode.loading.detach().cpu(), positions, old, names),
            }
            for mode in forecast.modes(TOP)
        ],
    }


def _rank(forecast: Forecast, share: float) -> int | None:
    try:
        return forecast.vulnerable_rank(share)
    except DataError:  # more than the rest lies outside all eigenspaces: there is no such number
        return None


def _loads(loading: Tensor, positions: Tensor, old: Outlook, names: Sequence[str]) -> dict[str, Any]:
    """The classes and samples that an eigenspace loads on most; loadings [m] sum to 1."""
    classes, index = old.labels[positions].unique(return_inverse=True)
    share = torch.bincount(index, weights=loading.double())
    first = share.argsort(descending=True, stable=True)[:TOP].tolist()
    most = loading.argsort(descending=True, stable=True)[:TOP].tolist()
    return {
        "classes": [
            {"class": int(classes[i]), "name": names[int(classes[i])], "share": float(share[i])} for i in first
        ],
        "samples": [{**_sample(old, int(positions[i]), names), "loading": float(loading[i])} for i in most],
    }


def _cost(found: StageForecast, forecast: Forecast | None) -> dict[str, float | None]:
    return {
        "forecast_seconds": found.seconds,
        "training_seconds": found.training_seconds,
        "forward_passes": None if forecast is None else forecast.cost.forward_passes,
    }


def _arrays(forecast: Forecast, old: Outlook, new: Outlook | None) -> dict[str, np.ndarray]:
    arrays = {
        "labels": old.labels.numpy(),
        "tasks": old.samples.tasks,
        "outputs": old.outputs.numpy(),
        "drift": old.drift.numpy(),
        "energy": np.zeros(0),
        "values": np.zeros(0),
        "multiplicity": np.zeros(0, dtype=np.int64),
    }
    if forecast.old_kernel is not None:
        modes = forecast.vulnerability
        arrays |= {key: getattr(modes, key).cpu().numpy() for key in ("energy", "values", "multiplicity")}
    if old.real_drift is not None:
        arrays["real_drift"] = old.real_drift.numpy()
    if new is not None:
        arrays |= {"new_labels": new.labels.numpy(), "new_outputs": new.outputs.numpy(), "new_drift": new.drift.numpy()}
        if new.real_drift is not None:
            arrays["new_real_drift"] = new.real_drift.numpy()
    return arrays

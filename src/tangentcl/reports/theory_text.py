"""The theory report in words and numbers: lights, sentences and a table with a line per task."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..records.theory import TaskTheory
from .theory_figures import short

LIGHTS = {"green": "✓ holds", "amber": "~ with care", "red": "✗ does not hold"}
UNKNOWN = "? not measured"
HEADING = (
    "task",
    "validity",
    "samples",
    "ridge",
    "leave-one-out risk",
    "effective dimension",
    "participation ratio",
    "radius of ridge",
    "radius of head",
    "radius of all",
    "in old space (%)",
    "views worth",
    "lowest cosine, own / old classes",
    "kept of the anchor (%)",
    "ridge by evidence",
    "PAC-Bayes bound (%)",
)


def light(theory: TaskTheory) -> str:
    """How far derived numbers hold for a task, as a sign and in words."""
    return UNKNOWN if theory.light is None else LIGHTS[theory.light]


def value(of: Mapping[str, Any] | None, *path: str) -> float | None:
    """A number by its path; None where it is absent or not known."""
    found: Any = of
    for key in path:
        found = found.get(key) if isinstance(found, Mapping) else None
    return None if found is None else float(found)


def heading(theory: TaskTheory) -> str:
    """Number and name of a task."""
    return f"{theory.task + 1}: {theory.name}"


def line(theory: TaskTheory) -> list[str]:
    """A task's line of the table."""
    before, after = theory.before, theory.after
    energy = [value(part, "old_energy", "energy") for part in (before, after)]
    return [
        heading(theory),
        light(theory),
        _written(value(before, "n")) + _of(value(before, "n"), value(before, "n_available")),
        _written(value(before, "ridge")),
        _written(value(before, "risk", "at_ridge", "loo")),
        _both(value(before, "dimension", "effective"), value(after, "dimension", "effective")),
        _both(value(before, "dimension", "participation"), value(after, "dimension", "participation")),
        _written(value(before, "radius")),
        _written(value(after, "radius", "head")),
        _written(value(after, "radius", "all")),
        _both(*(None if e is None else 100 * e for e in energy)),
        _written(value(before, "views", "times")),
        " / ".join(_written(lowest(after, which)) for which in ("own", "old")),
        _percent(value(after, "anchor", "efficiency")),
        _written(value(before, "evidence", "ridge")),
        _percent(value(after, "certificate", "bound")),
    ]


def lowest(after: Mapping[str, Any] | None, which: str) -> float | None:
    """The lowest cosine of a stored class mean with what it is now; "own" classes or "old" ones."""
    rows = ((after or {}).get("staleness") or {}).get(which) or ()
    return min((float(row["cosine"]) for row in rows), default=None)


def sentences(theory: TaskTheory) -> list[str]:
    """What was derived for a task, in sentences that hold as far as the task's light says."""
    parts = (_risk, _evidence, _interplay, _old_space, _views, _staleness, _anchor, _certificate)
    return [sentence for part in parts if (sentence := part(theory))]


def _risk(theory: TaskTheory) -> str:
    b = theory.before
    loo, nothing = value(b, "risk", "at_ridge", "loo"), value(b, "risk", "of_nothing")
    ridge, used, n = value(b, "ridge"), value(b, "dimension", "effective"), value(b, "n")
    if None in (loo, nothing, ridge, used, n):
        return ""
    return (
        f"A ridge of strength {_written(ridge)} on its features would err by {_written(loo)} on new samples (squared, "
        f"leave-one-out), {_written(nothing)} without learning; it uses {_written(used)} directions for "
        f"{_written(n)} samples."
    )


def _evidence(theory: TaskTheory) -> str:
    ridge, loo = value(theory.before, "evidence", "ridge"), value(theory.before, "ridge")
    each, noise = (value(theory.before, "evidence", key) for key in ("per_label", "noise"))
    if None in (ridge, loo, each, noise):
        return ""
    return (
        f"Its labels are likeliest, taken as Gaussian, under a ridge of strength {_written(ridge)} (log evidence "
        f"{_written(each)} per label, noise {_written(noise)}); the theory's is {_written(loo)}."
    )


def _interplay(theory: TaskTheory) -> str:
    rows = {when: (part or {}).get("past") or () for when, part in (("b", theory.before), ("a", theory.after))}
    predicted = {row["task"]: row for row in rows["b"] if row.get("interplay_rms") is not None}
    if not predicted:
        return ""
    real = {row["task"]: row["interplay_rms"] for row in rows["a"] if row.get("interplay_rms") is not None}
    most = max(predicted, key=lambda k: real.get(k, 0.0) if real else predicted[k]["interplay_rms"])
    row = predicted[most]
    where = f"task {most + 1} ({row['name']})"
    ridge = f"{_written(row['interplay_rms'])} per sample (root mean square over samples, all outputs)"
    if not real:
        return f"Learned by that ridge, it would move the outputs of {where} most: by {ridge}."
    return (
        f"The change of the method's head alone moved the outputs of {where} most, by {_written(real[most])} per "
        f"sample; the ridge would by {ridge}."
    )


def _old_space(theory: TaskTheory) -> str:
    energy = value(theory.before, "old_energy", "energy")
    if energy is None:
        return ""
    after = value(theory.after, "old_energy", "energy")
    directions = _written(value(theory.before, "old_energy", "directions"))
    text = f"{100 * energy:.0f} % of its features lay in the {directions} directions of past tasks before training"
    if after is None:
        return f"{text}."
    return f"{text}, and as many after." if abs(after - energy) < 0.005 else f"{text}, {100 * after:.0f} % after."


def _views(theory: TaskTheory) -> str:
    worth, views = value(theory.before, "views", "times"), value(theory.before, "views", "views")
    if worth is None or views is None:
        return ""
    kind = str((theory.before or {})["views"]["kind"]).removesuffix(" of a sample")
    return f"{views:.0f} views of a sample ({kind}) are worth {worth:.2f} independent ones."


def _staleness(theory: TaskTheory) -> str:
    rows = ((theory.after or {}).get("staleness") or {}).get("old") or ()
    if not rows:
        return ""
    worst = min(rows, key=lambda row: row["cosine"])
    if worst["cosine"] > 0.9995:
        return "Stored class means are predicted to be where they were."
    return (
        f"Of the stored class means, {worst['name']}'s is predicted to be furthest from where it would be now: "
        f"cosine {worst['cosine']:.3f}."
    )


def _anchor(theory: TaskTheory) -> str:
    kept = value(theory.after, "anchor", "efficiency")
    if kept is None:
        return ""
    decay = value(theory.after, "anchor", "weight_decay")
    text = f"Anchor and weight decay ({_written(decay)}) together pull parameters to {100 * kept:.0f} % of old values."
    return text + (
        " The decay is decoupled, which this does not see." if (theory.after or {})["anchor"]["decoupled"] else ""
    )


def _certificate(theory: TaskTheory) -> str:
    after = theory.after
    bound, error, sigma = (value(after, "certificate", key) for key in ("bound", "error", "sigma"))
    kl, delta = value(after, "certificate", "kl"), value(after, "certificate", "delta")
    if bound is None or error is None or sigma is None or kl is None or delta is None:
        return ""
    most = "at most " if value(after, "certificate", "draws") else ""
    learned = f"where it errs on {most}{100 * error:.1f} % of the samples it learned"
    says = "which says nothing" if bound >= 1 else learned
    return (
        f"PAC-Bayes, for the classifier with noise of {_written(sigma)} on what trains and whatever the light says: "
        f"with {100 * (1 - delta):.0f} % confidence it errs on at most {100 * bound:.1f} % of new samples of this "
        f"task, {says} (divergence {_written(kl)} by the move of weights)."
    )


def _percent(share: float | None) -> str:
    return _written(None if share is None else 100 * share)


def _written(number: float | None) -> str:
    return "–" if number is None else short(number)


def _of(n: float | None, available: float | None) -> str:
    return "" if available in (None, n) else f" of {_written(available)}"


def _both(before: float | None, after: float | None) -> str:
    """Before and after, once where they do not differ in what is written."""
    if before is None and after is None:
        return "–"
    a, b = _written(before), _written(after)
    return a if after is None or a == b else f"{a} → {b}"

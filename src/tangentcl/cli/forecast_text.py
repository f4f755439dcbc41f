"""A forecast as plain text, at most 100 columns wide, from the summary that records keep."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

WIDTH = 100
Summary = Mapping[str, Any]


def forecast_text(summary: Summary, *, texts: Mapping[str, str] | None = None) -> str:
    """Everything a user asks of a forecast, with the truth beside it where it is known.

    Args:
        summary: of `tangentcl.records.TaskForecast`.
        texts: what to show of a sample instead of its id, by id.
    """
    parts = [
        _accuracy(summary),
        _classes(summary["classes"]),
        _samples(summary["at_risk"], texts or {}),
        _modes(summary.get("modes"), texts or {}),
        _belief(summary),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def recipe_text(recipe: Summary) -> str:
    """A recipe in one line.

    >>> recipe_text({"optimizer": "sgd", "lr": 0.02, "head_lr": None, "steps": 15, "effective_time": 0.3})
    'sgd, 15 steps, lr 0.02, effective_time 0.3'
    """
    first = [str(recipe["optimizer"])] if "optimizer" in recipe else []
    first += [f"{recipe['steps']} steps"] if recipe.get("steps") is not None else []
    left_out = (None, False, "", "fp32")
    rest = [
        f"{key} {value:g}" if isinstance(value, float) else f"{key} {value}"
        for key, value in recipe.items()
        if key not in ("optimizer", "steps") and isinstance(value, (str, int, float)) and value not in left_out
    ]
    return ", ".join([*first, *rest])


def recipe_lines(recipe: Summary) -> str:
    """``recipe: ...``, wrapped."""
    return textwrap.fill(f"recipe: {recipe_text(recipe)}", WIDTH, subsequent_indent="  ")


def _accuracy(summary: Summary) -> str:
    found = summary["accuracy"]
    now, predicted, real = found["now"], found["predicted"], found.get("real")
    lost = 100 * (now - predicted)
    said = f"{lost:.1f} points will be forgotten" if lost >= 0 else f"{-lost:.1f} points will be gained"
    line = f"old accuracy: {percent(now)} now, {percent(predicted)} predicted"
    if real is not None:
        line += f", {percent(real)} real"
        said = f"forgotten: {lost:.1f} points predicted, {100 * (now - real):.1f} real"
    lines = [line, said]
    if found.get("low") is not None and found.get("high") is not None:
        lines.append(f"by the errors on earlier tasks: between {percent(found['low'])} and {percent(found['high'])}")
    flips = summary.get("flips") or {}
    if flips.get("predicted") is not None:
        flip = f"{flips['predicted']} of {summary['n_old']} samples are right now and will be wrong"
        if flips.get("real") is not None:
            flip += f"; {flips['real']} really became wrong, {flips['both']} of them as predicted"
        lines.append(flip)
    if summary.get("samples_note"):
        lines.append(str(summary["samples_note"]))
    tasks = summary.get("tasks") or []
    if len(tasks) > 1:
        lines += ["", _fitted("by task", [_row(task, task["name"]) for task in tasks], "task")]
    return "\n".join(lines)


def _classes(classes: Sequence[Summary]) -> str:
    worst = sorted(classes, key=lambda one: one["predicted"] - one["now"])[:5]
    return _fitted("classes that lose most", [_row(one, one["name"]) for one in worst], "class") if worst else ""


def _row(one: Summary, name: Any) -> list[str]:
    row = [short(str(name), 40), str(one["n"]), percent(one["now"]), percent(one["predicted"])]
    if one.get("real") is not None:
        row.append(percent(one["real"]))
    return [*row, f"{100 * (one['now'] - one['predicted']):.1f}"]


def _fitted(title: str, rows: list[list[str]], what: str) -> str:
    real = ["real"] if len(rows[0]) == 6 else []
    return table(title, [what, "samples", "now", "predicted", *real, "points lost"], rows)


def _samples(at_risk: Sequence[Summary], texts: Mapping[str, str]) -> str:
    if not at_risk:
        return ""
    known = at_risk[0].get("margin_real") is not None
    head = ["sample", "class", "margin now", "predicted", *(["real"] if known else [])]
    rows = []
    for one in at_risk:
        real = [_signed(one["margin_real"])] if known else []
        shown = short(texts.get(str(one["id"]), str(one["id"])), 44)
        margins = [_signed(one["margin_now"]), _signed(one["margin_predicted"])]
        rows.append([shown, short(str(one["name"]), 24), *margins, *real])
    return table("samples most at risk (margin: own output minus the largest other)", head, rows, left=2)


def _modes(modes: Summary | None, texts: Mapping[str, str]) -> str:
    if not modes:
        return ""
    known = [(share, modes[f"rank{share}"]) for share in (90, 95, 99) if modes[f"rank{share}"] is not None]
    ranks = ", ".join(f"{rank} for {share} %" for share, rank in known) or "more than there are"
    of = f"{modes['n_spaces']} eigenspaces of the kernel of {modes['n_samples']} samples"
    lines = wrapped(f"vulnerable modes: {ranks} of the drift; there are {of}")
    for number, mode in enumerate(modes.get("top") or [], start=1):
        lines.append(f"  {number}. {percent(mode['share'])} of the drift, eigenvalue {mode['eigenvalue']:.3g}")
        classes = ", ".join(f"{short(str(c['name']), 18)} ({percent(c['share'], 0)})" for c in mode["classes"][:3])
        lines.append(f"     classes: {classes}")
        samples = [short(texts.get(str(s["id"]), str(s["id"])), 26) for s in mode["samples"][:3]]
        lines.append(f"     samples: {'; '.join(samples)}")
    return "\n".join(lines)


def _belief(summary: Summary) -> str:
    lines = wrapped(f"how far to believe it: {summary['sentence']}")
    for note in summary.get("notes") or []:
        if str(note).rstrip(".") not in str(summary["sentence"]):
            lines += wrapped(f"note: {note}")
    quality = summary.get("quality")
    if quality:
        said = [f"{name} {quality[key]:.3f}" for key, name in _QUALITY.items() if quality.get(key) is not None]
        lines.append(f"how good it was: {', '.join(said)}")
    cost = summary.get("cost") or {}
    if cost.get("forecast_seconds") is not None:
        line = f"cost: {cost['forecast_seconds']:.2f} s"
        if cost.get("training_seconds") is not None:
            line += f" (training took {cost['training_seconds']:.2f} s)"
        if cost.get("forward_passes"):
            line += f", {cost['forward_passes']:.0f} forward passes of one sample"
        lines.append(line)
    return "\n".join(lines)


_QUALITY = {"cosine": "cosine", "r2": "R²", "spearman": "Spearman", "relative_error": "relative error"}


def table(title: str, head: Sequence[str], rows: Sequence[Sequence[str]], *, left: int = 1) -> str:
    """Aligned columns, the first ``left`` of them to the left."""
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    lines = [
        "  ".join(cell.ljust(w) if i < left else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths))).rstrip()
        for row in [head, *rows]
    ]
    return "\n".join([title, *(f"  {line}" for line in lines)])


def wrapped(text: str, indent: str = "  ") -> list[str]:
    """Lines of at most `WIDTH` columns."""
    return textwrap.wrap(text, WIDTH, subsequent_indent=indent)


def percent(value: float, digits: int = 1) -> str:
    """A share as people read it.

    >>> percent(0.5)
    '50.0 %'
    """
    return f"{100 * value:.{digits}f} %"


def _signed(margin: float | None) -> str:
    """A margin; none where no other output competes."""
    return "–" if margin is None else f"{margin:+.2f}"


def short(text: str, width: int) -> str:
    """At most ``width`` characters on one line.

    >>> short("a long sentence on two\\nlines", 12)
    'a long sent…'
    """
    line = " ".join(text.split())
    return line if len(line) <= width else line[: width - 1] + "…"

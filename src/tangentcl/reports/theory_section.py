"""The section "Theory quantities" of a page: sentences with their lights, a table and figures, for the template."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..records.theory import TaskTheory
from .forecasts import spans
from .theory_lines import lines, more
from .theory_maps import maps
from .theory_text import HEADING, heading, light, line, sentences


@dataclass(frozen=True)
class Theories:
    """The theory report of one method on one stream: (seed, tasks) of its runs, the lowest seed first."""

    label: str
    slot: int
    runs: Sequence[tuple[int, Sequence[TaskTheory]]]


def theory_section(
    prefix: str, methods: Sequence[Theories], unreadable: Sequence[tuple[str, str]] = ()
) -> dict[str, Any]:
    """Everything the template shows of these methods.

    Args:
        prefix: keeps ids on the page apart.
        unreadable: folders whose quantities are damaged, and why.
    """
    shown = [m for m in methods if any(tasks for _, tasks in m.runs)]
    return {"methods": [_method(f"{prefix}-q{m.slot}", m) for m in shown], "unreadable": list(unreadable)}


def _method(prefix: str, method: Theories) -> dict[str, Any]:
    seed, tasks = next((run for run in method.runs if run[1]), method.runs[0])
    made = [t for t in tasks if t.before is not None]
    return {
        "label": method.label,
        "seed": f"seed {seed}" if len(method.runs) > 1 else "",
        "overview": _overview(made),
        "refusals": _refusals(tasks),
        "table": (HEADING, [line(t) for t in made]) if made else None,
        "statements": [(heading(t), light(t), t.light or "unknown", _why(t), sentences(t)) for t in made],
        "maps": maps(prefix, made),
        "lines": lines(prefix, made),
        "more": more(prefix, made),
    }


def _overview(made: Sequence[TaskTheory]) -> str:
    if not made:
        return "No quantity could be computed."
    counts: dict[str, list[int]] = {}
    for t in made:
        counts.setdefault(light(t), []).append(t.task + 1)
    listed = "; ".join(f"{said}: task{'s' if len(of) > 1 else ''} {spans(of)}" for said, of in counts.items())
    return f"How far the theory holds. {listed}."


def _refusals(tasks: Sequence[TaskTheory]) -> list[tuple[str, str]]:
    found: dict[str, list[int]] = {}
    for t in tasks:
        if t.values.get("reason"):
            found.setdefault(str(t.values["reason"]), []).append(t.task + 1)
    return [(spans(of), reason) for reason, of in found.items()]


def _why(theory: TaskTheory) -> str:
    """Why the light is what it is."""
    after = theory.after or {}
    if after.get("laziness"):
        return str(after["laziness"]["sentence"])
    return str(after.get("no_laziness") or "The task is not learned yet, so kernels cannot be compared.")

"""Heat maps of the quantities between tasks: interplay, overlap, Rademacher terms."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from markupsafe import Markup

from ..records.theory import TaskTheory
from .theory_figures import task_map
from .theory_text import heading, light, value

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class _Map:
    """One heat map: what it shows, in words, and where its numbers are."""

    said: str
    when: str
    key: str
    mirrored: str = ""
    own: str = ""
    top: float | None = None


@dataclass(frozen=True)
class _Pair:
    """Heat maps under one caption."""

    caption: str
    rows: str
    columns: str
    maps: tuple[_Map, ...]


_PAIRS = (
    _Pair(
        "Interplay (Q1): how far learning a task moves the outputs of earlier ones, root mean square over samples",
        "learning task",
        "outputs of task",
        (
            _Map("by the theory's ridge", "before", "interplay_rms"),
            _Map("by the method's head", "after", "interplay_rms"),
        ),
    ),
    _Pair(
        "Kernel overlap (Q3) after each task: 0 for orthogonal features, 1 for the same second moment",
        "features of task",
        "with task",
        (
            _Map("as they are", "after", "overlap", "overlap", "1", 1.0),
            _Map("around their means", "after", "overlap_centred", "overlap_centred", "1", 1.0),
        ),
    ),
    _Pair(
        "Rademacher terms (Q6): what learning a task adds to the generalisation bound of another",
        "learning task",
        "bound of task",
        (
            _Map("for the theory's ridge", "before", "rademacher", "rademacher_back", "rademacher_own"),
            _Map("for the method's head", "after", "rademacher", "rademacher_back", "rademacher_own"),
        ),
    ),
)


def maps(prefix: str, made: Sequence[TaskTheory]) -> list[tuple[str, list[Markup]]]:
    """Captions and heat maps; those without a number are left out, and all for a single task."""
    if len(made) < 2:
        return []
    names = [heading(t) for t in made]
    rows = [f"{name}  {light(t)}" for name, t in zip(names, made)]
    found = []
    for i, pair in enumerate(_PAIRS):
        svgs = []
        for j, wanted in enumerate(pair.maps):
            matrix = between(made, wanted.when, wanted.key, mirrored=wanted.mirrored, own=wanted.own)
            if matrix is None:
                continue
            svg = task_map(
                matrix,
                rows,
                names,
                row_title=pair.rows,
                column_title=f"{pair.columns}, {wanted.said}",
                top_value=wanted.top,
                name=f"{prefix}m{i}{j}",
                title=f"{pair.caption}, {wanted.said}",
            )
            svgs.append(Markup(svg))
        if svgs:
            found.append((pair.caption, svgs))
    return found


def between(made: Sequence[TaskTheory], when: str, key: str, *, mirrored: str = "", own: str = "") -> Array | None:
    """A quantity between tasks, [T, T]: row = the task that is learned, column = the other one; None where unknown.

    Args:
        when: "before" or "after". key: of a row of ``past``.
        mirrored: key of the value with the two tasks exchanged, "" for none, or ``key`` for a symmetric quantity.
        own: key of the value of a task with itself, "" for none, "1" where it is always 1.
    """
    at = {t.task: i for i, t in enumerate(made)}
    matrix = np.full((len(made), len(made)), np.nan)
    for i, t in enumerate(made):
        part = t.before if when == "before" else t.after
        for row in (part or {}).get("past") or ():
            j = at.get(row["task"])
            if j is not None and row.get(key) is not None:
                matrix[i, j] = row[key]
            if j is not None and mirrored and row.get(mirrored) is not None:
                matrix[j, i] = row[mirrored]
        if own and part is not None:
            number = 1.0 if own == "1" else value(part, own)
            matrix[i, i] = np.nan if number is None else number
    return matrix if np.isfinite(matrix).any() else None

"""Published numbers beside our own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..records import Published
from .tables import Cell, Row, percent

HEADING = ["published", "source", "Ā published", "Ā here", "A_T published", "A_T here", "seeds here"]
NAMES = 2  # columns of words
NOT_RUN, NOT_GIVEN = "not run", "–"


def published_table(
    rows: Sequence[Row], published: Mapping[str, Sequence[Published]]
) -> tuple[list[str], list[list[str]]]:
    """Heading and body; a line for each published result, with what the row of its experiment and label reached.

    Args:
        rows: our own, see `rows`. published: by name of the experiment.
    """
    ours = {(row.experiment, row.label): row for row in rows}
    several = len(published) > 1
    body = []
    for experiment, results in published.items():
        for result in results:
            row = ours.get((experiment, result.ours))
            line = [result.label, f"{result.source}; {result.note}" if result.note else result.source]
            for name, mean, std in (
                ("average_accuracy", result.average, result.average_std),
                ("last_accuracy", result.last, result.last_std),
            ):
                line += [_given(mean, std), _reached(row, result.ours, name)]
            line.append(", ".join(map(str, row.seeds)) if row else "")
            body.append([experiment, *line] if several else line)
    return (["experiment", *HEADING] if several else HEADING), body


def known_published(rows: Sequence[Row]) -> dict[str, list[Published]]:
    """What the records of the rows say was published, by experiment, each result once."""
    found: dict[str, list[Published]] = {}
    for row in rows:
        for record in row.records:
            kept = found.setdefault(row.experiment, [])
            kept += [result for result in record.published if result not in kept]
    return {experiment: results for experiment, results in found.items() if results}


def _given(mean: float | None, std: float | None) -> str:
    if mean is None:
        return NOT_GIVEN
    return percent(Cell(mean / 100, None if std is None else std / 100, 1))


def _reached(row: Row | None, ours: str, name: str) -> str:
    if not ours:
        return NOT_GIVEN
    return NOT_RUN if row is None else percent(row.metrics[name], len(row.seeds))

"""A choice among recipes as plain text: the table, the trade-off curve, and what was chosen."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

Plain = Mapping[str, Any]  # of `TrainingChoice.to_dict`

PLOT_WIDTH, PLOT_HEIGHT = 60, 14
MARKS = "* chosen, o trade-off curve, . other, ? not to be believed"


def plan_text(plan: Plain) -> str:
    """Table of all recipes, plot of new accuracy over forgetting, the verdict, and what training it gave if known."""
    parts = [table(plan), curve(plan), verdict(plan)]
    if plan.get("outcome") is not None:
        parts.append("\n".join(_aligned(outcome_rows(plan), {0})))
    return "\n\n".join(parts) + "\n"


def mark(plan: Plain, number: int) -> str:
    """One character for a row: chosen, on the trade-off curve, refused, not to be believed, or neither."""
    row = plan["rows"][number]
    if row["trust"] == "refused":
        return "x"
    if row["trust"] == "low":
        return "?"
    return "*" if number == plan["chosen"] else "o" if number in plan["front"] else "."


def table(plan: Plain) -> str:
    """One line per recipe, with the settings that differ between them."""
    rows = plan["rows"]
    refused = [_refusal(row, varied(rows)) for row in rows if row["trust"] == "refused"]
    lines = recipe_rows(plan)
    return "\n".join([*_aligned(lines, {0, lines[0].index("trust")}), *refused])


def recipe_rows(plan: Plain) -> list[list[str]]:
    """A heading, and the cells of every recipe: its mark, the settings that differ, the numbers."""
    rows = plan["rows"]
    names, keys = varied(rows), ["old_now", "old_after", "old_cautious", "old_margin", "forgetting", "new_after"]
    headings = ["old now", "old after", "cautious", "margin", "forgetting", "new"]
    if not any(row.get("old_margin") for row in rows):
        del keys[3], headings[3]
    if all(row.get("old_cautious") in (None, row["old_after"]) for row in rows):  # no gap makes a difference
        del keys[2], headings[2]
    lines = [["", *names, *headings, "trust", "samples"]]
    for number, row in enumerate(rows):
        numbers = [_percent(row.get(key)) for key in keys]
        samples = f"{row['training_samples']:,}" if row["training_samples"] else ""
        settings = [_shown(row["settings"].get(name)) for name in names]
        lines.append([mark(plan, number), *settings, *numbers, row["trust"], samples])
    return lines


def outcome_rows(plan: Plain) -> list[list[str]]:
    """A heading, and what was forecast of the chosen recipe beside what training it gave, for each kind of samples."""
    said, measured = plan["rows"][plan["chosen"]], plan["outcome"]["measured"]
    lines = [["", "old now", "old after", "forgetting", "new", "within"]]
    keys = ("old_now", "old_after", "forgetting", "new_after")
    within = said["forgetting"] <= plan["max_forgetting"] + 1e-9
    lines.append([f"forecast, {measured[0]['split']}", *(_percent(said[key]) for key in keys), _yes(within)])
    for real in measured:
        lines.append([f"trained, {real['split']}", *(_percent(real[key]) for key in keys), _yes(real["within"])])
    return lines


def _yes(answer: bool) -> str:
    return "yes" if answer else "no"


def _aligned(lines: Sequence[Sequence[str]], left: Collection[int]) -> list[str]:
    """Cells as lines of text; columns in ``left`` begin at the left, others end at the right."""
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return [
        "  ".join(
            cell.ljust(w) if i in left else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths))
        ).rstrip()
        for line in lines
    ]


def varied(rows: Sequence[Plain]) -> list[str]:
    """Settings that differ between rows, in the order in which they first occur.

    >>> varied([{"settings": {"lr": 0.1, "epochs": 2}}, {"settings": {"lr": 0.2, "epochs": 2}}])
    ['lr']
    """
    names = dict.fromkeys(name for row in rows for name in row["settings"])
    return [name for name in names if len({_shown(row["settings"].get(name)) for row in rows}) > 1]


def curve(plan: Plain) -> str:
    """New accuracy over forgetting as a plot of characters; the vertical line is the tolerance."""
    known = [(number, row) for number, row in enumerate(plan["rows"]) if row["trust"] != "refused"]
    if not known:
        return "no recipe could be forecast"
    limit = plan["max_forgetting"]
    low = min(0.0, *(row["forgetting"] for _, row in known))
    high = max(limit, *(row["forgetting"] for _, row in known))
    span = (high - low) or 1.0

    def column(forgetting: float) -> int:
        return round((forgetting - low) / span * (PLOT_WIDTH - 1))

    canvas = [[" "] * PLOT_WIDTH for _ in range(PLOT_HEIGHT)]
    for line in canvas:
        line[column(limit)] = "|"
    for number, row in sorted(known, key=lambda item: ".?o*".index(mark(plan, item[0]))):
        canvas[PLOT_HEIGHT - 1 - round(row["new_after"] * (PLOT_HEIGHT - 1))][column(row["forgetting"])] = mark(
            plan, number
        )
    labels = {0: "100 %", PLOT_HEIGHT - 1: "0 %"}
    lines = [f"{labels.get(i, ''):>6s} {''.join(line).rstrip()}" for i, line in enumerate(canvas)]
    ends = f"{_percent(low)} %".ljust(PLOT_WIDTH - 8) + f"{_percent(high):>6s} %"
    title = f"accuracy on new samples over forgetting, tolerance {_percent(limit)} % (|); {MARKS}"
    return "\n".join([title, *lines, f"{'':6s} {'-' * PLOT_WIDTH}", f"{'':6s} {ends}"])


def verdict(plan: Plain) -> str:
    """The chosen recipe in a sentence, or that there is none and what comes closest."""
    rows, limit, floor = plan["rows"], _percent(plan["max_forgetting"]), _percent(plan["new_accuracy_floor"])
    if plan["chosen"] is not None:
        row = rows[plan["chosen"]]
        return f"chosen: {_said(row)}\n{row['sentence']}"
    words = f"none of the {len(rows)} recipes forgets at most {limit} points and reaches {floor} % on new samples"
    if plan["closest"] is None:
        return f"{words}; none of the forecasts can be believed."
    row = rows[plan["closest"]]
    return f"{words}.{_crossing(plan)}\nclosest: {_said(row)}\n{row['sentence']}"


def _crossing(plan: Plain) -> str:
    """Between which recipes the trade-off curve passes the tolerance, where it does."""
    rows = [plan["rows"][number] for number in plan["front"]]
    within = [row for row in rows if row["forgetting"] <= plan["max_forgetting"]]
    beyond = rows[len(within) :]
    if not within or not beyond:
        return ""
    names = varied(plan["rows"])
    ends = [
        ", ".join(f"{name} {_shown(row['settings'].get(name))}" for name in names) for row in (within[-1], beyond[0])
    ]
    return f"\nThe curve passes the tolerance between ({ends[0]}) and ({ends[1]}): try settings between them."


def _refusal(row: Plain, names: Sequence[str]) -> str:
    settings = ", ".join(f"{name} {_shown(row['settings'].get(name))}" for name in names)
    return f"x {settings + ': ' if settings else ''}{row['sentence']}"


def _said(row: Plain) -> str:
    settings = ", ".join(f"{name} {_shown(value)}" for name, value in row["settings"].items())
    return (
        f"{settings}\nold accuracy {_percent(row['old_now'])} % now and {_percent(row['old_after'])} % after "
        f"({_percent(row['forgetting'])} points forgotten), new accuracy {_percent(row['new_after'])} %"
    )


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}"


def _shown(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:g}"
    return "+".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)

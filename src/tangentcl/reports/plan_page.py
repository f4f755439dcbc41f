"""A plan as files: plain values for programs, and one self-contained HTML page."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from markupsafe import Markup

from ..errors import RecordError
from ..records.files import write_json
from .pages import render, write_page
from .plan_figure import plan_figure
from .plan_text import MARKS, outcome_rows, recipe_rows, verdict

NAME = "plan.json"


def write_plan_report(plan: Mapping[str, Any], folder: str | Path) -> Path:
    """Write ``plan.json`` and ``plan.html`` into a folder; returns the path of the page.

    Args:
        plan: of `TrainingChoice.to_dict` with ``title``, ``recipe`` (TOML or None) and ``outcome`` (what came of the
            chosen recipe, or None).
        folder: is made where it is missing; files of an earlier plan are replaced.

    Raises:
        RecordError: a file or the folder cannot be made.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RecordError(f"cannot make the folder {folder}: {error.strerror or error}") from error
    write_json(folder / NAME, plan)
    return write_page(page(plan), folder, "plan.html")


def page(plan: Mapping[str, Any]) -> str:
    """The page as text; everything that came from a user is escaped."""
    heading, *lines = recipe_rows(plan)
    known = any(row["trust"] != "refused" for row in plan["rows"])
    refused = [row["sentence"] for row in plan["rows"] if row["trust"] == "refused"]
    outcome = plan["outcome"]
    values = {
        "title": plan["title"],
        "verdict": verdict(plan).splitlines(),
        "notes": plan["notes"],
        "figure_svg": Markup(plan_figure(plan, plan["title"])) if known else None,
        "outcome": None if outcome is None else outcome_rows(plan),
        "within": None if outcome is None else outcome["within"],
        "tolerance": f"{100 * plan['max_forgetting']:g}",
        "marks": f"{MARKS}, x refused",
        "heading": heading,
        "rows": lines,
        "refused": list(dict.fromkeys(refused)),
        "recipe": plan["recipe"],
        "chosen": plan["chosen"] is not None,
    }
    return render("plan.html.j2", values)

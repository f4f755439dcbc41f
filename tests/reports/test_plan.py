"""Plans as text and as a figure, from plain values."""

from __future__ import annotations

from typing import Any
from xml.etree import ElementTree

import pytest

from tangentcl.reports.plan_figure import plan_figure
from tangentcl.reports.plan_text import curve, mark, plan_text, table, verdict


def row(lr: float, lost: float | None, new: float | None, trust: str = "exact", said: str = "Exact.") -> dict[str, Any]:
    return {
        "settings": {"method.rank": 4, "plan.lr": lr},
        "old_now": None if lost is None else 0.9,
        "old_after": None if lost is None else 0.9 - lost,
        "forgetting": lost,
        "new_after": new,
        "trust": trust,
        "sentence": said,
        "training_samples": 1200,
    }


@pytest.fixture
def plan() -> dict[str, Any]:
    return {
        "max_forgetting": 0.02,
        "new_accuracy_floor": 0.76,
        "rows": [
            row(1e-4, 0.0, 0.3),
            row(1e-3, 0.015, 0.85),
            row(1e-2, 0.2, 0.95),
            row(3e-3, 0.3, 0.5),
            row(1e-1, 0.1, 1.0, "low", "Do not believe it."),
            row(1.0, None, None, "refused", "it diverges"),
        ],
        "front": [0, 1, 2],
        "chosen": 1,
        "closest": 1,
    }


def test_every_recipe_has_a_line_and_a_mark(plan: dict[str, Any]) -> None:
    assert [mark(plan, i) for i in range(6)] == ["o", "*", "o", ".", "?", "x"]
    lines = table(plan).splitlines()
    assert lines[0].split() == ["plan.lr", "old", "now", "old", "after", "forgetting", "new", "trust", "samples"]
    assert lines[2].split() == ["*", "0.001", "90.0", "88.5", "1.5", "85.0", "exact", "1,200"]
    assert lines[-1] == "x plan.lr 1: it diverges"
    assert max(map(len, lines)) <= 100


def test_the_cautious_accuracy_is_shown_where_it_differs(plan: dict[str, Any]) -> None:
    plan["rows"][2]["old_cautious"] = 0.6
    lines = table(plan).splitlines()
    assert lines[0].split()[5:7] == ["cautious", "forgetting"]
    assert lines[3].split() == ["o", "0.01", "90.0", "70.0", "60.0", "20.0", "95.0", "exact", "1,200"]
    assert lines[2].split() == ["*", "0.001", "90.0", "88.5", "1.5", "85.0", "exact", "1,200"]


def test_the_plot_puts_recipes_where_they_belong(plan: dict[str, Any]) -> None:
    lines = curve(plan).splitlines()[1:15]
    start = len("       ")
    assert all(len(line) <= start + 60 for line in lines)
    limit = start + round(0.02 / 0.3 * 59)
    assert sum(line[limit : limit + 1] == "|" for line in lines) >= 13
    assert lines[0][start + round(0.1 / 0.3 * 59)] == "?"  # 100 % new, 10 points lost
    assert lines[13 - round(0.85 * 13)][start + round(0.015 / 0.3 * 59)] == "*"
    assert lines[13 - round(0.5 * 13)][start + 59] == "."


def test_the_verdict_names_the_choice_or_what_comes_closest(plan: dict[str, Any]) -> None:
    assert "chosen: method.rank 4, plan.lr 0.001" in verdict(plan)
    assert "90.0 % now and 88.5 % after (1.5 points forgotten), new accuracy 85.0 %" in verdict(plan)
    none = {**plan, "chosen": None, "max_forgetting": 0.001}
    assert "none of the 6 recipes forgets at most 0.1 points and reaches 76.0 % on new samples" in verdict(none)
    assert "closest: method.rank 4, plan.lr 0.001" in verdict(none)
    assert "passes the tolerance between (plan.lr 0.0001) and (plan.lr 0.001): try settings between" in verdict(none)
    assert "between" not in verdict({**none, "max_forgetting": -0.1})
    assert "none of the forecasts can be believed" in verdict({**none, "closest": None})
    assert plan_text(plan).endswith("Exact.\n")


def test_nothing_to_plot(plan: dict[str, Any]) -> None:
    only = {**plan, "rows": plan["rows"][5:], "front": [], "chosen": None, "closest": None}
    assert curve(only) == "no recipe could be forecast"


def test_the_figure_is_xml_with_a_mark_per_recipe(plan: dict[str, Any]) -> None:
    svg = ElementTree.fromstring(plan_figure(plan, "a & b"))
    hints = [title.text for title in svg.iter("{http://www.w3.org/2000/svg}title")]
    assert "a & b" in hints
    assert sum(hint is not None and hint.startswith("plan.lr ") for hint in hints) == 5
    words = [text.text for text in svg.iter("{http://www.w3.org/2000/svg}text")]
    assert {"chosen", "trade-off curve", "other recipes", "not to be believed", "tolerance"} <= set(words)

"""Plans as text and as a figure, from plain values."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from tangentcl.errors import RecordError
from tangentcl.reports.plan_figure import plan_figure
from tangentcl.reports.plan_page import write_plan_report
from tangentcl.reports.plan_text import curve, mark, outcome_rows, plan_text, table, verdict


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


# What came of it.


def measured(split: str, lost: float, within: bool) -> dict[str, Any]:
    found = {"split": split, "n_old": 40, "n_new": 20, "old_now": 0.9, "old_after": 0.9 - lost}
    return {**found, "new_after": 0.8, "forgetting": lost, "within": within}


@pytest.fixture
def trained(plan: dict[str, Any]) -> dict[str, Any]:
    """The plan with its chosen recipe trained: as forecast on validation samples, worse on test samples."""
    outcome = {
        "within": True,
        "seconds": 1.5,
        "measured": [measured("validation", 0.015, True), measured("test", 0.045, False)],
    }
    return {**plan, "title": "a <b> & c", "recipe": "[plan]\nlr = 0.001\n", "notes": ["n"], "outcome": outcome}


def test_forecast_and_result_stand_side_by_side(trained: dict[str, Any]) -> None:
    assert outcome_rows(trained) == [
        ["", "old now", "old after", "forgetting", "new", "within"],
        ["forecast, validation", "90.0", "88.5", "1.5", "85.0", "yes"],
        ["trained, validation", "90.0", "88.5", "1.5", "80.0", "yes"],
        ["trained, test", "90.0", "85.5", "4.5", "80.0", "no"],
    ]
    last = plan_text(trained).splitlines()[-1]
    assert last.split() == ["trained,", "test", "90.0", "85.5", "4.5", "80.0", "no"]


def test_the_figure_marks_what_training_gave(trained: dict[str, Any]) -> None:
    svg = ElementTree.fromstring(plan_figure(trained, "t"))
    hints = [title.text for title in svg.iter("{http://www.w3.org/2000/svg}title")]
    assert {"trained, validation samples", "trained, test samples"} <= set(hints)
    words = [text.text for text in svg.iter("{http://www.w3.org/2000/svg}text")]
    assert {"trained, validation", "trained, test"} <= set(words)


def test_a_plan_is_written_as_values_and_as_a_page(trained: dict[str, Any], tmp_path: Path) -> None:
    written = write_plan_report(trained, tmp_path / "made")
    assert written == tmp_path / "made/plan.html"
    assert json.loads((tmp_path / "made/plan.json").read_text())["outcome"] == trained["outcome"]
    html = written.read_text()
    assert "a &lt;b&gt; &amp; c" in html
    assert "<b>" not in html
    for words in ("Forecast and result", "within the tolerance", "Refused: it diverges", "lr = 0.001", "Note: n."):
        assert words in html, words
    trained["outcome"] = {**trained["outcome"], "within": False}
    assert "beyond the tolerance" in write_plan_report(trained, tmp_path / "made").read_text()


def test_a_plan_without_a_choice_has_a_page(trained: dict[str, Any], tmp_path: Path) -> None:
    none = {**trained, "chosen": None, "closest": None, "front": [], "rows": trained["rows"][5:]}
    html = write_plan_report({**none, "outcome": None, "recipe": None}, tmp_path).read_text()
    assert "No recipe meets the demands" in html
    assert "Forecast and result" not in html
    assert "<figure>" not in html
    (tmp_path / "file").write_text("")
    with pytest.raises(RecordError, match="cannot make the folder"):
        write_plan_report(trained, tmp_path / "file" / "below")


def test_the_margin_of_a_confidence_is_a_column(plan: dict[str, Any]) -> None:
    plan["rows"][1]["old_margin"] = 0.011
    lines = table(plan).splitlines()
    assert lines[0].split()[5:7] == ["margin", "forgetting"]
    assert lines[2].split()[:6] == ["*", "0.001", "90.0", "88.5", "1.1", "1.5"]

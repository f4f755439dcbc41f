"""Figures: well-formed SVG with the right marks, and colours that can be told apart."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from tangentcl.reports import figures
from tangentcl.reports.figures import Series
from tangentcl.reports.svg import DARK, LIGHT, contrast, sequential, shorten, spread, text_width, ticks, wrap

NAN = float("nan")
SVG = "{http://www.w3.org/2000/svg}"


def texts(root) -> list[str]:
    return [e.text for e in root.iter(SVG + "text")]


def lower(n_tasks: int) -> np.ndarray:
    values = np.linspace(0.2, 1, n_tasks * n_tasks).reshape(n_tasks, n_tasks)
    return np.where(np.tril(np.ones_like(values)) > 0, values, np.nan)


@pytest.mark.parametrize("n_tasks", [1, 5, 15, 30])
def test_heat_map_has_a_cell_per_entry(parse, n_tasks):
    root = parse(figures.heat_map(lower(n_tasks), [f"task {k}" for k in range(n_tasks)], name="m", title="M"))
    cells = [e for e in root.iter(SVG + "rect") if e.find(SVG + "title") is not None]
    assert len(cells) == n_tasks * (n_tasks + 1) // 2
    assert (figures.percent(lower(n_tasks)[-1, -1]) in texts(root)) == (n_tasks <= 20)


def test_heat_map_of_joint_training_has_one_row(parse):
    matrix = np.full((3, 3), NAN)
    matrix[-1] = [0.5, 0.25, 0.75]
    found = texts(parse(figures.heat_map(matrix, ["a", "b", "c"], name="m", title="M")))
    assert "all tasks" in found
    assert {"50.0", "25.0", "75.0"} <= set(found)
    assert "1: a" not in found


def test_accuracy_lines_draw_means_bands_and_labels(parse):
    mean = np.array([0.9, 0.7, 0.6])
    series = [
        Series("three seeds", 0, mean, mean - 0.1, mean + 0.05),
        Series("one seed", 1, mean - 0.01),
        Series("joint", 2, np.array([NAN, NAN, 0.95])),
        Series("a very long label that says everything about its settings, all of them", 9, mean),
    ]
    root = parse(figures.accuracy_lines(series, name="l", title="L"))
    assert len(root.findall(SVG + "path")) == 4
    assert len([e for e in root.findall(SVG + "polygon") if e.get("fill-opacity") == "0.18"]) == 1
    assert {"three seeds", "one seed", "joint"} <= set(texts(root))
    assert any(t and t.startswith("a very long") for t in texts(root))


def test_constant_or_single_accuracies_still_have_an_axis(parse):
    for values in ([1.0, 1.0], [0.0], [0.5]):
        found = texts(parse(figures.accuracy_lines([Series("x", 0, np.array(values))], name="l", title="L")))
        assert sum(t.replace(".", "").isdigit() for t in found) >= 3


def test_many_methods_keep_their_labels_apart(parse):
    series = [Series(f"method {i}", i, np.array([0.9, 0.8])) for i in range(25)]
    root = parse(figures.accuracy_lines(series, name="l", title="L"))
    ys = sorted(float(e.get("y")) for e in root.iter(SVG + "text") if e.text.startswith("method"))
    assert len(ys) == 25
    assert min(b - a for a, b in itertools.pairwise(ys)) >= 12


def test_forgetting_bars_point_down_when_a_task_got_better(parse):
    series = [Series("a", 0, np.array([0.3, -0.1, NAN]), np.array([0.2, -0.2, NAN]), np.array([0.4, 0.0, NAN]))]
    root = parse(figures.forgetting_bars(series, name="f", title="F"))
    bars = [e for e in root.iter(SVG + "rect") if e.find(SVG + "title") is not None]
    assert len(bars) == 2
    up, down = bars
    bottom = float(up.get("y")) + float(up.get("height"))
    assert float(down.get("y")) == pytest.approx(bottom, abs=0.2)


def test_forgetting_of_nothing_forgotten_has_a_scale(parse):
    parse(figures.forgetting_bars([Series("a", 0, np.array([0.0, NAN]))], name="f", title="F"))


def test_loss_lines_choose_the_scale_and_break_between_tasks(parse):
    steps = np.arange(1.0, 9.0)
    wide = Series("ce", 0, 10.0 ** -np.arange(8))
    svg = figures.loss_lines([wide], steps, [(0, 0.0), (1, 4.0)], name="l", title="L")
    assert "loss (log scale)" in texts(parse(svg))
    assert parse(svg).find(SVG + "path").get("d").count("M") == 2
    for values in (np.array([1, NAN, 0.5, 0, 0, 0, 0, -1.0]), np.ones(8)):
        assert "loss" in texts(
            parse(figures.loss_lines([Series("ce", 0, values)], steps, [(0, 0.0)], name="l", title="L"))
        )


def test_a_loss_logged_once_per_task_is_a_mark(parse):
    svg = figures.loss_lines([Series("ce", 0, np.array([1.0, 2.0]))], np.array([4.0, 8.0]), [(0, 0.0), (1, 4.0)],
                             name="l", title="L")  # fmt: skip
    assert len(parse(svg).findall(SVG + "circle")) == 2 + 1  # one more at the label


def test_bars_say_what_was_not_measured(parse):
    parts = [("training", np.array([3.0, NAN])), ("evaluation", np.array([1.0, NAN]))]
    found = texts(parse(figures.bars(["a", "b"], parts, lambda v: f"{v:g} s", name="b", title="B")))
    assert {"4 s", "not measured", "training", "evaluation"} <= set(found)


def test_labels_are_escaped(parse):
    label = '<script>alert(1)</script>&"'
    parse(figures.accuracy_lines([Series(label, 0, np.array([0.5, 0.6]))], name="l", title=label))
    parse(figures.heat_map(lower(2), [label, label], name="m", title=label))
    parse(figures.bars([label], [(label, np.array([1.0]))], str, name="b", title=label))


def test_series_colours_stand_out_from_the_page_and_cell_text_from_its_cell():
    assert min(contrast(c, "#ffffff") for c in LIGHT) >= 3
    assert min(contrast(c, "#14171c") for c in DARK) >= 3
    assert len(set(LIGHT)) == len(LIGHT) == len(DARK)
    for value in np.linspace(0, 1, 101):
        fill, ink = sequential(value)
        assert contrast(fill, {"#000": "#000000", "#fff": "#ffffff"}[ink]) >= 4.5


def test_luminance_of_the_sequential_scale_rises():
    against_black = [contrast(sequential(v)[0], "#000000") for v in np.linspace(0, 1, 101)]
    assert all(a < b for a, b in itertools.pairwise(against_black))


def test_ticks_cover_the_range():
    for low, high in [(0, 1), (0.93, 0.97), (-0.3, 0.4), (5, 5), (0, 1234)]:
        found = ticks(low, high)
        assert found[0] <= low + 1e-9
        assert found[-1] >= high - 1e-9
        assert len(found) <= 8


def test_spread_keeps_order_and_gap():
    found = spread([50, 51, 52, 10], 20, 0, 100)
    assert found[0] < found[1] < found[2]
    assert found[1] - found[0] >= 20
    assert max(found) <= 100
    assert spread([95, 96], 10, 0, 100) == [90, 100]


def test_text_is_cut_to_its_width():
    assert shorten("abc", 100) == "abc"
    assert text_width(shorten("x" * 100, 80)) <= 80
    assert wrap("", 50) == []
    assert wrap("one", 50) == ["one"]
    assert len(wrap("one two three four five six", 60)) == 2

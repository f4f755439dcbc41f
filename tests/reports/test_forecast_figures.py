"""Figures of forecast and truth: well-formed, every mark at its value, nothing drawn that is not known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tangentcl.reports import forecast_figures as figures
from tangentcl.reports.forecast_figures import Dot
from tangentcl.reports.forecast_parts import ClassChange, Energy

SVG = "{http://www.w3.org/2000/svg}"
NAN = float("nan")
SCATTER = {"x_name": "x", "y_name": "y", "heading": "H", "name": "n", "title": "T", "description": "D"}


def texts(root) -> list[str]:
    return [e.text for e in root.iter(SVG + "text")]


def circles(root) -> dict[str, tuple[float, float]]:
    return {
        e.find(SVG + "title").text: (float(e.get("cx")), float(e.get("cy")))
        for e in root.iter(SVG + "circle")
        if e.find(SVG + "title") is not None
    }


def shares(*values: float, task: int = 1, outside: float = 0.0) -> Energy:
    array = np.array(values)
    return Energy(task, f"task {task}", array, np.sort(array)[::-1].cumsum(), outside)


@pytest.mark.parametrize("log", [False, True])
def test_scatter_axes_are_equal_and_the_diagonal_is_equality(parse, log):
    values = [(0.01, 0.01), (0.1, 10.0), (10.0, 0.1), (3.0, 3.0)]
    root = parse(figures.scatter([Dot(x, y, 0, f"{x} {y}") for x, y in values], log=log, **SCATTER))
    diagonal = next(e for e in root.iter(SVG + "line") if e.get("stroke-dasharray"))
    x1, y1, x2, y2 = (float(diagonal.get(k)) for k in ("x1", "y1", "x2", "y2"))
    assert x2 - x1 == pytest.approx(y1 - y2, abs=0.2)
    found = circles(root)
    for x, y in values:
        place = found[f"{x} {y}"]
        assert (place[0] - x1 == pytest.approx(y1 - place[1], abs=0.2)) == (x == y)
    start, end = sorted(float(t) for t in texts(root)[1:-2])[:: len(texts(root)) - 4]
    scale = math.log10 if log else float
    wanted = x1 + (scale(3) - scale(start)) / (scale(end) - scale(start)) * (x2 - x1)
    assert found["3.0 3.0"][0] == pytest.approx(wanted, abs=0.2)


def test_scatter_leaves_out_what_has_no_place(parse):
    dots = [Dot(1, NAN, 0, "nan"), Dot(math.inf, 1, 0, "inf"), Dot(0, 1, 0, "zero"), Dot(1, 2, 0, "kept")]
    assert set(circles(parse(figures.scatter(dots, log=True, **SCATTER)))) == {"kept"}
    assert set(circles(parse(figures.scatter(dots, **SCATTER)))) == {"zero", "kept"}


def test_scatter_of_nothing_or_of_one_place_has_axes(parse):
    for place in (None, (0, 0), (32.8413, 32.8413), (0.1 + 1e-12, 0.1)):
        for log in (False, True):
            root = parse(figures.scatter([] if place is None else [Dot(*place, 0, "a")], log=log, **SCATTER))
            found = texts(root)
            assert len(found) >= 1 + 4 + 2
            assert all(len(t) < 6 for t in found)


def test_a_row_per_class_with_its_three_marks(parse):
    classes = [ClassChange("lost", 10, 1.0, 0.5, 0.25), ClassChange("<b>&", 8, 0.5, 0.5, None)]
    root = parse(figures.class_dots(classes, heading="H", name="c", title="C"))
    assert {"lost", "<b>&"} <= set(texts(root))
    predicted = list(root.iter(SVG + "circle"))
    real = list(root.iter(SVG + "polygon"))
    assert len(predicted) == 2
    assert len(real) == 1
    zero, one = (float(e.get("x")) for e in root.iter(SVG + "text") if e.text in ("0", "100"))
    assert float(predicted[0].get("cx")) == pytest.approx((zero + one) / 2, abs=0.2)
    corners = [float(p.split(",")[0]) for p in real[0].get("points").split()]
    assert np.mean(corners) == pytest.approx(zero + (one - zero) / 4, abs=0.2)
    assert any("not trained yet" in e.text for e in root.iter(SVG + "title"))


def test_energy_by_eigenvalue_is_logarithmic_and_leaves_out_the_faintest(parse):
    root = parse(figures.energy_by_eigenvalue([shares(0.9, 0.09, 1e-7, 0.00999)], name="e", title="E"))
    found = circles(root)
    heights = [found[f"before task 2, mode {k}: {v} %"][1] for k, v in ((1, "90"), (2, "9"))]
    ticks = {e.text: float(e.get("y")) for e in root.iter(SVG + "text") if e.get("text-anchor") == "end"}
    assert heights[1] - heights[0] == pytest.approx(ticks["10"] - ticks["100"], abs=0.2)
    assert not any("mode 3" in hint for hint in found)
    assert root.find(SVG + "path").get("d").count("M") == 2


def test_cumulative_energy_has_marks_where_the_shares_are_reached(parse):
    energies = [shares(0.5, 0.42, 0.04, 0.035, 0.005), shares(1.0, task=2), shares(0.3, 0.2, task=3, outside=0.5)]
    svg = figures.energy_cumulative(energies, name="e", title="E")
    root = parse(svg)
    assert "task 1: 2, 3, 4; task 2: 1, 1, 1; task 3: not reached, not reached, not reached" in svg
    hints = [e.text for e in root.iter(SVG + "title")]
    assert "before task 2: 95 % of the energy in 3 of 5 eigenspaces" in hints
    assert not any(hint.startswith("before task 4") for hint in hints)
    assert {"90 %", "95 %", "99 %", "before task 4"} <= set(texts(root))


def test_thousands_of_modes_are_averaged_and_keep_their_energy():
    rng = np.random.default_rng(0)
    values = rng.random(5000)
    ranks, means = figures._averaged(values)
    assert len(ranks) <= figures.DRAWN_RANKS
    counts = np.diff([*(figures._some_ranks(5000) - 1), 5000])
    assert np.sum(means * counts) == pytest.approx(values.sum())
    assert ranks[0] == 1
    assert means[0] == values[0]
    few_ranks, few = figures._averaged(values[:7])
    assert few_ranks.tolist() == list(range(1, 8))
    assert few.tolist() == values[:7].tolist()


def test_energy_figures_of_many_long_tasks_stay_small(parse):
    rng = np.random.default_rng(1)
    energies = [shares(*(rng.dirichlet(np.ones(5000))), task=t) for t in range(1, 15)]
    for draw in (figures.energy_by_eigenvalue, figures.energy_cumulative):
        svg = draw(energies, name="e", title="E")
        parse(svg)
        assert len(svg) < 100_000


def test_calibration_shows_the_band_and_what_is_not_trained(parse):
    svg = figures.accuracy_calibration(
        [2, 3],
        now=np.array([1.0, 0.9]),
        predicted=np.array([0.9, 0.8]),
        real=np.array([0.85, NAN]),
        low=np.array([NAN, 0.7]),
        high=np.array([NAN, 0.9]),
        name="k",
        title="K",
    )
    root = parse(svg)
    assert "task 2: 90.0 predicted, 85.0 real; task 3: 80.0 predicted, not trained yet" in svg
    found = circles(root)
    x, y = found["predicted, task 3: 80.00 %"]
    whisker = [e for e in root.iter(SVG + "line") if e.get("x1") == e.get("x2") == f"{x:.1f}"]
    assert len(whisker) == 1
    assert np.mean([float(whisker[0].get(k)) for k in ("y1", "y2")]) == pytest.approx(y, abs=0.2)
    assert {"before the task", "predicted", "real"} <= set(texts(root))


def test_calibration_of_one_task_without_truth_has_no_real_line(parse):
    one, none = np.array([0.5]), np.array([NAN])
    root = parse(
        figures.accuracy_calibration([2], now=one, predicted=one, real=none, low=none, high=none, name="k", title="K")
    )
    assert "real" not in texts(root)

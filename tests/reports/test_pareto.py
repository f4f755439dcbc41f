"""The front of old against new accuracy, by hand, and its figure."""

from __future__ import annotations

from xml.etree import ElementTree

from tangentcl.reports.paired import Interval
from tangentcl.reports.pareto import Place, front, front_within_intervals, pareto_figure


def at(label: str, old: float, new: float, half: float | None = 0.05) -> Place:
    def interval(mean: float) -> Interval:
        return Interval(mean, None, None, 1) if half is None else Interval(mean, mean - half, mean + half, 5)

    return Place(label, interval(old), interval(new))


PLACES = [
    at("careful", 0.90, 0.50),
    at("balanced", 0.80, 0.80),
    at("nearly balanced", 0.78, 0.79),
    at("same old, far less new", 0.80, 0.60),
    at("eager", 0.20, 0.95),
    at("lost", 0.10, 0.10),
]


def test_front_by_means_and_within_intervals() -> None:
    assert front(PLACES) == [0, 1, 4]
    assert front_within_intervals(PLACES) == [0, 1, 2, 4]


def test_equal_places_are_both_on_it() -> None:
    assert front([at("a", 0.5, 0.5), at("b", 0.5, 0.5)]) == [0, 1]


def test_with_one_seed_means_decide() -> None:
    single = [at(p.label, p.old.mean, p.new.mean, None) for p in PLACES]
    assert front_within_intervals(single) == sorted(front(single))


def test_figure_draws_every_method_and_the_front() -> None:
    svg = ElementTree.fromstring(pareto_figure(PLACES, name="trade", title="old against new"))
    texts = ["".join(t.itertext()) for t in svg.iter("{http://www.w3.org/2000/svg}text")]
    assert [t for t in texts if t.startswith("careful")] == ["careful (front)careful"]
    assert "lost" in texts
    (path,) = svg.iter("{http://www.w3.org/2000/svg}path")
    assert path.get("d", "").count("L") == 2
    assert "careful 90.0 / 50.0; balanced 80.0 / 80.0; eager 20.0 / 95.0" in "".join(svg.itertext())


def test_figure_of_one_method_without_intervals() -> None:
    ElementTree.fromstring(pareto_figure([at("a <b>", 0.5, 0.5, None)], name="one", title="one"))

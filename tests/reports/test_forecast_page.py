"""Pages with forecasts: the section in a report, and the page of one run's forecasts."""

from __future__ import annotations

import re

import pytest

from tangentcl.errors import RecordError
from tangentcl.reports import write_forecast_report, write_report

EVIL = '<script>alert("x")</script><img src=x onerror=alert(1)>&'


def test_a_page_of_one_run(checked, forecast, refused, tmp_path):
    made = [forecast(1, band=False), forecast(2, band=True), forecast(3, truth=False), refused(4)]
    path = write_forecast_report("digits", made, tmp_path)
    assert path == tmp_path / "forecast.html"
    text = checked(path)
    assert "<title>Forecast of forgetting: digits</title>" in text
    assert "What became of task 4 is not known: not trained yet." in text
    assert "<li>5: the loss is not the recipe" in text
    # two common plots, calibration, two margin and two size panels, three class panels, two energy plots
    assert text.count('role="img"') == 2 + 1 + 2 + 2 + 3 + 2
    assert text.count("Samples most at risk before task") == 2 * 3
    for f in made[:3]:
        for mode in f.summary["modes"]["top"]:
            assert f"<td>{100 * mode['share']:.3g} %</td><td>{mode['eigenvalue']:.4g}</td>" in text
            (loaded,) = mode["samples"]
            assert f"<td>{mode['classes'][0]['name']} (70 %)</td><td>{loaded['id']} ({loaded['name']})</td>" in text
        for row in f.summary["at_risk"]:
            assert f"{row['margin_predicted']:+.3g}" in text


def test_a_single_forecast_has_no_curve_over_tasks(checked, forecast, tmp_path):
    text = checked(write_forecast_report("x", [forecast(2)], tmp_path / "f.html"))
    # one panel of margins, of sizes and of classes, two energy plots
    assert text.count('role="img"') == 5
    assert "A forecast took 0.25 s, 5 % of the 5 s" in text


def test_forecasts_come_in_the_order_of_tasks(checked, forecast, tmp_path):
    text = checked(write_forecast_report("x", [forecast(3), forecast(1)], tmp_path / "f.html"))
    found = [int(t) for t in re.findall(r'<tr><th scope="row">(\d): class', text)]
    assert found == [2, 4, *[2] * 5, *[4] * 5]  # the table of tasks, then that of modes


def test_refusals_alone_and_no_forecast_at_all(checked, refused, tmp_path):
    text = checked(write_forecast_report("x", [refused(1)], tmp_path / "f.html"))
    assert "Every forecast was refused." in text
    assert 'role="img"' not in text
    with pytest.raises(RecordError, match="tangentcl forecast"):
        write_forecast_report("x", [], tmp_path)


@pytest.mark.parametrize(
    "settings",
    [
        {"scale": 0.0},
        {"scale": 0.0, "truth": False},
        {"per_task": 1},
        {"exact": True, "noise": 1e-6},
        {"per_task": 150, "n": 400},
        {"n": 4},
    ],
    ids=["no drift", "no drift, no truth", "one past class", "exact", "300 classes", "four samples"],
)
def test_corners(checked, forecast, tmp_path, settings):
    text = checked(write_forecast_report("x", [forecast(1, **settings)], tmp_path / "f.html"))
    assert "nan" not in re.sub(r"[a-z]nan|nan[a-z]", "", text.lower())
    assert ("130 more classes, each losing at most" in text) == (settings.get("per_task") == 150)
    assert ("Eigenmodes" in text) == (settings.get("scale") != 0)


def test_hundreds_of_old_samples_are_drawn_in_part_and_this_is_said(checked, forecast, tmp_path):
    text = checked(write_forecast_report("x", [forecast(1, n=1500)], tmp_path / "f.html"))
    assert "At most 400 samples per panel, drawn at random (seed 0), of up to 1,500." in text
    assert text.count("<title>sample ") == 2 * 400


def test_any_name_is_shown_as_text(checked, forecast, tmp_path):
    names = [f"{EVIL} {c}" for c in range(4)]
    made = forecast(1, names=names)
    made.summary.update(sentence=EVIL, notes=[EVIL], samples_note=EVIL)
    text = checked(write_forecast_report(EVIL, [made], tmp_path / "f.html"))
    assert "<img" not in text


@pytest.fixture(scope="module")
def runs(tmp_path_factory, write, forecast, refused, save):
    """Two methods with two seeds each; a third method without forecasts."""
    folder = tmp_path_factory.mktemp("forecast-runs")
    found = []
    for method, noise in (("finetune", 0.1), ("replay", 0.6), ("ncm", None)):
        for seed in (0, 1):
            found.append(write(folder, method, seed, n_tasks=4))
            for t in (1, 2, 3) if noise else ():
                save(found[-1], forecast(t, noise=noise, seed=seed, band=t > 1) if (t, seed) != (3, 1) else refused(3))
    return found


def test_a_report_has_the_section_after_forgetting(checked, runs, tmp_path):
    text = checked(write_report(runs, tmp_path))
    order = [text.index(f'<section id="{name}">') for name in ("forgetting", "forecasts", "losses")]
    assert order == sorted(order)
    assert '<a href="#forecasts">' in text
    section = text[order[1] : order[2]]
    assert section.count('<details class="method"') == 2
    assert "mean over seeds 0, 1" in section
    assert "Everything below is of seed 0" in section
    assert "(1 of 2 seeds)" in section
    assert "ncm" not in section
    assert "<dt>Drift</dt>" in text


def test_a_method_with_nothing_but_refusals_comes_last_and_closed(checked, tmp_path, write, forecast, refused, save):
    found = [write(tmp_path, method, 0, n_tasks=4) for method in ("ncm", "finetune")]
    save(found[0], refused(1))
    save(found[1], forecast(1))
    save(found[1], forecast(2))
    text = checked(write_report(found, tmp_path / "r.html"))
    first, second = (m.start() for m in re.finditer('<details class="method"', text))
    assert text[first:second].startswith('<details class="method" open>\n<summary>finetune</summary>')
    assert "<summary>ncm</summary>" in text[second:]
    assert re.findall(r'<ul class="legend always"><li>.*?</svg>(\w+)</li></ul>', text)[0] == "finetune"


def test_a_report_without_forecasts_does_not_mention_them(checked, digits, tmp_path):
    text = checked(write_report(digits, tmp_path))
    assert "orecast" not in text
    assert "<dt>Drift</dt>" not in text


def test_damaged_forecasts_are_named_and_do_not_hide_the_rest(checked, runs, tmp_path, write, forecast, save):
    damaged = write(tmp_path, "joint", 0, n_tasks=4)
    save(damaged, forecast(1))
    (damaged / "forecasts" / "task-001.json").write_text("{")
    text = checked(write_report([*runs, damaged], tmp_path / "r.html"))
    assert f"<code>{damaged}</code> cannot be read" in text
    assert text.count('<details class="method"') == 2


def test_a_browser_shows_forecasts_without_errors_and_without_sideways_scrolling(browse, runs, forecast, tmp_path):
    assert browse(write_report(runs, tmp_path / "report.html")) <= 390
    many = [forecast(t, per_task=10, n=300, band=t > 1) for t in range(1, 8)]
    assert browse(write_forecast_report("many", many, tmp_path / "many.html")) <= 390

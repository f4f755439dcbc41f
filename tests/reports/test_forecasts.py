"""Forecasts in words and numbers: every number of the table recomputed, and what is not known said."""

from __future__ import annotations

import numpy as np
import pytest

from tangentcl.reports.forecasts import (
    HEADING,
    Run,
    beliefs,
    forgotten,
    overview,
    refusals,
    spans,
    table,
    trust_level,
    value,
)


def column(runs, name: str) -> list[str]:
    heading, body = table(runs)
    return [line[heading.index(name)] for line in body]


def outputs_right(f, drift: str | None, seen: int) -> np.ndarray:
    a = f.arrays
    moved = a["outputs"][:, :seen] if drift is None else a["outputs"] + a[drift]
    return moved.argmax(1) == a["labels"]


def test_the_table_has_a_line_per_task_and_the_numbers_of_the_arrays(forecast):
    made = [forecast(t, noise=0.2) for t in (1, 2, 3)]
    heading, body = table([Run(0, made)])
    assert heading == HEADING
    assert [len(line) for line in body] == [len(HEADING)] * 3
    assert column([Run(0, made)], "before task") == ["2: class 2 to class 3", "3: class 4 to class 5",
                                                     "4: class 6 to class 7"]  # fmt: skip
    for f, line in zip(made, body):
        now = outputs_right(f, None, 2 * f.task)
        predicted, real = (outputs_right(f, name, 2 * f.task) for name in ("drift", "real_drift"))
        cells = dict(zip(heading, line))
        assert cells["now (%)"] == f"{100 * now.mean():.1f}"
        assert cells["predicted (%)"] == f"{100 * predicted.mean():.1f}"
        assert cells["real (%)"] == f"{100 * real.mean():.1f}"
        assert float(cells["forgotten, predicted"]) == pytest.approx(100 * (now.mean() - predicted.mean()), abs=0.051)
        assert float(cells["forgotten, real"]) == pytest.approx(100 * (now.mean() - real.mean()), abs=0.051)
        lost = [(now & ~predicted).sum(), (now & ~real).sum(), (now & ~predicted & ~real).sum()]
        assert cells["lost: predicted / real / both"] == " / ".join(map(str, lost))
        d, r = (f.arrays[n].astype(float) for n in ("drift", "real_drift"))
        assert float(cells["R²"]) == pytest.approx(1 - np.sum((d - r) ** 2) / np.sum(r**2), abs=6e-4)
        cosine = np.sum(d * r) / np.sqrt(np.sum(d * d) * np.sum(r * r))
        assert float(cells["cosine"]) == pytest.approx(cosine, abs=6e-4)
        energy = np.sort(f.arrays["energy"])[::-1]
        count = int(np.argmax(energy.cumsum() >= 0.95 * energy.sum())) + 1
        assert cells["modes for 95 %"] == f"{count} of {len(energy)}"
        assert cells["forecast took"] == "0.25 s"
        assert cells["training took"] == "5 s"


def test_seeds_are_averaged_and_a_missing_one_is_said(forecast, refused):
    runs = [Run(s, [forecast(1, seed=s)]) for s in (0, 1, 2)]
    values = [100 * f.summary["accuracy"]["now"] for run in runs for f in run.forecasts]
    assert column(runs, "now (%)") == [f"{np.mean(values):.1f} ± {np.std(values, ddof=1):.1f}"]
    short = [*runs[:2], Run(2, [refused(1)])]
    assert column(short, "now (%)")[0].endswith("(2 of 3 seeds)")
    assert refusals(short) == [("2 (seed 2)", "the loss is not the recipe's")]


def test_before_training_the_truth_is_said_to_be_missing(forecast):
    run = Run(0, [forecast(1), forecast(2, truth=False, band=True)])
    assert column([run], "real (%)")[1] == "not trained yet"
    assert column([run], "forgotten, real")[1] == column([run], "cosine")[1] == "–"
    assert column([run], "lost: predicted / real / both")[1].endswith(" / – / –")
    assert column([run], "training took")[1] == "–"
    low, high = (100 * run.forecasts[1].summary["accuracy"][side] for side in ("low", "high"))
    assert column([run], "predicted (%)")[1].endswith(f"[{low:.1f} to {high:.1f}]")
    assert forgotten(run.forecasts[1], "real") is None
    run.forecasts[1].summary.update(exact=True)
    assert "[" not in column([run], "predicted (%)")[1]
    assert overview([run])[-1] == "What became of task 3 is not known: not trained yet."


def test_the_overview_names_the_worst_error_the_band_and_the_cost(forecast):
    runs = [Run(s, [forecast(t, seed=s, noise=0.8, band=t > 1) for t in (1, 2, 3)]) for s in (0, 1)]
    errors = {
        (f.task + 1, run.seed): abs(f.summary["accuracy"]["predicted"] - f.summary["accuracy"]["real"])
        for run in runs
        for f in run.forecasts
    }
    (task, seed), worst = max(errors.items(), key=lambda e: e[1])
    first, band, cost = overview(runs)
    assert f"{100 * np.mean(list(errors.values())):.1f} points on average over 6 forecasts" in first
    assert f"by {100 * worst:.1f} at most (before task {task}, seed {seed})" in first
    inside = sum(error <= 0.05 for (t, _), error in errors.items() if t > 2)
    assert band.endswith(f"in {inside} of 4 cases.")
    assert cost == "A forecast took 0.25 s on average, 5 % of the 5 s of the training that it foresees."
    for run in runs:
        for f in run.forecasts:
            f.summary["cost"]["forecast_seconds"] = 12.0
    assert overview(runs)[2].startswith("A forecast took 12 s on average, 2.4 times the 5 s of")


def test_an_error_below_a_tenth_of_a_point_is_none(forecast):
    alike = [forecast(t, noise=1e-6) for t in (1, 2)]
    assert overview([Run(0, alike)])[0] == (
        "Predicted and real old accuracy are the same to a tenth of a point in all 2 forecasts."
    )
    assert overview([Run(0, alike[:1])])[0].endswith("to a tenth of a point.")


def test_old_samples_are_counted_and_a_part_of_them_is_said(forecast):
    some, every = forecast(1), forecast(2)
    some.summary.update(n_old_available=5000, samples_note="120 of 5,000, drawn with seed 0.")
    every.summary.update(samples_note="All of them.")
    assert column([Run(0, [some, every])], "old samples") == ["120 of 5,000", "120"]
    said = [sentence for _, sentence in beliefs([some, every])]
    assert "120 of 5,000, drawn with seed 0." in said
    assert "All of them." not in said


def test_trust_in_words(forecast):
    assert trust_level(forecast(1, exact=True)) == "exact"
    found = [forecast(1, noise=noise) for noise in (0.1, 0.5, 2.0)]
    assert [trust_level(f) for f in found] == ["high", "medium", "low"]
    runs = [Run(s, [f]) for s, f in enumerate([*found[:1], *found])]
    assert column(runs, "trust") == ["high (2), medium (1), low (1)"]
    unmeasured = forecast(1, exact=True)
    unmeasured.summary.update(exact=False)
    assert trust_level(unmeasured) == "not exact"


def test_equal_sentences_stand_once(forecast):
    made = [forecast(t, exact=True) for t in (1, 2, 3)]
    made[1].summary.update(notes=["Random training views are not forecast."])
    assert beliefs(made) == [
        ("2 to 4", "Exact: it equals training up to rounding."),
        ("3", "Random training views are not forecast."),
    ]


def test_nothing_but_refusals(refused):
    run = Run(0, [refused(1), refused(2), refused(4, "dropout is on")])
    assert table([run])[1] == []
    assert refusals([run]) == [("2, 3", "the loss is not the recipe's"), ("5", "dropout is on")]
    assert overview([run]) == ["Every forecast was refused."]


def test_no_drift_has_no_quality(forecast):
    still = forecast(1, scale=0.0)
    assert column([Run(0, [still])], "cosine") == ["–"]
    assert column([Run(0, [still])], "forgotten, predicted") == [f"{100 * forgotten(still, 'predicted') + 0:.1f}"]
    assert value(still, "quality", "r2") is None


def test_spans():
    assert spans([]) == ""
    assert spans([5]) == "5"
    assert spans([2, 1, 9, 4, 5, 6]) == "1, 2, 4 to 6, 9"

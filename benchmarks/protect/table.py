"""Results as a Markdown page, JSON and a figure."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.protect.methods import REFERENCE
from benchmarks.protect.numbers import ACCURACIES, COSTS
from benchmarks.protect.results import COLUMNS, EQUAL, Results, Row, Test
from tangentcl.records.files import atomic_write, write_json
from tangentcl.reports.paired import Interval
from tangentcl.reports.pareto import pareto_figure
from tangentcl.reports.tables import markdown


def write(results: Results, folder: Path) -> str:
    """``table.md``, ``table.json`` and, where a method has both accuracies, ``pareto.svg``; the Markdown."""
    folder.mkdir(parents=True, exist_ok=True)
    page = to_markdown(results)
    atomic_write(folder / "table.md", page)
    write_json(folder / "table.json", to_json(results))
    if results.places:
        title = f"{results.setting.name}: old against new accuracy"
        atomic_write(folder / "pareto.svg", pareto_figure(results.places, name="pareto", title=title) + "\n")
    return page


def to_markdown(results: Results) -> str:
    """Numbers, tests, trials and what is missing."""
    shown = [row for row in results.rows if row.seeds]
    parts = [f"## {results.setting.name}"]
    parts.append("Mean over seeds ± half the 95 % t-interval; accuracies in %, memory is state and stored samples.")
    heading = ["method", "strength", "seeds", *(head for _, head in COLUMNS), "front", "equal memory"]
    parts.append(markdown(heading, [_line(results, row) for row in shown]))
    parts.append(
        "Front of old and new accuracy, among all and among methods that keep at most "
        f"{EQUAL:g} times what {REFERENCE} does: ● by means, ○ not told from it by the seeds."
    )
    parts += _tests(results)
    tried = [row for row in results.rows if row.trials]
    if tried:
        heading = ["method", "strength", "accuracy on validation samples of the first tasks (%)", "chosen"]
        parts.append(f"### Strengths, on the first {results.setting.tuning_tasks} tasks")
        parts.append(markdown(heading, [_trials(row) for row in tried]))
    missing = [f"- {row.entry.label}: {reason}" for row in results.rows for reason in row.failures]
    if missing:
        parts.append("### Missing\n\n" + "\n".join(missing))
    return "\n\n".join(parts) + "\n"


def _line(results: Results, row: Row) -> list[str]:
    label = row.entry.label
    fronts = ((results.front, results.near), (results.equal, results.equal_near))
    on = ["●" if label in best else "○" if label in near else "" for best, near in fronts]
    percents = [_percent(row.interval(name)) for name, _ in ACCURACIES]
    costs = [_cost(name, row.interval(name)) for name, _ in COSTS]
    return [label, _strength(row), str(len(row.seeds)), *percents, *costs, *on]


def _strength(row: Row) -> str:
    return "–" if row.value is None else f"{row.entry.strength} {row.value:.3g}"


def _percent(found: Interval | None) -> str:
    if found is None:
        return "–"
    half = "" if found.high is None else f" ± {100 * (found.high - found.mean):.1f}"
    return f"{100 * found.mean:.1f}{half}"


def _cost(name: str, found: Interval | None) -> str:
    if found is None:
        return "–"
    if name.endswith("bytes"):
        return f"{found.mean / 1000:,.0f} kB"
    return f"{found.mean:,.1f}" if name == "cpu_seconds" else f"{found.mean:,.0f}"


def _tests(results: Results) -> list[str]:
    tests = results.tests["last_accuracy"]
    if not tests:
        return [f"No tests: there is no row {REFERENCE} with seeds that another row has, too."]
    body = [[label, str(test.found.difference.n), *_test(test)] for label, test in tests.items()]
    heading = [
        "method",
        "pairs",
        f"A_T less {REFERENCE}",
        "t",
        "t, Holm",
        "sign flip",
        "sign flip, Holm",
        "signed rank",
    ]
    least = max(test.found.least_p for test in tests.values())
    n = min(test.found.difference.n for test in tests.values())
    note = (
        f"Two-sided p over seeds, Holm over {len(tests)} methods. With {n} pairs the two exact tests, sign flip and "
        f"signed rank, cannot fall below {least:g}"
        + (
            ": they reach no level of 0.05 whatever the difference; the t-test can, if differences scatter normally."
            if least > 0.05
            else "."
        )
    )
    return [f"### Against {REFERENCE}, seed by seed", markdown(heading, body), note]


def _test(test: Test) -> list[str]:
    found = test.found
    p = (found.p_t, test.holm_t, found.p_sign_flip, test.holm_sign_flip, found.p_signed_rank)
    return [_percent(found.difference), *("–" if value is None else f"{value:.2g}" for value in p)]


def _trials(row: Row) -> list[str]:
    tried = [
        f"{trial.value:.3g}: {'failed' if trial.accuracy is None else f'{100 * trial.accuracy:.1f}'}"
        for trial in row.trials
    ]
    return [
        row.entry.label,
        str(row.entry.strength),
        ", ".join(tried),
        "–" if row.value is None else f"{row.value:.3g}",
    ]


def to_json(results: Results) -> dict[str, Any]:
    """Everything: the numbers of each seed, intervals, tests, trials, failures, the front."""
    rows = [
        {
            "label": row.entry.label,
            "method": row.entry.name,
            "remembers": row.entry.memory,
            "strength": row.entry.strength,
            "value": row.value,
            "seeds": {str(seed): found for seed, found in row.seeds.items()},
            "intervals": {name: None if (i := row.interval(name)) is None else asdict(i) for name, _ in COLUMNS},
            "trials": [asdict(trial) for trial in row.trials],
            "missing": list(row.failures),
        }
        for row in results.rows
    ]
    tests = {name: {label: asdict(test) for label, test in found.items()} for name, found in results.tests.items()}
    setting = results.setting
    return {
        "setting": {
            "name": setting.name,
            "tuning_tasks": setting.tuning_tasks,
            "sketch_bytes": setting.sketch_bytes,
            "sample_bytes": setting.sample_bytes,
        },
        "rows": rows,
        "reference": REFERENCE,
        "tests": tests,
        "front": list(results.front),
        "front_within_intervals": list(results.near),
        "front_equal_memory": list(results.equal),
        "front_equal_memory_within_intervals": list(results.equal_near),
    }

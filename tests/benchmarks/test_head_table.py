"""The table of heads over features gives what runs over the backbone give."""

from __future__ import annotations

from pathlib import Path

import pytest
from benchmarks.head_table import main

from tangentcl.experiments import load_experiment
from tangentcl.experiments.run import run_experiment
from tangentcl.records import Record

METHODS = {
    "nearest class mean": 'name = "ncm"',
    "units": 'name = "ranpac"\nn_units = 30',
    "all at once": 'name = "ranpac"\nn_units = 30\njoint = true',
}


def written(path: Path, methods: dict[str, str]) -> str:
    tables = "".join(f'[[method]]\nlabel = "{label}"\n{rest}\n' for label, rest in methods.items())
    stream = 'kind = "class_incremental"\nn_tasks = 5\norder_seed = "seed"\ntrain_per_class = 10\ntest_per_class = 15\n'
    path.write_text(f'seeds = [0, 1]\n[source]\nname = "digits"\n[stream]\n{stream}{tables}')
    return str(path)


def test_a_row_for_each_method_with_the_numbers_of_its_runs(tmp_path, capsys) -> None:
    file = written(tmp_path / "digits.toml", METHODS)
    main([file])
    lines = [line.split("|")[1:-1] for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    found = {cells[0].strip(): [cell.strip() for cell in cells[1:]] for cells in lines[2:]}
    assert list(found) == list(METHODS)
    records: dict[str, list[dict]] = {label: [] for label in METHODS}
    for outcome in run_experiment(load_experiment(file), tmp_path / "runs"):
        record = Record.read(outcome.folder)
        records[record.config["label"]].append(record.accuracy.metrics)
    for label, runs in records.items():
        last = [100 * run["last_accuracy"] for run in runs]
        mean, spread, least = sum(last) / 2, abs(last[0] - last[1]) / 2**0.5, min(last)
        assert found[label][1:3] == [f"{mean:.2f} ± {spread:.2f}", f"{least:.2f}"]
    assert found["units"][4] == "0.00 ± 0.00"
    assert found["nearest class mean"][4] == found["all at once"][4] == found["all at once"][0] == "–"


@pytest.mark.parametrize("method", ['name = "finetune"\ntune = "head"', 'name = "ranpac"\nfirst_session = "full"'])
def test_a_method_that_trains_is_refused(tmp_path, method) -> None:
    with pytest.raises(SystemExit, match="trains by gradient"):
        main([written(tmp_path / "digits.toml", {"trained": method})])

"""Aggregation over seeds, the joint reference, and the three written forms."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
import tomli_w

from tangentcl.experiments import load_experiment
from tangentcl.experiments.run import run_experiment
from tangentcl.records import Record, RecordWriter, write_checksums
from tangentcl.reports import rows, select, to_json, to_markdown, to_text, write_report
from tangentcl.reports.tables import PROTOCOL, Cell, percent

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


@pytest.fixture(scope="module")
def found(digits):
    return rows([Record.read(p) for p in digits])


def by_label(found):
    return {r.label: r for r in found}


def test_one_row_per_label_with_mean_and_sample_deviation(found, digits):
    assert [r.label for r in found] == ["finetune", "ncm", "replay", "joint"]
    row = by_label(found)["ncm"]
    last = [Record.read(p).accuracy.metrics["last_accuracy"] for p in digits if p.parent.name == "ncm"]
    assert row.seeds == (0, 1, 2)
    assert row.metrics["last_accuracy"].mean == pytest.approx(np.mean(last))
    assert row.metrics["last_accuracy"].std == pytest.approx(np.std(last, ddof=1))
    assert row.metrics["last_accuracy"].n == 3


def test_regret_is_taken_seed_by_seed_from_the_joint_run(found):
    rows_by = by_label(found)
    joint, ncm = rows_by["joint"].metrics["last_accuracy"], rows_by["ncm"].metrics
    assert ncm["regret_to_joint"].mean == pytest.approx(joint.mean - ncm["last_accuracy"].mean)
    assert ncm["regret_to_joint"].n == 3
    assert rows_by["ncm"].joint == ("joint",)
    assert rows_by["joint"].metrics["regret_to_joint"] is None
    assert rows_by["joint"].metrics["ffm"] is None


def test_no_regret_without_the_joint_run_of_the_same_problem(tmp_path, write):
    runs = [write(tmp_path, "ncm", 0), write(tmp_path, "ncm", 1), write(tmp_path, "joint", 1)]
    row = by_label(rows([Record.read(p) for p in runs]))["ncm"]
    assert row.metrics["regret_to_joint"].n == 1
    assert "(1 of 2 seeds)" in percent(row.metrics["regret_to_joint"], 2)
    other = tmp_path / "other"
    runs = [write(other, "ncm", 0), write(other, "joint", 0, stream="clinc150")]
    assert rows([Record.read(p) for p in runs])[0].metrics["regret_to_joint"] is None


def test_a_closed_form_head_has_no_regret_but_forgets(tmp_path):
    path = tmp_path / "heads.toml"
    methods = [
        ("slda", ""),
        ("slda", "joint = true"),
        ("ranpac", "n_units = 30"),
        ("ranpac", "n_units = 30\njoint = true"),
    ]
    tables = "".join(f'[[method]]\nname = "{n}"\nlabel = "{i}"\n{rest}\n' for i, (n, rest) in enumerate(methods))
    path.write_text(
        '[source]\nname = "digits"\n[stream]\nkind = "class_incremental"\nn_tasks = 5\ntrain_per_class = 40\n' + tables
    )
    outcomes = run_experiment(load_experiment(path), tmp_path / "runs")
    assert [o.status for o in outcomes] == ["done"] * 4
    found = by_label(rows([Record.read(o.folder) for o in outcomes]))
    for own, joint in (("0", "1"), ("2", "3")):
        assert found[own].metrics["regret_to_joint"].mean == pytest.approx(0, abs=1e-12)
        assert found[own].joint == (joint,)
        assert found[joint].metrics["regret_to_joint"] is None
        assert found[own].metrics["last_accuracy"].mean > 0.8
        assert found[own].costs["stored_samples"].mean == 0
        assert found[joint].costs["stored_samples"].mean == 400
    assert found["2"].metrics["ffm"].mean > 0.005
    assert found["0"].metrics["last_accuracy"].mean != found["2"].metrics["last_accuracy"].mean
    counts, sums, moment = 10 * 8, 10 * 192 * 8, 192 * 192 * 8
    assert found["0"].costs["state_bytes"].mean == counts + sums + moment
    page = write_report([o.folder for o in outcomes], tmp_path / "page").read_text()
    assert "regret 0 while its forgetting is positive" in page
    assert ">state<" in page


@pytest.mark.parametrize("other, known", [({"n_units": 40}, False), ({"n_units": 30}, True)])
def test_only_a_joint_run_of_the_same_settings_is_the_reference_of_a_head(tmp_path, write, other, known):
    run, joint = (write(tmp_path / label, "ncm", 0, label=label) for label in ("own", "joint"))
    for path, settings in ((run, {"n_units": 30, "joint": False}), (joint, {**other, "joint": True})):
        config = tomllib.loads((path / "config.toml").read_text())
        config["method"] = {"name": "ranpac", **settings}
        (path / "config.toml").write_text(tomli_w.dumps(config))
        write_checksums(path)
    found = by_label(rows([Record.read(path) for path in (run, joint)]))
    assert (found["own"].metrics["regret_to_joint"] is not None) == known


@pytest.mark.parametrize("change", [{"backbone": {"name": "other"}}, {"stream": {"name": "digits"}}])
def test_another_backbone_or_an_unknown_stream_is_no_reference(tmp_path, write, change):
    runs = [write(tmp_path, "ncm", 0), write(tmp_path, "joint", 0)]
    path = runs[1] / "environment.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    write_checksums(runs[1])
    assert by_label(rows([Record.read(p) for p in runs]))["ncm"].metrics["regret_to_joint"] is None


def test_costs_and_protocol(found):
    replay = by_label(found)["replay"]
    assert replay.costs["stored_samples"].mean == 500
    assert replay.costs["trainable_parameters"].mean == 147_456
    assert replay.costs["seconds"].mean == 59
    assert replay.costs["evaluation_seconds"].mean == pytest.approx(4.5)
    assert set(replay.protocol) == set(PROTOCOL)
    assert replay.protocol["seeds"] == "0, 1, 2"
    assert replay.protocol["class_order"].endswith("(10 in all)")


def test_unfinished_damaged_and_repeated_records_are_left_out(tmp_path, write):
    good = write(tmp_path, "ncm", 0)
    again = write(tmp_path / "again", "ncm", 0)
    running = RecordWriter(tmp_path / "running", {"name": "x", "seed": 0}, {}).folder
    failed = RecordWriter(tmp_path / "failed", {"name": "x", "seed": 0}, {})
    failed.finish("failed", "NonFiniteLoss: ce")
    chosen = select([good, again, running, failed.folder, tmp_path / "nowhere"])
    assert [r.folder for r in chosen.done] == [good]
    reasons = [reason for _, reason in chosen.excluded]
    assert reasons[0].startswith("same experiment, label and seed as")
    assert reasons[1:3] == ["running", "failed: NonFiniteLoss: ce"]
    assert "is not a folder" in reasons[3]
    assert len(rows(Record.read(p) for p in (good, again, running))) == 1


def test_streams_do_not_mix(digits, tmp_path, write):
    shorter = write(tmp_path, "ncm", 0, n_tasks=2)
    found = rows([Record.read(p) for p in [*digits, shorter]])
    assert len(found) == 5
    assert "stream" in to_text(found).splitlines()[0]


def test_markdown(found, tmp_path, write):
    text = to_markdown(found)
    assert text.startswith("| label | seeds | Ā ↑ | A_T ↑ | FFM ↓ | regret to joint ↓ |")
    assert "| experiment | label | checkpoint | split |" in text
    evil = rows([Record.read(write(tmp_path, "ncm", 0, label="a|b\nc"))])
    first = to_markdown(evil).splitlines()
    assert first[2].startswith("| a\\|b c | 1 |")


def test_text_is_aligned_and_ends_without_spaces(found):
    lines = to_text(found).splitlines()
    assert len({line.index(cell) + len(cell) for line, cell in zip(lines, ["A_T ↑"])}) == 1
    assert all(line == line.rstrip() for line in lines)
    assert len(lines) == 5
    assert "±" in lines[1]


def test_json_keeps_fractions_and_nulls(found):
    content = json.loads(to_json(found))
    assert content[0]["label"] == "finetune"
    assert 0 < content[0]["metrics"]["last_accuracy"]["mean"] < 1
    assert content[3]["metrics"]["ffm"] is None
    assert content[3]["matrix_mean"][0] == [None] * 5
    assert content[0]["seeds"] == [0, 1, 2]


def test_a_single_seed_has_no_deviation():
    assert percent(Cell.of([0.5]), 1) == "50.00"
    assert Cell.of([None]) is None
    assert percent(Cell.of([-0.00001, None]), 2) == "0.00 (1 of 2 seeds)"

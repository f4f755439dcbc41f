"""The report page: complete, self-contained, safe with any label, and quiet in a browser."""

from __future__ import annotations

import html
import json
from pathlib import Path

import pytest

from tangentcl import reports
from tangentcl.errors import RecordError
from tangentcl.records import RecordWriter, write_checksums
from tangentcl.reports import write_report

EVIL = '<script>alert("x")</script><img src=x onerror=alert(1)>&'


def test_every_section_is_there(checked, digits, tmp_path):
    path = write_report(digits, tmp_path)
    assert path == tmp_path / "report.html"
    text = checked(path)
    for section in ("table", "tasks", "matrices", "forgetting", "losses", "cost", "runs", "settings", "definitions"):
        assert f'<section id="{section}">' in text
    assert "12 finished runs: 4 methods, 3 seeds each" in text
    assert "prefers-color-scheme:dark" in text
    assert text.count('role="img"') == 1 + 4 + 1 + 3 + 2
    assert 'id="excluded"' not in text
    assert "the classes that lost most" in text
    assert text.count("<caption>") == text.count("<table")
    assert "stream.order_seed: 0; 1; 2" in text


def test_several_streams_have_their_own_figures(checked, digits, intents, tmp_path):
    text = checked(write_report([*digits, *intents], tmp_path / "all.html"))
    assert "<h3>clinc150: 15 tasks, 150 classes, class-incremental</h3>" in text
    assert "sequential LoRA, all logits, rank 8" in text


def test_records_that_are_not_done_are_listed_with_the_reason(checked, digits, tmp_path):
    failed = RecordWriter(tmp_path / "failed", {"name": "x", "seed": 0}, {})
    failed.finish("failed", f"NonFiniteLoss: {EVIL}")
    text = checked(write_report([digits[0], failed.folder, tmp_path / "nowhere"], tmp_path / "r.html"))
    assert "failed: NonFiniteLoss: &lt;script&gt;" in text
    assert "nowhere is not a folder" in text
    assert "2 records left out" in text


def test_nothing_done_is_one_clear_error(tmp_path):
    failed = RecordWriter(tmp_path / "failed", {"name": "x", "seed": 0}, {})
    failed.finish("failed", "disk full")
    with pytest.raises(RecordError, match=r"no finished record to report on\.\n.*failed: failed: disk full"):
        write_report([failed.folder], tmp_path)
    with pytest.raises(RecordError, match="Make one: tangentcl run"):
        write_report([], tmp_path)
    assert not list(tmp_path.glob("*.html"))


def test_any_label_is_shown_as_text(checked, tmp_path, write):
    names = [f"{EVIL} {c}" for c in range(4)]
    run = write(tmp_path, "finetune", 0, n_tasks=2, label=EVIL, experiment=EVIL, stream=EVIL, names=names)
    path = run / "environment.json"
    environment = json.loads(path.read_text())
    environment["device"] = environment["protocol"]["split"] = EVIL
    path.write_text(json.dumps(environment))
    write_checksums(run)
    text = checked(write_report([run], tmp_path / "r.html"))
    assert "<img" not in text
    assert html.escape(EVIL) in text


def test_a_single_seed_a_single_task_and_nothing_but_joint(checked, tmp_path, write):
    checked(write_report([write(tmp_path, "finetune", 0, n_tasks=1)], tmp_path / "one.html"))
    text = checked(write_report([write(tmp_path, "joint", 0)], tmp_path / "joint.html"))
    assert "Not known: it needs two tasks" in text
    text = checked(write_report([write(tmp_path, "ncm", 0)], tmp_path / "ncm.html"))
    assert "Nothing was trained by gradient steps." in text


def test_methods_of_equal_accuracy(checked, tmp_path, write):
    same = [write(tmp_path / label, "finetune", seed, label=label) for label in ("a", "b") for seed in (0, 1)]
    assert "2 methods, 2 seeds each. Trained task by task, a reaches" in checked(
        write_report(same, tmp_path / "r.html")
    )


def test_a_record_that_keeps_little_still_gives_a_page(checked, tmp_path, write):
    run = write(tmp_path, "ncm", 0)
    (run / "environment.json").write_text("{}")
    (run / "events.jsonl").write_text("")
    write_checksums(run)
    text = checked(write_report([run], tmp_path / "r.html"))
    assert "not recorded" in text


def test_the_page_is_replaced_in_one_step_or_not_at_all(digits, tmp_path, monkeypatch):
    path = write_report(digits[:1], tmp_path / "deep" / "r.html")
    before = path.read_text()

    def broken(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", broken)
    with pytest.raises(RecordError, match="No space left"):
        write_report(digits, path)
    assert path.read_text() == before
    (tmp_path / "file").write_text("")
    with pytest.raises(RecordError, match="cannot make the folder"):
        write_report(digits, tmp_path / "file" / "r.html")


def test_the_templates_ship_with_the_package():
    folder = Path(reports.__file__).parent
    wanted = {"report", "forecast", "forecasts", "parts", "style"}
    assert wanted <= {path.name.split(".")[0] for path in folder.glob("*.j2")}


def test_a_browser_shows_it_without_errors_and_without_sideways_scrolling(browse, digits, intents, tmp_path):
    assert browse(write_report([*digits, *intents], tmp_path / "report.html")) <= 390

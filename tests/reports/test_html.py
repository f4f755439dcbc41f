"""The report page: complete, self-contained, safe with any label, and quiet in a browser."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tangentcl import reports
from tangentcl.errors import RecordError
from tangentcl.records import RecordWriter
from tangentcl.reports import write_report

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
EVIL = '<script>alert("x")</script><img src=x onerror=alert(1)>&'


class Page(HTMLParser):
    """Tags, ids and nesting; void elements need no end tag."""

    VOID = {"meta", "link", "br", "img"}

    def __init__(self, text: str):
        super().__init__()
        self.open, self.tags, self.ids, self.addresses = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        for name, value in attributes:
            if name == "id":
                self.ids.append(value)
            if name in ("src", "href", "action"):
                self.addresses.append(value)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def checked(path) -> str:
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    assert page.open == []
    assert len(page.ids) == len(set(page.ids))
    assert all(a.startswith(("#", "data:")) for a in page.addresses)
    assert all(a[1:] in page.ids for a in page.addresses if a.startswith("#"))
    assert "script" not in page.tags
    assert not re.search(r"@import|url\(", text)
    assert set(re.findall(r"https?://[^\s\"']+", text)) <= {"http://www.w3.org/2000/svg"}
    return text


def test_every_section_is_there(digits, tmp_path):
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


def test_several_streams_have_their_own_figures(digits, intents, tmp_path):
    text = checked(write_report([*digits, *intents], tmp_path / "all.html"))
    assert "<h3>clinc150: 15 tasks, 150 classes, class-incremental</h3>" in text
    assert "sequential LoRA, all logits, rank 8" in text


def test_records_that_are_not_done_are_listed_with_the_reason(digits, tmp_path):
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


def test_any_label_is_shown_as_text(tmp_path, write):
    names = [f"{EVIL} {c}" for c in range(4)]
    run = write(tmp_path, "finetune", 0, n_tasks=2, label=EVIL, experiment=EVIL, stream=EVIL, names=names)
    path = run / "environment.json"
    environment = json.loads(path.read_text())
    environment["device"] = environment["protocol"]["split"] = EVIL
    path.write_text(json.dumps(environment))
    text = checked(write_report([run], tmp_path / "r.html"))
    assert "<img" not in text
    assert html.escape(EVIL) in text


def test_a_single_seed_a_single_task_and_nothing_but_joint(tmp_path, write):
    checked(write_report([write(tmp_path, "finetune", 0, n_tasks=1)], tmp_path / "one.html"))
    text = checked(write_report([write(tmp_path, "joint", 0)], tmp_path / "joint.html"))
    assert "Not known: it needs two tasks" in text
    text = checked(write_report([write(tmp_path, "ncm", 0)], tmp_path / "ncm.html"))
    assert "Nothing was trained by gradient steps." in text


def test_a_record_that_keeps_little_still_gives_a_page(tmp_path, write):
    run = write(tmp_path, "ncm", 0)
    (run / "environment.json").write_text("{}")
    (run / "events.jsonl").write_text("")
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


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_a_browser_shows_it_without_errors_and_without_sideways_scrolling(digits, intents, tmp_path):
    page = write_report([*digits, *intents], tmp_path / "report.html").read_text(encoding="utf-8")
    frame = tmp_path / "phone.html"
    frame.write_text(
        f'<iframe id="f" width="390" height="800" srcdoc="{html.escape(page)}"></iframe><pre id="o"></pre>'
        "<script>f.onload = () => {o.textContent = 'width ' + f.contentDocument.documentElement.scrollWidth}</script>"
    )
    flags = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    flags += "--disable-component-update --disable-sync --enable-logging=stderr --v=0 --dump-dom"
    found = subprocess.run(
        [CHROMIUM, *flags.split(), f"--user-data-dir={tmp_path / 'profile'}", frame.as_uri()],
        capture_output=True,
        text=True,
        timeout=60,
    )
    width = re.search(r"width (\d+)", found.stdout)
    assert width, found.stderr
    assert int(width[1]) <= 390
    assert "CONSOLE" not in found.stderr

"""The benchmark of protection: numbers are those of its records, what is done is not done again."""

from __future__ import annotations

import inspect
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from benchmarks.protect.__main__ import main
from benchmarks.protect.cells import Cell
from benchmarks.protect.methods import ENTRIES, FEATURES, REFERENCE, TUNED, Entry, chosen
from benchmarks.protect.pool import Pool, Worker
from benchmarks.protect.protocol import Protocol
from benchmarks.protect.settings import SETTINGS, Setting
from scipy import stats

from tangentcl.experiments.config import experiment_from, load_experiment
from tangentcl.methods import METHODS
from tangentcl.records import Record

FILE = """
name = "mini"
[source]
name = "digits"
[stream]
kind = "class_incremental"
n_tasks = 3
order_seed = "seed"
train_per_class = 8
test_per_class = 6
validation = 0.25
[transform]
augment = false
[plan]
epochs = 4
batch_size = 8
lr = 1e-2
[[method]]
name = "finetune"
tune = "head"
"""
HEAD = Entry("head", "finetune", TUNED, "nothing", grid=(0.5, 2.0))
MINI_ENTRIES = (
    Entry(REFERENCE, "ncm", FEATURES, "class means", None),  # stands for the reference
    HEAD,
    Entry("wrong", "finetune", TUNED, "nothing", None, keywords={"logits": "nonsense"}),
    Entry("later", "no_such_method", TUNED, "nothing"),
)


def mini(folder: Path) -> dict[str, Setting]:
    file = folder / "mini.toml"
    file.write_text(FILE)
    return {"mini": Setting("mini", file, "head", 2, 10, 60, 66, 1, 192)}


def run(folder: Path, *options: str) -> int:
    arguments = ["mini", "--out", str(folder / "out"), "--seeds", "0", "1", *options]
    return main(arguments, settings=mini(folder), entries=MINI_ENTRIES)


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The benchmark in small, run once."""
    folder = tmp_path_factory.mktemp("protect")
    assert run(folder, "--workers", "1") == 1  # a cell failed
    return folder


def matrices(folder: Path, label: str) -> list[np.ndarray]:
    files = sorted((folder / "out/runs/mini-test" / label).glob("seed-*/accuracy.json"))
    return [np.array(json.loads(file.read_text())["matrix"], dtype=float) for file in files]


def test_numbers_are_those_of_the_records(ran) -> None:
    table = json.loads((ran / "out/mini/table.json").read_text())
    rows = {row["label"]: row for row in table["rows"]}
    for label in (REFERENCE, "head"):
        runs = matrices(ran, label)
        assert len(runs) == 2
        n = np.array([24, 18, 18])  # 4, 3 and 3 classes of 6 test samples
        by_hand = {
            "last_accuracy": [R[-1] @ n / 60 for R in runs],
            "average_accuracy": [
                (R[0, 0] + R[1, :2] @ n[:2] / 42 + R[2] @ n / 60) / 3 for R in runs
            ],
            "forgetting": [np.mean([max(R[0, 0], R[1, 0]) - R[2, 0], R[1, 1] - R[2, 1]]) for R in runs],
            "new_accuracy": [(R[0, 0] + R[1, 1] + R[2, 2]) / 3 for R in runs],
            "old_accuracy": [(R[2, 0] + R[2, 1]) / 2 for R in runs],
        }  # fmt: skip
        for name, values in by_hand.items():
            assert [rows[label]["seeds"][s][name] for s in "01"] == pytest.approx(values, abs=1e-12)
            found = rows[label]["intervals"][name]
            half = 12.706204736 * np.std(values, ddof=1) / 2**0.5
            assert (found["mean"], found["high"]) == pytest.approx((np.mean(values), np.mean(values) + half), abs=1e-8)
    last = {label: [rows[label]["seeds"][s]["last_accuracy"] for s in "01"] for label in (REFERENCE, "head")}
    test = table["tests"]["last_accuracy"]["head"]
    assert test["found"]["difference"]["mean"] == pytest.approx(np.mean(last["head"]) - np.mean(last[REFERENCE]))
    assert test["found"]["p_t"] == pytest.approx(stats.ttest_rel(last["head"], last[REFERENCE]).pvalue, abs=1e-9)
    assert test["found"]["least_p"] == 0.5
    assert test["holm_t"] == test["found"]["p_t"]  # the only test


def test_costs_are_measured(ran) -> None:
    rows = {r["label"]: r for r in json.loads((ran / "out/mini/table.json").read_text())["rows"]}
    for label, state in (("head", (192 + 1) * 10 * 4), (REFERENCE, (192 + 1) * 10 * 8)):
        for found in rows[label]["seeds"].values():
            assert found["cpu_seconds"] > 0
            assert found["backbone_passes"] == 120  # 60 samples to train on, 60 to test, each once
            assert found["state_bytes"] == state
            assert found["memory_bytes"] == found["state_bytes"]


def test_the_strength_is_the_best_on_validation_samples_of_the_first_tasks(ran) -> None:
    (row,) = [r for r in json.loads((ran / "out/mini/table.json").read_text())["rows"] if r["label"] == "head"]
    tried = {}
    for value in (0.5, 2.0):
        record = Record.read(ran / f"out/runs/mini-tuning/head-rate-{value:g}/seed-0")
        assert record.config["plan"]["lr"] == 0.01 * value
        assert len(record.accuracy.task_names) == 2
        assert record.accuracy.n_test.tolist() == [4 * 2, 3 * 2]  # a quarter of 8 samples of each class
        tried[value] = record.accuracy.metrics["last_accuracy"]
    assert {t["value"]: t["accuracy"] for t in row["trials"]} == tried
    assert row["value"] == max(tried, key=lambda value: tried[value])
    assert Record.read(ran / "out/runs/mini-test/head/seed-1").config["plan"]["lr"] == 0.01 * row["value"]


def test_the_page_tells_everything(ran, capsys) -> None:
    assert run(ran, "--table") == 0
    page = capsys.readouterr().out
    assert page.strip() == (ran / "out/mini/table.md").read_text().strip()
    assert "cannot fall below 0.5: they reach no level of 0.05" in page
    assert "- later: not available" in page
    assert "- wrong: seed 0:" in page
    assert "| head | rate 0.5, 2 |" not in page
    assert "<svg" in (ran / "out/mini/pareto.svg").read_text()


def test_what_is_done_is_not_done_again_and_what_was_killed_is(ran, tmp_path, capsys) -> None:
    folder = tmp_path / "again"
    shutil.copytree(ran, folder)
    runs = folder / "out/runs"
    killed = runs / "mini-test/head/seed-1"
    numbers = (killed / "accuracy.json").read_bytes()
    (killed / "checksums.json").unlink()
    (killed / "accuracy.json").unlink()
    (killed / "status.json").write_text('{"status": "running", "reason": null, "started": null, "ended": null}')
    before = {path: path.stat().st_mtime_ns for path in runs.rglob("status.json")}
    run(folder, "--methods", REFERENCE, "head", "later", "--workers", "1")
    said = capsys.readouterr().err
    assert "1 runs left" in said
    assert "[1/1] mini: head, seed 1: " in said
    assert "later: not available" in said
    changed = [path for path, at in before.items() if path.stat().st_mtime_ns != at]
    assert changed == [killed / "status.json"]
    assert (killed / "accuracy.json").read_bytes() == numbers


def test_a_record_of_other_settings_is_named(ran, tmp_path) -> None:
    cell = Cell(mini(tmp_path)["mini"], HEAD, 7.0, 0, False, ran / "out")
    with pytest.raises(Exception, match=r"plan.lr was 0.0\d+, now 0.07"):
        cell.record()


def cell(folder: Path, label: str = "a", **changes) -> Cell:
    entry = Entry(label, "finetune", TUNED, "nothing", **changes)
    return Cell(mini(folder)["mini"], entry, 1.0, 0, False, folder)


def test_a_worker_that_dies_is_replaced(tmp_path, monkeypatch) -> None:
    worker = Worker(tmp_path / "log")
    first = worker._ready()
    first.kill()
    first.wait()
    answer = worker.run(cell(tmp_path))
    assert answer["status"] == "failed"
    assert "ended with code -9" in answer["reason"]
    assert worker._ready().pid != first.pid
    worker.stop()


def test_tests_follow_the_trials_and_failures_stop_nothing(tmp_path, monkeypatch) -> None:
    order: list[str] = []

    def fake(self: Worker, cell: Cell) -> dict:
        order.append(cell.title)
        return {"status": "failed", "reason": "no luck"} if cell.entry.label == "a" else {"status": "done"}

    monkeypatch.setattr(Worker, "run", fake)
    cells = [cell(tmp_path, "a"), cell(tmp_path, "b")]
    extra = cell(tmp_path, "c")
    said: list[str] = []
    pool = Pool(1, tmp_path, lambda c, done: [extra] if c is cells[0] else [], lambda: 3, said.append)
    failures = pool.run(cells)
    assert order == ["mini: a, seed 0", "mini: c, seed 0", "mini: b, seed 0"]
    assert [(f.cell.entry.label, f.reason) for f in failures] == [("a", "no luck")]
    assert said[0] == "[1/3] mini: a, seed 0: FAILED: no luck; about 0 min left"


def test_trials_come_first_and_a_strength_without_choice_is_not_tried(tmp_path) -> None:
    single = Entry("single", "finetune", TUNED, "nothing", grid=(2.0,))
    protocol = Protocol([mini(tmp_path)["mini"]], [HEAD, single], [0, 1], tmp_path)
    assert [(c.label, c.value) for c in protocol.begin()] == [
        ("head rate 0.5", 0.5), ("head rate 2", 2.0), ("single", 2.0), ("single", 2.0)
    ]  # fmt: skip
    assert protocol.expected() == 6


@pytest.mark.parametrize("name", SETTINGS)
def test_declarations_fit_the_settings(name, monkeypatch) -> None:
    monkeypatch.setenv("TANGENTCL_MODELS", "models")
    setting = SETTINGS[name]
    load_experiment(setting.file)
    labels = [entry.label for entry in ENTRIES]
    assert len(set(labels)) == len(labels)
    for entry in ENTRIES:
        assert len(entry.values(setting)) in (0, 3)
        if entry.settings(setting) is None:
            continue
        cells = [Cell(setting, entry, value, 0, True, Path("out")) for value in entry.values(setting) or (None,)]
        cells = cells if entry.values(setting) else []
        made = [experiment_from(c.document) for c in cells]
        assert len({e.methods[0].slug for e in made}) == len(entry.values(setting))
        if entry.name in METHODS:
            known = inspect.signature(METHODS[entry.name]).parameters
            keywords = set(Cell(setting, entry, 1.0, 0, False, Path("out")).document["method"][0]) - {"name", "label"}
            assert keywords <= set(known), f"{entry.label} does not take {keywords - set(known)}"


def test_budgets_fill_the_sketch() -> None:
    budgets = {name: (s.budget(), s.budget(logits=True)) for name, s in SETTINGS.items()}
    assert budgets == {
        "clinc150_lora": (150, 150),  # one text of each class
        "clinc150_three": (45, 45),
        "clinc150_head": (150, 150),
        "cifar10": (192, 189),
        "omniglot": (427, 306),
    }


def test_unknown_methods_are_named() -> None:
    assert [e.label for e in chosen(["ranpac"])] == ["ranpac", "adapt once, ranpac"]
    with pytest.raises(SystemExit, match=r"no method 'ranpak'\. Known: finetune"):
        chosen(["ranpak"])


@pytest.mark.slow
def test_ctrl_c_closes_the_record_and_the_same_command_goes_on(tmp_path) -> None:
    mini(tmp_path)
    (tmp_path / "mini.toml").write_text(FILE.replace("epochs = 4", "epochs = 400"))
    program = tmp_path / "go.py"
    program.write_text(
        "import sys; from pathlib import Path\n"
        "from benchmarks.protect.__main__ import main\n"
        "from benchmarks.protect.methods import TUNED, Entry\n"
        "from benchmarks.protect.settings import Setting\n"
        f"setting = Setting('mini', Path({str(tmp_path / 'mini.toml')!r}), 'head', 2, 10, 60, 66, 1, 192)\n"
        "entries = (Entry('head', 'finetune', TUNED, 'nothing', grid=(1.0,)),)\n"
        f"sys.exit(main(['mini', '--out', {str(tmp_path / 'out')!r}, '--seeds', '0'], {{'mini': setting}}, entries))\n"
    )
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, '.'); exec(open({str(program)!r}).read())"]
    status = tmp_path / "out/runs/mini-test/head/seed-0/status.json"
    first = subprocess.Popen(command, cwd=root, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    events = status.parent / "events.jsonl"
    while not (events.exists() and '"step"' in events.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    first.send_signal(signal.SIGINT)
    assert "stopped; the same command goes on" in first.communicate(timeout=60)[1]
    assert first.returncode == 130
    assert json.loads(status.read_text())["status"] == "interrupted"
    subprocess.run(command, cwd=root, check=True, capture_output=True, timeout=300)
    assert json.loads(status.read_text())["status"] == "done"

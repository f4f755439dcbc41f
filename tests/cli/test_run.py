"""``tangentcl run`` and what lists and reports its records: what is printed, what is left behind, exit codes."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tangentcl.records import Record, RecordWriter

Answer = Callable[..., tuple[int, str, str]]


def command(*arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    line = [sys.executable, "-m", "tangentcl", *arguments]
    return subprocess.run(line, capture_output=True, text=True, timeout=120, env=environment, **options)  # type: ignore[call-overload]


def test_a_run_prints_its_matrices_and_leaves_records_and_a_page(here: Path, answer: Answer) -> None:
    code, out, err = answer("run", "small.toml")
    assert code == 0
    assert "head, all, seed 0: accuracy in % on each task (columns) after each task (rows)" in out
    assert re.search(r"^ncm +1 +\d+\.\d\d +\d+\.\d\d", out, re.MULTILINE)
    assert "records: runs/small" in out
    assert (here / "runs/small/report.html").exists()
    assert "[2/2] ncm, seed 0: finished in" in err
    assert "\x1b" not in out + err

    code, out, err = answer("run", "small.toml")
    assert (code, "2 of 2 runs were done before and not repeated" in out) == (0, True)
    code, out, err = answer("run", "small.toml", "--set", "plan.epochs=2")
    assert (code, out) == (2, "")
    assert "plan.epochs was 1, now 2" in err
    assert answer("run", "small.toml", "--set", "plan.epochs=2", "--overwrite")[0] == 0


def test_json_is_all_that_is_on_standard_output(here: Path, answer: Answer) -> None:
    code, out, err = answer("run", "small.toml", "--json", "--seed", "0", "1", "--no-report")
    result = json.loads(out)
    assert (code, result["report"]) == (0, None)
    assert not (here / "runs/small/report.html").exists()
    assert [(r["label"], r["seed"], r["status"]) for r in result["runs"]] == [
        *(("head, all", 0, "done"), ("ncm", 0, "done"), ("head, all", 1, "done"), ("ncm", 1, "done")),
    ]
    assert len(result["summary"]) == 2
    assert "finished in" in err
    assert json.loads(answer("report", "runs", "--json")[1])["report"] == "runs/report.html"
    assert [row["status"] for row in json.loads(answer("list", "runs", "--json")[1])] == ["done"] * 4
    for what in ("methods", "streams", "data", "sources"):
        assert json.loads(answer("list", what, "--json")[1])[0]["name"]


def test_the_page_holds_the_runs_of_earlier_commands_too(here: Path, answer: Answer) -> None:
    for seed in ("3", "4"):
        assert answer("run", "small.toml", "--seed", seed)[0] == 0
    page = (here / "runs/small/report.html").read_text()
    assert all(f"seed-{seed}" in page or f"seed {seed}" in page for seed in (3, 4))


OWN = '''
from tangentcl.methods import NCM

class Breaks(NCM):
    """Never gets through."""

    def end_task(self, task):
        raise RuntimeError("out of luck")

class Stops(NCM):
    """Ctrl-C."""

    def end_task(self, task):
        raise KeyboardInterrupt
'''


PUBLISHED = """
name = "small"
[[published]]
label = "their NCM"
source = "a paper, table 1"
ours = "ncm"
last = 90.5
[[published]]
label = "another"
source = "a paper, table 2"
ours = "not here"
"""


def test_published_numbers_stand_beside_those_of_records(here: Path, answer: Answer) -> None:
    (here / "published.toml").write_text(PUBLISHED)
    code, out, _ = answer("report", "runs", "--published", "published.toml")
    assert code == 0
    assert re.search(r"^their NCM  a paper, table 1 +– +not run +90.50 +not run *$", out, re.MULTILINE)
    assert "no finished record, so no page" in out
    assert answer("run", "small.toml", "--no-report")[0] == 0
    code, out, _ = answer("report", "runs", "--published", ".")
    last = f"{100 * Record.read(here / 'runs/small/ncm/seed-0').accuracy.metrics['last_accuracy']:.2f}"
    assert re.search(rf"^their NCM .* 90.50 +{last} +0$", out, re.MULTILINE)
    assert "their NCM" in (here / "runs/report.html").read_text()
    found = json.loads(answer("report", "runs", "--published", "published.toml", "--json")[1])["published"]
    assert (found[0]["A_T published"], found[0]["A_T here"], found[1]["A_T here"]) == ("90.50", last, "not run")
    (here / "published.toml").write_text(PUBLISHED.replace("last", "lats"))
    code, _, err = answer("report", "runs", "--published", "published.toml")
    assert code == 2
    assert "Did you mean 'last'?" in err
    (here / "empty").mkdir()
    code, _, err = answer("report", "runs", "--published", "empty")
    assert code == 2
    assert "there is no experiment file in empty" in err


def test_a_failing_method_of_the_user_gives_exit_code_1(here: Path, answer: Answer) -> None:
    (here / "own_breaking_method.py").write_text(OWN)
    (here / "small.toml").write_text(
        (here / "small.toml").read_text().replace('"finetune"', '"own_breaking_method:Breaks"').replace("tune = ", "# ")
    )
    code, out, err = answer("run", "small.toml")
    assert code == 1
    assert "FAILED head, all, seed 0: RuntimeError: out of luck" in out
    assert "traceback in runs/small/head-all/seed-0/events.jsonl" in out
    assert "ncm, seed 0: accuracy" in out
    assert "[1/2] head, all, seed 0: failed: RuntimeError: out of luck" in err
    assert "Traceback" not in out + err
    code, out, _ = answer("run", "small.toml", "--json")
    assert code == 1
    assert [(r["status"], r["reason"]) for r in json.loads(out)["runs"]] == [
        ("failed", "RuntimeError: out of luck"),
        ("skipped", None),
    ]
    code, out, _ = answer("report", "runs")
    assert code == 0
    assert "left out: runs/small/head-all/seed-0: failed: RuntimeError: out of luck" in out


def test_only_failures_leave_no_page(here: Path, answer: Answer) -> None:
    (here / "only_breaking_method.py").write_text(OWN)
    (here / "one.toml").write_text(
        (here / "small.toml").read_text().split("[[method]]")[0] + "[method]\nname = 'only_breaking_method:Breaks'\n"
    )
    code, out, _ = answer("run", "one.toml", "--json")
    assert (code, json.loads(out)["report"], json.loads(out)["summary"]) == (1, None, [])


def test_an_interrupted_command_says_so_with_130(here: Path, answer: Answer) -> None:
    (here / "own_stopping_method.py").write_text(OWN)
    (here / "small.toml").write_text(
        (here / "small.toml").read_text().replace('"finetune"', '"own_stopping_method:Stops"').replace("tune = ", "# ")
    )
    code, out, err = answer("run", "small.toml")
    assert (code, out) == (130, "")
    assert "interrupted" in err.splitlines()[-1]
    assert "Traceback" not in err
    assert Record.read(here / "runs/small/head-all/seed-0").status.status == "interrupted"


def test_broken_and_unfinished_records_are_listed_beside_the_others(here: Path, answer: Answer) -> None:
    answer("run", "small.toml", "--no-report")
    (here / "runs/small/ncm/seed-0/accuracy.json").write_text("{")
    writer = RecordWriter(here / "runs/small/z/seed-0", {"name": "small", "seed": 0, "label": "z"}, {})
    rows = json.loads(answer("list", "runs", "--json")[1])
    assert [(row["label"], row["status"]) for row in rows] == [
        ("head, all", "done"),
        (None, "damaged"),
        ("z", "running"),
    ]
    assert "accuracy.json is damaged" in rows[1]["reason"]
    writer._events.close()  # as when the process is killed
    rows = json.loads(answer("list", "runs", "--json")[1])
    assert (rows[2]["status"], rows[2]["reason"]) == ("abandoned", "its process is gone; repeat the command")
    code, out, _ = answer("list", "runs")
    assert code == 0
    assert "damaged" in out
    assert "abandoned" in out
    code, out, _ = answer("report", "runs")
    assert code == 0
    assert "left out: runs/small/ncm/seed-0: " in out


def test_from_a_shell_with_a_model_folder_and_a_signal(tmp_path: Path, experiment_text: str) -> None:
    """The whole way once: a Hugging Face folder on disk, Ctrl-C in the middle, and the same command again."""
    from transformers import ViTConfig, ViTModel

    config = ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, image_size=32, patch_size=8
    )
    ViTModel(config, add_pooling_layer=False).save_pretrained(tmp_path / "vit")
    normal = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "size": {"height": 32, "width": 32}}
    (tmp_path / "vit" / "preprocessor_config.json").write_text(json.dumps(normal))
    text = experiment_text.replace('tune = "head"', "rank = 2") + '[backbone]\nname = "vit"\n'
    (tmp_path / "small.toml").write_text(text.replace("epochs = 1", "epochs = 1000\nlog_every = 1"))
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    line = [sys.executable, "-m", "tangentcl", "run", "small.toml", "--set", "method.ncm.plan.epochs=1"]
    with subprocess.Popen(
        line,
        cwd=tmp_path,
        env=environment,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a job in the background inherits it ignored
    ) as running:
        events = tmp_path / "runs/small/head-all/seed-0/events.jsonl"
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and not (events.exists() and b'"step"' in events.read_bytes()):
            time.sleep(0.05)
        running.send_signal(signal.SIGINT)
        out, err = running.communicate(timeout=60)
    assert running.returncode == 130, err
    assert out == ""
    assert err.splitlines()[-1] == "tangentcl: interrupted; the record is closed, repeat the command to go on"
    assert "Traceback" not in err
    again = command("run", "small.toml", "--set", "plan.epochs=1", "method.ncm.plan.epochs=1", "--json", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert [run["status"] for run in json.loads(again.stdout)["runs"]] == ["done", "done"]

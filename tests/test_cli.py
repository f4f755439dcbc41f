"""The command line: what is printed where, exit codes, and one clear line for every mistake."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tangentcl import __version__
from tangentcl.cli import main
from tangentcl.records import Record, RecordWriter

EXPERIMENT = """
name = "small"
[stream]
kind = "class_incremental"
n_tasks = 5
train_per_class = 5
test_per_class = 4
[plan]
epochs = 1
device = "cpu"
[[method]]
name = "finetune"
label = "head, all"
tune = "head"
[[method]]
name = "ncm"
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pixel_experiments: None) -> Path:
    """An empty current folder with a small experiment."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "small.toml").write_text(EXPERIMENT)
    return tmp_path


def answer(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Exit code, standard output and standard error."""
    try:
        code = main(arguments)
    except SystemExit as leaving:
        code = int(leaving.code or 0)
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def command(*arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    line = [sys.executable, "-m", "tangentcl", *arguments]
    return subprocess.run(line, capture_output=True, text=True, timeout=120, env=environment, **options)  # type: ignore[call-overload]


def test_help_answers_at_once_and_without_torch() -> None:
    code = (
        "import sys\nfrom tangentcl.cli import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit as e:\n    assert e.code == 0\n"
        "heavy = {'torch', 'transformers', 'numpy', 'rich', 'datasets', 'matplotlib', 'jinja2'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    times = []
    for _ in range(3):
        began = time.perf_counter()
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        times.append(time.perf_counter() - began)
        assert done.returncode == 0, done.stderr
        assert "exit codes: 0 all done; 1 a run failed" in done.stdout
    assert min(times) < 0.5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "required: COMMAND. Try: tangentcl --help"),
        (["rnu"], "unknown command or value 'rnu'. Did you mean 'run'? Known: list, report, run."),
        (["run", "small.toml", "--sed", "0"], "unknown argument '--sed'. Did you mean '--seed'?"),
        (["run", "small.toml", "--overwite"], "unknown argument '--overwite'. Did you mean '--overwrite'?"),
        (["report", "runs", "--jsn"], "unknown argument '--jsn'. Did you mean '--json'?"),
        (["run"], "required: file. Try: tangentcl run --help"),
        (["run", "small.toml", "--seed", "0.5"], "argument --seed: invalid int value: '0.5'"),
        (["run", "small.toml", "--seed"], "argument --seed: expected at least one argument"),
        (["list", "method"], "unknown command or value 'method'. Did you mean 'methods'?"),
        (["report", "runs", "--format", "markdwn"], "unknown command or value 'markdwn'. Did you mean 'markdown'?"),
        (["list", "methods", "runs"], "'tangentcl list methods' takes no folder; only 'list runs' does"),
        (["run", "smal.toml"], "there is no experiment file smal.toml. Did you mean 'small.toml'?"),
        (["run", "small.toml", "--seed", "-1"], "seeds must be whole numbers of at least 0, as in [0, 1, 2], got [-1]"),
        (["run", "small.toml", "--set", "plan.epochs"], "--set expects table.key=value"),
        (["run", "small.toml", "--set", "plam.epochs=1"], "Did you mean 'plan'?"),
        (["run", "small.toml", "--set", "plan.epohs=1"], "[plan] does not know 'epohs'. Did you mean 'epochs'?"),
        (["run", "small.toml", "--set", "plan.epochs=two"], "[plan] epochs must be a whole number, got 'two'."),
        (["run", "small.toml", "--set", "plan.lr=inf"], "plan.lr must be a finite number of at least 0, got inf"),
        (["run", "small.toml", "--set", "method.nmc.metric=x"], "there is no method 'nmc'. Did you mean 'ncm'?"),
        (["run", "small.toml", "--set", "method.ncm.name=nmc"], "unknown method 'nmc'. Did you mean 'ncm'?"),
        (["run", "small.toml", "--set", "method.ncm.metric=cosin"], "Did you mean 'cosine'?"),
        (["run", "small.toml", "--set", "stream.kind=few_shots"], "Did you mean 'few_shot'?"),
        (["run", "small.toml", "--set", "stream.groups=3"], "[stream] groups must be"),
        (["run", "small.toml", "--set", "source.name=digts"], "Did you mean 'digits'?"),
        (["run", "small.toml", "--set", "source.name=/no/such.csv"], "no file or folder is there"),
        (["run", "small.toml", "--set", "transform.flip=7"], "Expected flip as a probability between 0 and 1, got 7"),
        (["run", "small.toml", "--out", "small.toml"], "cannot make the folder small.toml/small/head-all/seed-0"),
        (["list", "runs"], "runs does not exist; give folders with run records, e.g. runs/"),
        (["list", "runs", "."], "no run record under .: none of the folders there holds a status.json"),
        (["report", "nowhere"], "nowhere does not exist"),
        (["report", "small.toml"], "no run record under small.toml"),
    ],
)
def test_a_mistake_is_one_line_on_standard_error_and_exit_code_2(
    here: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    code, out, err = answer(capsys, *arguments)
    assert code == 2
    assert out == ""
    assert err.startswith("tangentcl: error: ")
    assert err.count("\n") == 1
    assert message in err
    assert not (here / "runs").exists()


def test_a_run_prints_its_matrices_and_leaves_records_and_a_page(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = answer(capsys, "run", "small.toml")
    assert code == 0
    assert "head, all, seed 0: accuracy in % on each task (columns) after each task (rows)" in out
    assert re.search(r"^ncm +1 +\d+\.\d\d +\d+\.\d\d", out, re.MULTILINE)
    assert "records: runs/small" in out
    assert (here / "runs/small/report.html").exists()
    assert "[2/2] ncm, seed 0: finished in" in err
    assert "\x1b" not in out + err

    code, out, err = answer(capsys, "run", "small.toml")
    assert (code, "2 of 2 runs were done before and not repeated" in out) == (0, True)
    code, out, err = answer(capsys, "run", "small.toml", "--set", "plan.epochs=2")
    assert (code, out) == (2, "")
    assert "plan.epochs was 1, now 2" in err
    assert answer(capsys, "run", "small.toml", "--set", "plan.epochs=2", "--overwrite")[0] == 0


def test_json_is_all_that_is_on_standard_output(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = answer(capsys, "run", "small.toml", "--json", "--seed", "0", "1", "--no-report")
    result = json.loads(out)
    assert (code, result["report"]) == (0, None)
    assert not (here / "runs/small/report.html").exists()
    assert [(r["label"], r["seed"], r["status"]) for r in result["runs"]] == [
        *(("head, all", 0, "done"), ("ncm", 0, "done"), ("head, all", 1, "done"), ("ncm", 1, "done")),
    ]
    assert len(result["summary"]) == 2
    assert "finished in" in err
    assert json.loads(answer(capsys, "report", "runs", "--json")[1])["report"] == "runs/report.html"
    assert [row["status"] for row in json.loads(answer(capsys, "list", "runs", "--json")[1])] == ["done"] * 4
    for what in ("methods", "streams", "sources"):
        assert json.loads(answer(capsys, "list", what, "--json")[1])[0]["name"]


def test_the_page_holds_the_runs_of_earlier_commands_too(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed in ("3", "4"):
        assert answer(capsys, "run", "small.toml", "--seed", seed)[0] == 0
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


def test_a_failing_method_of_the_user_gives_exit_code_1(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "own_breaking_method.py").write_text(OWN)
    (here / "small.toml").write_text(
        EXPERIMENT.replace('"finetune"', '"own_breaking_method:Breaks"').replace("tune = ", "# ")
    )
    code, out, err = answer(capsys, "run", "small.toml")
    assert code == 1
    assert "FAILED head, all, seed 0: RuntimeError: out of luck" in out
    assert "traceback in runs/small/head-all/seed-0/events.jsonl" in out
    assert "ncm, seed 0: accuracy" in out
    assert "[1/2] head, all, seed 0: failed: RuntimeError: out of luck" in err
    assert "Traceback" not in out + err
    code, out, _ = answer(capsys, "run", "small.toml", "--json")
    assert code == 1
    assert [(r["status"], r["reason"]) for r in json.loads(out)["runs"]] == [
        ("failed", "RuntimeError: out of luck"),
        ("skipped", None),
    ]
    code, out, _ = answer(capsys, "report", "runs")
    assert code == 0
    assert "left out: runs/small/head-all/seed-0: failed: RuntimeError: out of luck" in out


def test_only_failures_leave_no_page(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "only_breaking_method.py").write_text(OWN)
    (here / "one.toml").write_text(
        EXPERIMENT.split("[[method]]")[0] + "[method]\nname = 'only_breaking_method:Breaks'\n"
    )
    code, out, _ = answer(capsys, "run", "one.toml", "--json")
    assert (code, json.loads(out)["report"], json.loads(out)["summary"]) == (1, None, [])


def test_an_interrupted_command_says_so_with_130(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "own_stopping_method.py").write_text(OWN)
    (here / "small.toml").write_text(
        EXPERIMENT.replace('"finetune"', '"own_stopping_method:Stops"').replace("tune = ", "# ")
    )
    code, out, err = answer(capsys, "run", "small.toml")
    assert (code, out) == (130, "")
    assert "interrupted" in err.splitlines()[-1]
    assert "Traceback" not in err
    assert Record.read(here / "runs/small/head-all/seed-0").status.status == "interrupted"


def test_broken_and_unfinished_records_are_listed_beside_the_others(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answer(capsys, "run", "small.toml", "--no-report")
    (here / "runs/small/ncm/seed-0/accuracy.json").write_text("{")
    writer = RecordWriter(here / "runs/small/z/seed-0", {"name": "small", "seed": 0, "label": "z"}, {})
    rows = json.loads(answer(capsys, "list", "runs", "--json")[1])
    assert [(row["label"], row["status"]) for row in rows] == [
        ("head, all", "done"),
        (None, "damaged"),
        ("z", "running"),
    ]
    assert "accuracy.json is damaged" in rows[1]["reason"]
    writer._events.close()  # as when the process is killed
    rows = json.loads(answer(capsys, "list", "runs", "--json")[1])
    assert (rows[2]["status"], rows[2]["reason"]) == ("abandoned", "its process is gone; repeat the command")
    code, out, _ = answer(capsys, "list", "runs")
    assert code == 0
    assert "damaged" in out
    assert "abandoned" in out
    code, out, _ = answer(capsys, "report", "runs")
    assert code == 0
    assert "left out: runs/small/ncm/seed-0: " in out


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert answer(capsys, "--version") == (0, f"tangentcl {__version__}\n", "")


def test_a_reader_that_leaves_is_no_error() -> None:
    line = f"'{sys.executable}' -m tangentcl list methods | true; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "0"
    assert done.stderr == ""


def test_from_a_shell_with_a_model_folder_and_a_signal(tmp_path: Path) -> None:
    """The whole way once: a Hugging Face folder on disk, Ctrl-C in the middle, and the same command again."""
    from transformers import ViTConfig, ViTModel

    config = ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, image_size=32, patch_size=8
    )
    ViTModel(config, add_pooling_layer=False).save_pretrained(tmp_path / "vit")
    normal = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "size": {"height": 32, "width": 32}}
    (tmp_path / "vit" / "preprocessor_config.json").write_text(json.dumps(normal))
    text = EXPERIMENT.replace('tune = "head"', "rank = 2") + '[backbone]\nname = "vit"\n'
    (tmp_path / "small.toml").write_text(text.replace("epochs = 1", "epochs = 1000\nlog_every = 1"))
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    line = [sys.executable, "-m", "tangentcl", "run", "small.toml", "--set", "method.ncm.plan.epochs=1"]
    with subprocess.Popen(
        line, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
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

"""The command line as a whole: quick help, and one clear line with exit code 2 for every mistake."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tangentcl import __version__

Answer = Callable[..., tuple[int, str, str]]


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
        (
            ["rnu"],
            "unknown command or value 'rnu'. Did you mean 'run'? Known: cache, export, forecast, list, plan, predict,",
        ),
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
        (
            ["run", "small.toml", "--set", "plan.lr=inf"],
            "inf cannot be used: the value must be a finite number",
        ),
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
    here: Path, answer: Answer, arguments: list[str], message: str
) -> None:
    code, out, err = answer(*arguments)
    assert code == 2
    assert out == ""
    assert err.startswith("tangentcl: error: ")
    assert err.count("\n") == 1
    assert message in err
    assert not (here / "runs").exists()


def test_the_version(answer: Answer) -> None:
    assert answer("--version") == (0, f"tangentcl {__version__}\n", "")


def test_a_reader_that_leaves_is_no_error() -> None:
    line = f"'{sys.executable}' -m tangentcl list methods | true; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "0"
    assert done.stderr == ""

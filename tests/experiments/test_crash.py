"""SIGKILL anywhere, start again, and the record ends as if nothing had been."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file

SERVER = Path(__file__).with_name("crash_server.py")
METHODS = ("finetune", "ntkcl", "ranpac", "replay")
CHANGING = {"t", "seconds", "samples_per_s", "peak_memory_bytes", "backbone_passes"}
KILLS = 5  # of one run, before it may end

if not hasattr(os, "fork"):
    pytest.skip("runs are killed as forks, which this system does not have", allow_module_level=True)


class Runs:
    """Runs of the small experiment in processes of their own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
        command = [sys.executable, str(SERVER)]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, env=environment, text=True)
        self.known: dict[tuple[str, int], tuple[dict[str, Any], float]] = {}
        assert self._read() == {"ready": True}

    def _read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        return json.loads(self.process.stdout.readline())

    def __call__(self, method: str, out: Path, **request: Any) -> dict[str, Any]:
        assert self.process.stdin is not None
        log = out.parent / "log.txt"
        print(json.dumps({"method": method, "out": str(out), "log": str(log), **request}), file=self.process.stdin)
        self.process.stdin.flush()
        return {**self._read(), "log": log.read_text()[-3000:]}

    def straight(self, method: str, processes: int) -> tuple[dict[str, Any], float]:
        """What a run that nobody stops leaves, and its seconds."""
        if (method, processes) not in self.known:
            out = self.folder / f"{method}-{processes}" / "runs"
            out.mkdir(parents=True)
            ended = self(method, out, processes=processes)
            assert ended["codes"] == [0] * processes, ended["log"]
            self.known[method, processes] = left_by(out, method), ended["seconds"]
        return self.known[method, processes]


def left_by(out: Path, method: str) -> dict[str, Any]:
    """Everything in a finished record but times."""
    record = out / "crash" / method / "seed-0"
    assert json.loads((record / "status.json").read_text())["status"] == "done"
    assert not (record / "checkpoints" / "resume").exists()
    assert not list(record.rglob("*.part"))
    events = [json.loads(line) for line in (record / "events.jsonl").read_text().splitlines()]
    found: dict[str, Any] = {
        "events": [{k: v for k, v in e.items() if k not in CHANGING} for e in events if e["event"] != "resumed"],
        "accuracy.json": (record / "accuracy.json").read_text(),
        "config.toml": (record / "config.toml").read_text(),
    }
    for path in sorted(record.rglob("*.safetensors")):
        tensors = load_file(path)
        found[str(path.relative_to(record))] = {k: (v.shape, v.tobytes()) for k, v in tensors.items()}
    return found


def require_same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert found.keys() == expected.keys()
    for part in expected:
        assert found[part] == expected[part], part


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    made = Runs(tmp_path_factory.mktemp("crash"))
    yield made
    assert made.process.stdin is not None
    made.process.stdin.close()
    made.process.wait(10)


def killed_and_ended(runs: Runs, folder: Path, method: str, processes: int, how: str, seed: int) -> None:
    expected, seconds = runs.straight(method, processes)
    draw = random.Random(f"{method} {processes} {how} {seed}")
    out = folder / "runs"
    out.mkdir()
    died = 0
    while died < KILLS:
        kill = {"call": draw.randrange(30)} if how == "call" else {"after": seconds * draw.uniform(0.2, 1)}
        ended = runs(method, out, processes=processes, **kill)
        if ended["codes"] == [0] * processes:  # the end came first
            require_same(left_by(out, method), expected)
            shutil.rmtree(out / "crash")
            seconds = min(seconds, ended["seconds"])
            continue
        assert -9 in ended["codes"], ended["log"]
        died += 1
    ended = runs(method, out, processes=processes)
    assert ended["codes"] == [0] * processes, ended["log"]
    require_same(left_by(out, method), expected)


@pytest.mark.parametrize("how", ["time", "call"])
@pytest.mark.parametrize("method", METHODS)
def test_a_killed_run_ends_as_one_that_was_not(runs: Runs, tmp_path: Path, method: str, how: str) -> None:
    killed_and_ended(runs, tmp_path, method, 1, how, 0)


@pytest.mark.parametrize(("method", "how"), [("finetune", "time"), ("ranpac", "call")])
def test_two_killed_processes_end_as_two_that_were_not(runs: Runs, tmp_path: Path, method: str, how: str) -> None:
    killed_and_ended(runs, tmp_path, method, 2, how, 0)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 5))
@pytest.mark.parametrize("how", ["time", "call"])
@pytest.mark.parametrize("method", METHODS)
def test_many_kills(runs: Runs, tmp_path: Path, method: str, how: str, seed: int) -> None:
    killed_and_ended(runs, tmp_path, method, 1 + seed % 2, how, seed)

"""``tangentcl export``: where it goes, what it prints, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

Answer = Callable[..., tuple[int, str, str]]
RUN = "runs/small/head-all/seed-0"


@pytest.fixture
def ran(here: Path, answer: Answer) -> Path:
    code, _, err = answer("run", "small.toml", "--no-report")
    assert code == 0, err
    return here


def test_a_run_becomes_a_folder(ran: Path, answer: Answer) -> None:
    code, out, err = answer("export", RUN)
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == "head, all: 10 classes of 5 tasks"
    assert [line.split()[0] for line in lines[1:-1]] == ["export.json", "README.md", "learner.safetensors"]
    assert lines[-1] == "export: exports/small/head-all/seed-0"
    assert (ran / "exports/small/head-all/seed-0/export.json").exists()
    code, out, err = answer("export", RUN)
    assert code == 2
    assert "holds an export already" in err
    code, out, err = answer("export", RUN, "--overwrite", "--out", "exports/small/head-all/seed-0", "--json")
    assert code == 0
    found = json.loads(out)
    assert found["export"] == "exports/small/head-all/seed-0"
    assert found["onnx"] is None
    assert set(found["files"]) == {"export.json", "README.md", "learner.safetensors"}


def test_mistakes_are_one_line(ran: Path, answer: Answer) -> None:
    for arguments, message in [
        (["runs"], "status.json"),
        ([RUN, "--task", "9"], "has the tasks 0 to 4, there is no task 9"),
        ([RUN, "--task", "1"], 'Run it again with save = "tasks"'),
        (["small.toml"], "small.toml is not a folder"),
        ([RUN, "--onxn"], "unknown argument '--onxn'. Did you mean '--onnx'?"),
    ]:
        code, out, err = answer("export", *arguments)
        assert (code, out) == (2, "")
        assert err.startswith("tangentcl: error: ")
        assert err.count("\n") == 1
        assert message in err
    assert not (ran / "exports").exists()

"""A folder with a small experiment, and the command line called in this process."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tangentcl.cli import main

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


Answer = Callable[..., tuple[int, str, str]]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pixel_experiments: None) -> Path:
    """An empty current folder with a small experiment."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "small.toml").write_text(EXPERIMENT)
    return tmp_path


@pytest.fixture
def experiment_text() -> str:
    """The small experiment file."""
    return EXPERIMENT


@pytest.fixture
def answer(capsys: pytest.CaptureFixture[str]) -> Answer:
    """Call a command: exit code, standard output and standard error."""

    def call(*arguments: str) -> tuple[int, str, str]:
        try:
            code = main(arguments)
        except SystemExit as leaving:
            code = int(leaving.code or 0)
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return call

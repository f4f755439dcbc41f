"""The benchmark of plans in miniature: pairs in cyclic order, and exact heads that keep their promise."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from benchmarks.planning import main

FILE = """
name = "mini"
[source]
name = "digits"
[stream]
kind = "class_incremental"
train_per_class = 16
test_per_class = 10
validation = 0.5
[stream.groups]
low = ["0", "1"]
middle = ["2", "3"]
high = ["4", "5"]
[transform]
augment = false
[plan]
epochs = 3
batch_size = 8
lr = 1e-2
device = "cpu"
[[method]]
name = "spectral"
tune = "head"
"""


@pytest.fixture
def file(tmp_path: Path, pixel_experiments: None, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mini.toml").write_text(FILE)
    return tmp_path / "mini.toml"


def test_what_was_planned_is_what_training_gives(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--strength", "0", "0.1", "1", "--epochs", "3", "--max-forgetting", "0.5", "--min-learned", "0"]
    found = main([str(file), *arguments, "--json", "found.json"])
    assert [pair.name for pair in found] == ["low -> middle", "middle -> high", "high -> low"]
    for pair in found:
        assert pair.outcome is not None
        said, real = pair.outcome.prospect, pair.outcome.decided
        assert pair.within
        assert (real.split, real.n_old, real.n_new) == ("validation", 16, 16)
        assert (said.old_now, said.old_after, said.new_after) == pytest.approx(
            (real.old_now, real.old_after, real.new_after)
        )
        assert pair.outcome.held_out is not None
        assert pair.outcome.held_out.split == "test"
    out = capsys.readouterr().out
    assert "3 of 3 pairs have a recipe, 3 of them end within the tolerance; on test samples" in out
    assert len([line for line in out.splitlines() if line.startswith("|")]) == 5
    assert [one["within"] for one in json.loads(Path("found.json").read_text())] == [True] * 3


def test_a_pair_without_a_recipe_shows_what_comes_closest(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--strength", "0", "--epochs", "1", "--max-forgetting", "-1", "--pairs", "1"]
    (pair,) = main([str(file), *arguments, "--first", "1", "--validation-per-class", "4"])
    assert pair.outcome is None
    assert not pair.within
    assert "| middle -> high | none; closest strength 0, lr 0.01, epochs 1 | exact |" in capsys.readouterr().out

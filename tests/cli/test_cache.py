"""``tangentcl cache`` and ``tangentcl run --no-cache`` on real features."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

Answer = Callable[..., tuple[int, str, str]]
FILE = """
[stream]
n_tasks = 5
train_per_class = 4
test_per_class = 2
[[method]]
name = "ncm"
"""


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TANGENTCL_CACHE", str(tmp_path / "cache"))
    (tmp_path / "tiny.toml").write_text(FILE)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "cache" / "features"


def test_a_run_fills_it_and_the_command_shows_checks_and_removes_it(answer: Answer, cache: Path) -> None:
    assert answer("cache", "list") == (0, f"nothing is kept in {cache}\n", "")
    assert answer("run", "tiny.toml", "--no-report", "--no-cache")[0] == 0
    assert not cache.exists()
    assert answer("run", "tiny.toml", "--no-report", "--out", "second")[0] == 0
    code, out, _ = answer("cache", "list")
    assert code == 0
    assert "bundled, mean, image 32, fp32 on cpu" in out
    assert "samples of width 192" in out
    code, out, _ = answer("cache", "list", "--json")
    (entry,) = json.loads(out)["entries"]
    assert (entry["files"], entry["about"]["width"]) == (1, 192)
    assert entry["bytes"] > 60 * (4 * 192 + 16)
    assert answer("cache", "verify")[:2] == (0, "1 files, 0 damaged\n")
    (path,) = cache.glob("*/*.safetensors")
    path.write_bytes(path.read_bytes()[:-1])
    code, out, _ = answer("cache", "verify")
    assert code == 1
    assert str(path) in out
    assert "1 files, 1 damaged; they are computed anew when they are asked for" in out
    code, out, _ = answer("cache", "verify", "--json")
    assert json.loads(out)["damaged"][0]["file"] == str(path)
    code, out, _ = answer("cache", "clear")
    assert code == 0
    assert out.startswith("removed 0.")
    assert str(cache) in out
    assert not cache.exists()


def test_another_folder(answer: Answer, cache: Path, tmp_path: Path) -> None:
    assert answer("cache", "list", "--folder", str(tmp_path / "other"))[1] == f"nothing is kept in {tmp_path}/other\n"
    assert answer("cache", "clear", "--json")[1] == '{"removed": 0}\n'

"""``tangentcl cache`` and ``tangentcl run --no-cache`` on real features."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from importlib.util import find_spec
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


def test_an_engine_is_chosen_by_name(answer: Answer, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code, out, err = answer("run", "tiny.toml", "--no-report", "--engine", "onnxrutime")
    assert (code, out) == (2, "")
    assert "engine 'onnxrutime' is unknown. Did you mean 'onnxruntime'? Known: onnxruntime, openvino, torch." in err
    code, _, err = answer("run", "tiny.toml", "--no-report", "--engine", "openvino", "--no-cache")
    assert code == 2
    assert "--engine openvino computes features that are kept, --no-cache keeps none" in err
    with monkeypatch.context() as absent:
        absent.setitem(sys.modules, "openvino", None)
        code, _, err = answer("run", "tiny.toml", "--no-report", "--engine", "openvino")
    assert code == 2
    assert 'pip install "tangentcl[openvino]"' in err
    assert not Path("runs").exists()


@pytest.mark.skipif(find_spec("openvino") is None, reason="openvino not installed")
def test_a_run_by_openvino_keeps_its_features_apart(answer: Answer, cache: Path) -> None:
    for engine, out in (("torch", "first"), ("openvino", "second")):
        assert answer("run", "tiny.toml", "--no-report", "--engine", engine, "--out", out)[0] == 0
    lines = answer("cache", "list")[1].splitlines()
    assert sorted("on cpu by openvino:" in line for line in lines if line.startswith("bundled")) == [False, True]
    events = [
        json.loads(line) for path in Path("second").rglob("events.jsonl") for line in path.read_text().splitlines()
    ]
    (found,) = [event for event in events if event["event"] == "features"]
    assert (found["engine"], found["n"], found["backbone_passes"]) == ("openvino", 60, 60)
    matrices = [json.loads(path.read_text())["matrix"] for path in sorted(Path().rglob("accuracy.json"))]
    assert matrices[0] == matrices[1]

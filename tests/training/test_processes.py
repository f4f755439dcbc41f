"""Two real processes over gloo give the numbers of one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

EXPERIMENT = """
name = "pair"
seeds = [0]
[source]
name = "digits"
[stream]
kind = "class_incremental"
n_tasks = 5
train_per_class = 21
test_per_class = 20
[transform]
scale = [0.6, 1.0]
flip = 0.0
[plan]
epochs = 1
batch_size = 16
optimizer = "sgd"
lr = 0.05
clip_norm = 1.0
device = "cpu"
[forecast]
samples = 31
[theory]
samples = 31
probe = 13
[[method]]
name = "finetune"
rank = 2
[[method]]
name = "finetune"
label = "head"
tune = "head"
[[method]]
name = "ncm"
"""


def _run(folder: Path, processes: int) -> Path:
    file = folder / "pair.toml"
    file.write_text(EXPERIMENT)
    out = folder / f"by{processes}"
    command = [sys.executable, "-m", "tangentcl", "run", str(file), "--out", str(out)]
    if processes > 1:
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
        command = [sys.executable, *launcher, *command[1:]]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return out / "pair"


def _steps(record: Path) -> list[float]:
    events = [json.loads(line) for line in (record / "events.jsonl").read_text().splitlines()]
    return [event["terms"]["cross_entropy"] for event in events if event["event"] == "step"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    base = tmp_path_factory.mktemp("processes")
    return _run(base, 1), _run(base, 2)


def test_losses_and_accuracies_agree(folders: tuple[Path, Path]) -> None:
    one, two = (folder / "finetune" / "seed-0" for folder in folders)
    assert len(_steps(one)) == len(_steps(two)) > 0
    np.testing.assert_allclose(_steps(two), _steps(one), rtol=1e-4)
    matrices = [
        np.array(json.loads((record / "accuracy.json").read_text())["matrix"], dtype=float) for record in (one, two)
    ]
    np.testing.assert_allclose(matrices[1], matrices[0], atol=0.03)  # one sample of 40 may sit on a boundary


def test_parameters_agree(folders: tuple[Path, Path]) -> None:
    from safetensors.numpy import load_file

    one, two = (load_file(f / "finetune" / "seed-0" / "checkpoints" / "learner.safetensors") for f in folders)
    assert one.keys() == two.keys()
    for name in one:
        np.testing.assert_allclose(two[name], one[name], rtol=2e-3, atol=2e-4, err_msg=name)


def test_closed_form_methods_agree_exactly(folders: tuple[Path, Path]) -> None:
    one, two = (json.loads((f / "ncm" / "seed-0" / "accuracy.json").read_text()) for f in folders)
    assert one["matrix"] == two["matrix"]


@pytest.mark.parametrize("label", ["finetune", "head"])
def test_forecasts_are_shared_and_agree(folders: tuple[Path, Path], label: str) -> None:
    from tangentcl.records import Record

    one, two = (Record.read(folder / label / "seed-0").forecasts for folder in folders)
    assert [f.summary["status"] for f in two] == ["forecast"] * 4
    for single, shared in zip(one, two, strict=True):
        assert [row["id"] for row in single.summary["at_risk"]][:1] == [row["id"] for row in shared.summary["at_risk"]][
            :1
        ]
        for name in ("outputs", "drift", "real_drift"):
            scale = np.abs(single.arrays["drift"]).max()
            np.testing.assert_allclose(shared.arrays[name], single.arrays[name], rtol=1e-2, atol=5e-3 * scale)


@pytest.mark.parametrize("label", ["finetune", "head", "ncm"])
def test_the_theory_report_agrees(folders: tuple[Path, Path], label: str) -> None:
    from tangentcl.records import Record

    one, two = (Record.read(folder / label / "seed-0").theory for folder in folders)
    assert [found.values["status"] for found in two] == ["learned"] * 5
    for single, shared in zip(one, two, strict=True):
        assert shared.light == single.light
        a, b = ({**(found.before or {}), **(found.after or {})} for found in (single, shared))
        assert b["n"] == a["n"] == 31
        for key in ("overlap_centred", "interplay_rms", "rademacher"):
            rows = [[np.nan if row[key] is None else row[key] for row in values["past"]] for values in (a, b)]
            np.testing.assert_allclose(rows[1], rows[0], rtol=1e-2)
        np.testing.assert_allclose(b["radius"]["all"], a["radius"]["all"], rtol=1e-3)
        np.testing.assert_allclose(b["risk"]["loo"], a["risk"]["loo"], rtol=2e-2)


def test_the_record_says_how_many_processes_there_were(folders: tuple[Path, Path]) -> None:
    said = [json.loads((f / "finetune" / "seed-0" / "environment.json").read_text())["processes"] for f in folders]
    assert said == [1, 2]

"""200 tasks: memory does not grow, and a method's state grows by rows of new classes alone."""

from __future__ import annotations

import ctypes
import gc
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tangentcl.data import ArrayTransform, class_incremental, from_arrays
from tangentcl.methods import method_class
from tangentcl.nn import from_module
from tangentcl.training import Checkpoints, TrainingPlan, run_stream

METHODS: dict[str, tuple[str, dict[str, Any], int]] = {  # name, keywords, bytes of a new class
    "ncm": ("ncm", {}, 8 * (32 + 1)),
    "finetune": ("finetune", {"tune": "head", "logits": "current"}, 4 * (32 + 1)),
    "ranpac": ("ranpac", {"n_units": 64, "strength": 0.01}, 2 * 8 * (64 + 1)),
    "slda": ("slda", {}, 8 * (32 + 1)),
}
TASKS = 200


def resident() -> int:
    """Bytes of this process in memory, after what is free was given back to the system."""
    gc.collect()
    if hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def measure(label: str, folder: str) -> None:
    """Run the stream in this process and print what it took after each task."""
    name, keywords, _ = METHODS[label]
    torch.set_num_threads(1)
    rng = np.random.RandomState(0)
    y = np.repeat(np.arange(2 * TASKS), 8)
    x = (rng.randn(len(y), 16) + 3 * rng.randn(2 * TASKS, 16)[y]).astype(np.float32)
    stream = class_incremental(from_arrays(x, y), n_tasks=TASKS).with_transforms(ArrayTransform(), ArrayTransform())
    torch.manual_seed(0)
    layer = torch.nn.Sequential(torch.nn.Linear(16, 32), torch.nn.ReLU())
    method = method_class(name)(from_module(layer, None, 32, name="layer", modality="array"), **keywords)
    found: dict[str, list[int]] = {"resident": [], "state": []}

    def emit(event: str, fields: dict[str, Any]) -> None:
        if event == "task_trained":
            found["state"].append(fields["state_bytes"])
        if event == "evaluated" and fields["task"] in (19, TASKS - 1):
            found["resident"].append(resident())

    plan = TrainingPlan(epochs=1, batch_size=12, lr=0.01, device="cpu")
    result = run_stream(method, stream, plan, emit=emit, checkpoints=Checkpoints(folder, every=1))
    print(json.dumps({**found, "last": float(np.nanmean(result.matrix[-1]))}))


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from /proc")
@pytest.mark.parametrize("label", METHODS)
def test_memory_stays_and_state_grows_by_rows_of_classes(label: str, tmp_path: Path) -> None:
    command = [sys.executable, __file__, label, str(tmp_path / "states")]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    drift = found["resident"][1] / found["resident"][0] - 1
    assert drift < 0.02, f"{100 * drift:.1f} %"
    row = METHODS[label][2]
    growth = np.diff(found["state"])
    assert len(growth) == TASKS - 1
    assert (growth[20:] == 2 * row).all(), growth  # rows of samples become one matrix before
    assert found["last"] > 2 / 400, found["last"]  # twice chance, for the method that forgets


if __name__ == "__main__":
    measure(*sys.argv[1:])

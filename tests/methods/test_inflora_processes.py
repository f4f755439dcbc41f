"""Two real processes over gloo find the directions and the old space of one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from tangentcl.data import ArrayTransform, class_incremental, from_arrays
from tangentcl.methods import InfLoRA
from tangentcl.nn import from_module


def found() -> dict[str, Tensor]:
    """A and the projector of each layer after two tasks of uneven size."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(27, 6)).astype(np.float32), np.repeat(np.arange(3), 9)
    stream = class_incremental(from_arrays(x, y, x, y, name="noise", modality="array"), base=2, increment=1)
    stream = stream.with_transforms(ArrayTransform(), ArrayTransform())
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 5))
    method = InfLoRA(from_module(model, None, 5, name="two", modality="array"), rank=2, energy=0.7, targets=("0", "2"))
    for task in stream:
        method.begin_task(task)
        method.training_samples(task)
        for stack in method.stacks.values():
            nn.init.ones_(stack.pair[1].weight)  # as if it had learned
        method.end_task(task)
    directions = {f"A {name}": stack.pair[0].weight.detach() for name, stack in method.stacks.items()}
    return directions | {f"P {i}": space.projector for i, space in enumerate(method._spaces())}


def test_two_processes_agree_with_one(tmp_path: Path) -> None:
    if not dist.is_available():
        pytest.skip("torch was built without torch.distributed")
    command, environment = [sys.executable, __file__, str(tmp_path)], {**os.environ, "OMP_NUM_THREADS": "1"}
    started = [
        subprocess.Popen([*command, str(rank)], env=environment, stderr=subprocess.PIPE, text=True) for rank in range(2)
    ]
    one = found()
    for process in started:
        _, said = process.communicate(timeout=120)
        assert process.returncode == 0, said[-3000:]
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    assert first.keys() == one.keys()
    for name, value in one.items():
        assert bool(value.any())
        assert torch.equal(first[name], second[name]), name
        torch.testing.assert_close(first[name], value, rtol=0, atol=1e-6)


if __name__ == "__main__":
    folder, rank = Path(sys.argv[1]), int(sys.argv[2])
    dist.init_process_group("gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=2)
    torch.save(found(), folder / f"{rank}.pt")
    dist.barrier()  # gloo aborts a process whose peer has gone while it still talks
    dist.destroy_process_group()

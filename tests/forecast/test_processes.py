"""A local forecast by two real processes over gloo is that of one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from tangentcl.forecast import AdamW, prepare_forecast

N_OLD, N_NEW = 9, 7  # neither is even


class LoRA(nn.Module):
    """An adapted layer with the names that peft gives its parts; peft itself takes seconds to import."""

    def __init__(self, d_in: int, d_out: int) -> None:
        super().__init__()
        self.base = nn.Linear(d_in, d_out).requires_grad_(False)
        self.lora_A = nn.ModuleDict({"default": nn.Linear(d_in, 2, bias=False)})
        self.lora_B = nn.ModuleDict({"default": nn.Linear(2, d_out, bias=False)})
        self.active_adapters = ["default"]
        nn.init.zeros_(self.lora_B["default"].weight)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.lora_B["default"](self.lora_A["default"](x))


def forecasts() -> dict[str, Tensor]:
    """A LoRA model's drift, from the start and refined."""
    torch.manual_seed(0)
    model = nn.Sequential(LoRA(5, 8), nn.Tanh(), LoRA(8, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    old, new = torch.randn(N_OLD, 5).double(), torch.randn(N_NEW, 5).double()
    labels = torch.arange(N_NEW) % 3
    prepared = prepare_forecast(model, old, (new, labels), batch_size=2)
    recipe = AdamW(lr=0.02, batches=[[0, 3, 5], [1, 2], [4, 6]] * 3)
    found = {}
    for refine in (0.0, 0.4):
        forecast = prepared.forecast(recipe, refine=refine)
        assert forecast.trust is not None
        found |= {
            f"drift {refine}": forecast.drift,
            f"energy {refine}": forecast.vulnerability.energy,
            f"gap {refine}": torch.tensor([forecast.trust.gap]),
        }
    return found


def test_two_processes_agree_with_one(tmp_path: Path) -> None:
    if not dist.is_available():
        pytest.skip("torch was built without torch.distributed")
    started = [
        subprocess.Popen(
            [sys.executable, __file__, str(tmp_path), str(rank)],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    one = forecasts()
    for process in started:
        _, said = process.communicate(timeout=120)
        assert process.returncode == 0, said[-3000:]
    for rank in range(2):
        two = torch.load(tmp_path / f"{rank}.pt")
        assert two.keys() == one.keys()
        for name, value in one.items():
            torch.testing.assert_close(two[name], value, rtol=1e-9, atol=1e-12, msg=name)


if __name__ == "__main__":
    folder, own = Path(sys.argv[1]), int(sys.argv[2])
    dist.init_process_group("gloo", init_method=f"file://{folder / 'store'}", rank=own, world_size=2)
    torch.save(forecasts(), folder / f"{own}.pt")
    dist.barrier()  # gloo aborts a process whose peer has gone while it still talks
    dist.destroy_process_group()

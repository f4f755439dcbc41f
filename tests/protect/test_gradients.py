"""Gradients of outputs against autograd, one output at a time."""

from __future__ import annotations

import torch
from torch import nn

from tangentcl.protect.gradients import output_gradients


def _expected(model: nn.Module, x: torch.Tensor, names: list[str], chosen: list[list[int]]) -> torch.Tensor:
    parameters = dict(model.named_parameters())
    rows = []
    for i, outputs in enumerate(chosen):
        for c in outputs:
            found = torch.autograd.grad(model(x[i : i + 1])[0, c], [parameters[name] for name in names])
            rows.append(torch.cat([g.flatten() for g in found]))
    return torch.stack(rows)


def test_gradients_of_labels_and_of_all_outputs() -> None:
    model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Dropout(0.5), nn.Linear(5, 4)).eval()
    x, y = torch.randn(11, 3), torch.arange(11) % 4
    names = ["3.weight", "0.bias", "3.bias"]
    labels = _expected(model, x, names, [[int(c)] for c in y])
    every = _expected(model, x, names, [list(range(4))] * 11)
    model.train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(output_gradients(model, names, x, y), labels, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(output_gradients(model, names, x), every, rtol=1e-5, atol=1e-6)
    assert model.training
    assert all(p.grad is None for p in model.parameters())


def test_a_batch_of_several_tensors() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.tensor([1.0, 2.0]))

        def forward(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
            return self.w * batch["a"] * batch["b"]

    batch = {"a": torch.tensor([[2.0], [3.0]]), "b": torch.tensor([[5.0], [7.0]])}
    found = output_gradients(Two(), ["w"], batch, torch.tensor([1, 0]))
    assert found.tolist() == [[0.0, 10.0], [21.0, 0.0]]

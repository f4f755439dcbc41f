"""Your own training loop without forgetting: the digits 0 to 4, then 5 to 9, without the guard and with it."""

import copy

import numpy as np
import torch
from torch import nn

import tangentcl

digits = tangentcl.load("digits").train
x, y = torch.tensor(np.stack(digits.inputs)).flatten(1) / 255, torch.tensor(digits.labels)  # [1347, 64], [1347]
old, new = y < 5, y >= 5


def train(model, part, guard=None):
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for _ in range(300):
        loss = nn.functional.cross_entropy(model(x[part]), y[part])
        if guard is not None:
            loss = loss + guard.strength * guard(model)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


torch.manual_seed(0)
first = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
train(first, old)
guard = tangentcl.SpectralRegularizer.of_old(first, x[old], strength=1.0)  # from here on x[old] is not needed
for name, held in [("without", None), ("with", guard)]:
    model = copy.deepcopy(first)
    train(model, new, held)
    right = (model(x).argmax(dim=1) == y).float()
    print(f"{name} the guard: accuracy {right[old].mean():.2f} on the old digits, {right[new].mean():.2f} on the new")

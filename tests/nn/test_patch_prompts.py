from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from tangentcl.errors import ConfigError, ModelError
from tangentcl.nn.blocks import Tokens
from tangentcl.nn.patch_prompts import AttentionPrompts, DctPrompts, LinearPrompts, make_prompts


def test_the_map_mixes_tokens_and_leaves_channels_alone() -> None:
    prompts = LinearPrompts(6, 2, n_tokens=4)
    nn.init.ones_(prompts.norm.weight)
    x = torch.randn(3, 4, 6)
    expected = torch.stack([(prompts.weight[:, :, None] * row).sum(1) for row in x])
    torch.testing.assert_close(prompts(x, Tokens(x)), nn.functional.layer_norm(expected, (6,)))
    with pytest.raises(ModelError, match="made for 4 tokens, the batch has 5"):
        prompts(torch.randn(1, 5, 6), Tokens(torch.randn(1, 5, 6)))


def test_cosines_reach_every_linear_map_of_one_length() -> None:
    n, width = 7, 5
    linear, smooth = LinearPrompts(width, 3, n_tokens=n).double(), DctPrompts(width, 3, modes=n).double()
    rows = [[math.cos(math.pi * k * (i + 0.5) / n) for i in range(n)] for k in range(n)]
    waves = torch.tensor(rows, dtype=torch.float64)
    smooth.amplitude.data = torch.linalg.solve(waves.T, linear.weight.data.T).T * n
    x = torch.randn(2, n, width, dtype=torch.float64)
    torch.testing.assert_close(smooth.mixed(x, Tokens(x)), linear.mixed(x, Tokens(x)), rtol=1e-9, atol=1e-9)


def test_cosines_on_a_grid_are_separable() -> None:
    smooth = DctPrompts(5, 2, modes=4, n_prefix=1)
    x = torch.randn(1, 7, 5)
    found = smooth.mixed(x, Tokens(x, grid=(2, 3), n_prefix=1))
    weights = torch.zeros(2, 7)
    assert smooth.prefix is not None
    weights[:, 0] = smooth.prefix[:, 0].detach()
    for p in range(2):
        for row in range(2):
            for column in range(3):
                for k in range(2):
                    for m in range(2):
                        wave = math.cos(math.pi * k * (row + 0.5) / 2) * math.cos(math.pi * m * (column + 0.5) / 3)
                        weights[p, 1 + 3 * row + column] += float(smooth.amplitude[p, 2 * k + m]) * wave / 6
    torch.testing.assert_close(found, weights @ x, rtol=1e-5, atol=1e-6)


def test_attention_pools_by_content_and_not_by_place() -> None:
    prompts = AttentionPrompts(5, 2, rank=3)
    x = torch.randn(2, 6, 5)
    found = prompts.mixed(x, Tokens(x))
    order = torch.randperm(6)
    torch.testing.assert_close(prompts.mixed(x[:, order], Tokens(x)), found)
    mask = torch.tensor([[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1]])
    torch.testing.assert_close(prompts.mixed(x, Tokens(x, mask))[:1], prompts.mixed(x[:1, :4], Tokens(x[:1, :4])))


@pytest.mark.parametrize("form", ["linear", "dct", "attention", "static"])
def test_prompts_start_at_zero_and_every_tensor_trains_by_the_second_step(form: str) -> None:
    torch.manual_seed(0)
    prompts = make_prompts(form, 6, 2, n_tokens=5, n_prefix=1)
    x, goal = torch.randn(4, 5, 6), torch.randn(4, 2, 6)
    tokens = Tokens(x, grid=(2, 2), n_prefix=1)
    assert not bool(prompts(x, tokens).any())
    alive: set[str] = set()
    optimizer = torch.optim.SGD(prompts.parameters(), lr=0.5)
    for _ in range(2):
        optimizer.zero_grad()
        (prompts(x, tokens) - goal).square().sum().backward()
        alive |= {name for name, p in prompts.named_parameters() if p.grad is not None and bool(p.grad.any())}
        optimizer.step()
    assert alive == {name for name, _ in prompts.named_parameters()}


def test_what_is_refused() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'dct'"):
        make_prompts("dtc", 6, 2, n_tokens=5, n_prefix=1)
    with pytest.raises(ConfigError, match="at least 1, got 0"):
        make_prompts("dct", 6, 0, n_tokens=5, n_prefix=1)

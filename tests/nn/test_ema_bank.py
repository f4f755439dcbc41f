from __future__ import annotations

import pytest
import torch
from torch import nn

from tangentcl.errors import ConfigError
from tangentcl.nn.channel_adapter import ChannelAdapter
from tangentcl.nn.ema_bank import EmaBank


def _walk(bank: EmaBank, live: nn.Module, n: int) -> list[torch.Tensor]:
    seen = []
    for _ in range(n):
        for p in live.parameters():
            nn.init.normal_(p)
        seen.append(nn.utils.parameters_to_vector(live.parameters()).detach().clone())
        bank.update(live)
    return seen


def test_the_copy_is_the_arithmetic_mean() -> None:
    live = nn.ModuleList([ChannelAdapter(6, rank=2), nn.LayerNorm(6)])
    bank = EmaBank(live)
    seen = _walk(bank, live, 20)
    kept = torch.cat([b.flatten() for b in bank.copy.buffers()])
    torch.testing.assert_close(kept, torch.stack(seen).mean(0), rtol=1e-5, atol=1e-6)


def test_a_decay_of_zero_is_the_last_and_a_half_is_geometric() -> None:
    for decay, weights in ((0.0, [0.0, 0.0, 1.0]), (0.5, [0.25, 0.25, 0.5])):
        live = nn.Linear(3, 2)
        bank = EmaBank(live, decay=decay)
        seen = _walk(bank, live, 3)
        kept = torch.cat([b.flatten() for b in bank.copy.buffers()])
        torch.testing.assert_close(kept, sum(w * s for w, s in zip(weights, seen)))


def test_it_starts_as_the_live_modules_and_never_trains() -> None:
    live = ChannelAdapter(4, rank=2, dropout=0.9)
    bank = EmaBank(live)
    assert list(bank.parameters()) == []
    assert not bank.train().copy.training
    assert EmaBank(live, dropout=True).train().copy.training
    x = torch.randn(2, 3, 4)
    torch.testing.assert_close(bank.copy(x), live.eval()(x))
    with pytest.raises(ConfigError, match=r"\[0, 1\)"):
        EmaBank(live, decay=1.0)

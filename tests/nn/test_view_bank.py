"""Fixed views: the same each time, and the frozen features they carry are those of the network."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from tangentcl.data import Samples, Table
from tangentcl.errors import ConfigError, ModelError
from tangentcl.nn import Backbone
from tangentcl.nn.branches import TwoBranches
from tangentcl.nn.channel_adapter import ChannelAdapter
from tangentcl.nn.layouts import transformer
from tangentcl.nn.view_bank import FixedView, unpacked, view_bank

Make = Callable[[], Backbone]


class Noisy:
    """Adds noise where it is given a generator, and says how often it was called."""

    def __call__(self, raw: Any, rng: np.random.Generator | None) -> torch.Tensor:
        x = torch.as_tensor(raw, dtype=torch.float32)
        return x if rng is None else x + torch.from_numpy(rng.normal(size=x.shape)).float()

    def collate(self, items: list[torch.Tensor]) -> torch.Tensor:
        return torch.stack(items)

    def describe(self) -> dict[str, Any]:
        return {"name": "noisy"}


def samples(n: int = 6) -> Samples:
    inputs = np.random.default_rng(0).normal(size=(n, 3, 4)).astype(np.float32)
    return Samples(Table(inputs, np.arange(n) % 2, np.arange(n)), transform=Noisy())


def network(features: Backbone, **options: Any) -> TwoBranches:
    model = transformer(features)
    adapters = torch.nn.ModuleList(ChannelAdapter(model.width, rank=2) for _ in model.blocks)
    for p in adapters.parameters():
        torch.nn.init.normal_(p, std=0.3)
    return TwoBranches(features, model, channel=adapters, patch=None, **options)


def test_a_view_depends_on_seed_view_and_sample_alone() -> None:
    data = samples()
    view = FixedView(data, 3, 1)
    again = view.subset([4, 2])
    for rng in (None, np.random.default_rng(5)):
        assert torch.equal(again.item(0, rng)[0], view.item(4, None)[0])
    for other in (FixedView(data, 3, 0), FixedView(data, 4, 1)):
        assert not torch.equal(other[4][0], view[4][0])
    assert not torch.equal(view[4][0] - data[4][0], view[2][0] - data[2][0])
    assert again.labels.tolist() == [0, 0]


def test_a_bank_holds_what_the_frozen_passes_make_of_each_view(tiny_blocks: Make) -> None:
    made, data = network(tiny_blocks(), ptm_section=True), samples()
    made.train()
    bank = view_bank(made, data, 3, 7, batch_size=4)
    assert bank.features.shape == (3, 6, 2 * 16)
    seen = set()
    for i in range(20):
        (x, frozen), label = bank.item(2, np.random.default_rng(i))
        view = next(v for v in range(3) if torch.equal(FixedView(data, 7, v)[2][0], x))
        seen.add(view)
        assert label == 0
        torch.testing.assert_close(frozen, made.frozen(x[None])[0], rtol=1e-5, atol=1e-6)
    assert seen == {0, 1, 2}
    batch, y = bank.collate([bank.item(i, np.random.default_rng(i)) for i in (5, 1)])
    x, known = unpacked(batch)
    assert y.tolist() == [1, 1]
    assert known is not None
    made.eval()
    torch.testing.assert_close(made.views(x, known).fused, made.views(x).fused, rtol=1e-5, atol=1e-6)
    fewer = view_bank(made, data, 3, 7, ptm=False)
    torch.testing.assert_close(fewer.features, bank.features[..., 16:])
    without = made.views(x, known[:, 16:], ptm=False).fused
    torch.testing.assert_close(without, made.views(x).fused[:, 16:], rtol=1e-5, atol=1e-6)
    part = bank.subset([5, 1])
    assert torch.equal(part.item(1, None)[0][1], bank.features[0, 1])


def test_a_bank_refuses_what_it_cannot_do(tiny_blocks: Make) -> None:
    with pytest.raises(ConfigError, match="at least one view"):
        view_bank(network(tiny_blocks()), samples(), 0, 0)
    with pytest.raises(ConfigError, match="no frozen branch"):
        view_bank(network(tiny_blocks(), ema="off"), samples(), 1, 0)
    with pytest.raises(ModelError, match=r"frozen features \[B, 16\]"):
        network(tiny_blocks()).views(torch.zeros(2, 3, 4), torch.zeros(2, 5))

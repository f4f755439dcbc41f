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
from tangentcl.nn.hf import from_transformers
from tangentcl.nn.layouts import transformer
from tangentcl.nn.stem_bank import StoredStem, stem_batch, stem_of
from tangentcl.nn.trunks import stem, trunk
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


@pytest.mark.parametrize("first_block", [0, 1])
def test_stems_in_the_bank_replace_the_beginning(tiny_blocks: Make, first_block: int) -> None:
    made, data = network(tiny_blocks(), first_block=first_block, ptm_section=True), samples()
    bank = view_bank(made, data, 2, 7, keep_stems=True, batch_size=4)
    plain = view_bank(made, data, 2, 7)
    made.eval()
    rngs = [np.random.default_rng(i) for i in range(3)], [np.random.default_rng(i) for i in range(3)]
    stored, y = bank.collate([bank.item(i, rng) for i, rng in zip((5, 1, 2), rngs[0])])
    fresh, labels = plain.collate([plain.item(i, rng) for i, rng in zip((5, 1, 2), rngs[1])])
    assert y.tolist() == labels.tolist()
    mine, theirs = made.views(*unpacked(stored)), made.views(*unpacked(fresh))
    torch.testing.assert_close(mine.fused, theirs.fused, rtol=1e-5, atol=1e-6)
    part = bank.subset([5, 1])
    assert part.item(1, None)[0][0] is bank.item(1, None)[0][0]


@pytest.mark.parametrize("kind", ["vit", "bert"])
def test_a_stem_stands_for_images_and_for_texts_of_any_length(
    tiny: Callable[[str], torch.nn.Module], kind: str
) -> None:
    features = from_transformers(tiny(kind), name=kind)
    model = transformer(features)
    x: Any = torch.randn(3, *features.sample_input().shape[1:]) if kind == "vit" else None
    if kind == "bert":
        mask = torch.tensor([[1] * 5, [1] * 3 + [0] * 2, [1] + [0] * 4])
        x = {"input_ids": torch.arange(15).reshape(3, 5) % 7 + 1, "attention_mask": mask}
    expected = stem(model, x, 1)
    tokens = expected.tokens
    lengths = [5, 3, 1] if kind == "bert" else [expected.attended.shape[1]] * 3
    stored = [
        StoredStem(expected.attended[i, :n], expected.update[i, :n], kind == "bert", tokens.grid, tokens.n_prefix)
        for i, n in enumerate(lengths)
    ]
    found = stem_of(stem_batch(stored), 1)
    assert found is not None
    assert (found.tokens.grid, found.tokens.n_prefix, found.first) == (tokens.grid, tokens.n_prefix, 1)
    torch.testing.assert_close(trunk(model, found), trunk(model, expected), rtol=1e-5, atol=1e-6)
    few = stem_of(stem_batch(stored[1:]), 1)
    assert few is not None
    torch.testing.assert_close(trunk(model, few), trunk(model, expected)[1:], rtol=1e-5, atol=1e-6)


def test_a_stem_without_a_grid_keeps_its_prefix_and_has_no_mask() -> None:
    stored = [StoredStem(torch.randn(4, 8), torch.randn(4, 8), False, None, 1) for _ in range(2)]
    found = stem_of(stem_batch(stored), 0)
    assert found is not None
    assert (found.tokens.grid, found.tokens.n_prefix, found.tokens.mask) == (None, 1, None)

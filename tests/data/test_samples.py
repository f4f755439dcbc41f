from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from tangentcl.data import ArrayTransform, Samples, Table
from tangentcl.errors import DataError


class Noise:
    """Adds noise when it may be random."""

    def __call__(self, raw: Any, rng: np.random.Generator | None) -> torch.Tensor:
        return torch.from_numpy(raw if rng is None else raw + rng.normal(size=raw.shape))

    def collate(self, items: list[Any]) -> torch.Tensor:
        return torch.stack(items)

    def describe(self) -> dict[str, Any]:
        return {"kind": "noise"}


def table(n: int = 7, shift: float = 0.0) -> Table:
    return Table(np.arange(n, dtype=np.float64)[:, None] + shift, np.arange(n) % 3, np.arange(n) + int(shift))


def test_items_come_by_position_with_stream_labels():
    samples = Samples(table(), np.array([4, 1]), np.array([9, 8]))
    raw, label = samples[0]
    assert (raw.item(), label) == (4.0, 9)
    assert samples.ids.tolist() == [4, 1]
    assert samples.subset([1]).item(0, None)[1] == 8


def test_without_a_generator_nothing_is_random():
    samples = Samples(table(), transform=Noise())
    assert torch.equal(samples[3][0], samples[3][0])
    first = samples.item(3, np.random.default_rng((0, 1)))[0]
    assert torch.equal(first, samples.item(3, np.random.default_rng((0, 1)))[0])
    assert not torch.equal(first, samples[3][0])


@pytest.mark.parametrize("batch_size", [1, 3, 7, 100])
def test_batches_keep_the_order_and_lose_nothing(batch_size):
    samples = Samples(table(), transform=ArrayTransform())
    x, y = (torch.cat(parts) for parts in zip(*samples.batches(batch_size)))
    assert x.flatten().tolist() == list(range(7))
    assert y.tolist() == [0, 1, 2, 0, 1, 2, 0]
    assert y.dtype == torch.int64
    assert x.dtype == torch.float32


def test_batching_without_transform_says_what_to_do():
    with pytest.raises(DataError, match="with_transforms"):
        next(Samples(table()).batches(2))


def test_concat_over_tables_and_within_one():
    transform = ArrayTransform()
    one, two = table(), table(3, shift=100)
    parts = [
        Samples(t, p, np.array(y), transform) for t, p, y in ((one, [6], [0]), (two, [2, 0], [1, 2]), (one, [1], [3]))
    ]
    joined = Samples.concat(parts)
    x, y = next(joined.batches(9))
    assert x.flatten().tolist() == [6, 102, 100, 1]
    assert y.tolist() == [0, 1, 2, 3]
    assert joined.ids.tolist() == [6, 102, 100, 1]
    within = Samples.concat([parts[0], parts[2]])
    assert within.table is one


def test_concat_of_nothing_or_of_different_transforms_is_refused():
    with pytest.raises(DataError, match="at least one"):
        Samples.concat([])
    with pytest.raises(DataError, match="different transforms"):
        Samples.concat([Samples(table(), transform=ArrayTransform()), Samples(table(), transform=ArrayTransform())])


def test_positions_and_labels_must_agree():
    with pytest.raises(DataError, match="2 positions and 1 labels"):
        Samples(table(), np.array([0, 1]), np.array([0]))


def test_pickled_samples_are_the_same():
    samples = Samples(table(), np.array([5, 2]), np.array([1, 0]), ArrayTransform())
    copy = pickle.loads(pickle.dumps(samples))
    assert torch.equal(next(copy.batches(2))[0], next(samples.batches(2))[0])


def test_samples_work_in_a_data_loader_with_workers():
    samples = Samples(table(), transform=ArrayTransform())
    loader = DataLoader(samples, batch_size=4, num_workers=2, collate_fn=samples.collate)
    x, y = (torch.cat(parts) for parts in zip(*loader))
    assert x.flatten().tolist() == list(range(7))
    assert y.tolist() == [0, 1, 2, 0, 1, 2, 0]

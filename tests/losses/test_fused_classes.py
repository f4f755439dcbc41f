"""Virtual classes: their numbers, who is mixed with whom, and how."""

from __future__ import annotations

import itertools

import torch

from tangentcl.losses import fuse_images, n_pairs, pair_index, partners


def test_every_pair_has_a_number_of_its_own_when_there_is_room() -> None:
    pairs = torch.tensor(list(itertools.combinations(range(7), 2)))
    index = pair_index(pairs[:, 0], pairs[:, 1], 7, 1000)
    assert sorted(index.tolist()) == list(range(n_pairs(7)))
    assert torch.equal(pair_index(pairs[:, 1], pairs[:, 0], 7, 1000), index)


def test_hashed_pairs_fill_the_virtual_classes_evenly() -> None:
    pairs = torch.tensor(list(itertools.combinations(range(60), 2)))
    index = pair_index(pairs[:, 0], pairs[:, 1], 60, 100)
    counts = torch.bincount(index, minlength=100)
    assert len(counts) == 100
    assert int(counts.min()) > 8  # 17.7 on average
    assert int(counts.max()) < 36
    large = pair_index(torch.tensor([9999]), torch.tensor([9998]), 10_000, 1000)
    assert 0 <= int(large) < 1000


def test_partners_are_of_another_class() -> None:
    y = torch.randint(4, (50,))
    own, other = partners(y)
    assert len(own) > 25
    assert bool((y[own] != y[other]).all())
    assert len(own.unique()) == len(own)


def test_images_are_mixed_cell_by_cell() -> None:
    x, other = torch.rand(64, 3, 12, 10), torch.rand(64, 3, 12, 10)
    mixed = fuse_images(x, other)
    first = mixed == x
    assert bool((first | (mixed == other)).all())
    cells = first[:, 0, ::3][:, :, [0, 3, 5, 8]]  # one pixel in each cell: columns 0-2, 3-4, 5-7, 8-9
    assert torch.equal(cells.repeat_interleave(3, 1).repeat_interleave(torch.tensor([3, 2, 3, 2]), 2), first[:, 1])
    assert 0.4 < float(cells.float().mean()) < 0.6
    assert len(cells.flatten(1).unique(dim=0)) > 32  # a mask for each pair

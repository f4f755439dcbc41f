"""Samples of past tasks: all, or every class in proportion."""

from __future__ import annotations

import numpy as np
import pytest

from tangentcl.data import TaskStream
from tangentcl.training.old_samples import in_proportion, old_samples


def test_all_are_taken_when_there_are_few(tiny_stream: TaskStream) -> None:
    past = tiny_stream.tasks[:2]
    found = old_samples(past, 32, seed=0)
    assert found.tasks.tolist() == [0] * 16 + [1] * 16
    assert found.samples.ids.tolist() == [*past[0].test.ids, *past[1].test.ids]
    assert (found.n_available, found.note) == (32, "all 32 test samples of past tasks")


def test_every_class_in_proportion(tiny_stream: TaskStream) -> None:
    past = tiny_stream.tasks[:2]
    found = old_samples(past, 10, seed=0)
    assert np.bincount(found.samples.labels).tolist() == [3, 3, 2, 2]
    assert np.array_equal(found.tasks, found.samples.labels // 2)
    assert found.note == "10 of 32 test samples of past tasks, drawn at random, every class in proportion"
    same, other = old_samples(past, 10, seed=0), old_samples(past, 10, seed=1)
    assert np.array_equal(found.samples.ids, same.samples.ids)
    assert not np.array_equal(found.samples.ids, other.samples.ids)


@pytest.mark.parametrize("limit", [1, 7, 50, 99])
def test_shares_are_off_by_less_than_one(limit: int) -> None:
    groups = np.random.default_rng(0).integers(0, 7, 100)
    chosen = in_proportion(groups, limit, np.random.default_rng(1))
    assert len(np.unique(chosen)) == limit
    counts, sizes = np.bincount(groups[chosen], minlength=7), np.bincount(groups, minlength=7)
    assert np.abs(counts - limit * sizes / 100).max() < 1

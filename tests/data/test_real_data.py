"""Streams of real data; each test is skipped where TANGENTCL_DATA does not name a folder with the data."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from tangentcl.data import ImageTransform, class_incremental, load


def need(*names: str) -> None:
    root = os.environ.get("TANGENTCL_DATA")
    if not root:
        pytest.skip("TANGENTCL_DATA is not set")
    if not any(Path(root, name).is_dir() for name in names):
        pytest.skip(f"no {names[0]} in TANGENTCL_DATA")


def test_clinc150_in_fifteen_tasks():
    need("clinc150")
    stream = class_incremental(load("clinc150"), 15, order_seed=1993)
    assert [len(task.classes) for task in stream] == [10] * 15
    assert [len(task.train) for task in stream] == [1000] * 15
    assert [len(task.test) for task in stream] == [300] * 15
    assert sum(len(task.validation) for task in stream) == 3000
    assert stream.n_classes == 150
    assert "oos" not in stream.class_names


def test_clinc150_by_domain():
    need("clinc150")
    stream = class_incremental(load("clinc150"), groups=True)
    assert [len(task.classes) for task in stream] == [15] * 10
    assert stream[0].name == "banking"
    assert "balance" in stream.class_names[:15]


def test_cifar10_in_five_tasks():
    need("cifar10")
    source = load("cifar10")
    stream = class_incremental(source, 5)
    assert [len(task.train) for task in stream] == [10_000] * 5
    assert [len(task.test) for task in stream] == [2_000] * 5
    assert stream.class_names[0] == "airplane"
    small = class_incremental(source, 5, train_per_class=500, test_per_class=100)
    assert [(len(task.train), len(task.test)) for task in small] == [(1000, 200)] * 5
    transform = ImageTransform(32, (0, 0, 0), (1, 1, 1), crop_ratio=1.0)
    x, y = next(stream.with_transforms(transform, transform)[0].test.batches(16))
    assert x.shape == (16, 3, 32, 32)
    assert 0.2 < x.mean() < 0.8
    assert set(y.tolist()) <= {0, 1}


def test_omniglot_by_alphabet():
    need("omniglot", "omniglot_small1")
    source = load("omniglot")
    stream = class_incremental(source, groups=True)
    assert len(stream) == 5
    assert stream.n_classes == 136
    assert [task.name for task in stream] == ["Balinese", "Early_Aramaic", "Greek", "Korean", "Latin"]
    assert np.bincount(source.train.labels).tolist() == [15] * 136
    assert np.bincount(source.test.labels).tolist() == [5] * 136
    assert stream[0].train[0][0].size == (105, 105)

from __future__ import annotations

import numpy as np
from sklearn.datasets import load_digits

from tangentcl.data import class_incremental, load
from tangentcl.data.digits import digits_arrays


def test_the_embedded_digits_are_scikit_learns():
    images, labels = digits_arrays()
    reference = load_digits()
    assert np.array_equal(images, reference.images)
    assert np.array_equal(labels, reference.target)


def test_images_are_stretched_to_the_full_range_and_keep_their_ids():
    source = load("digits")
    images, labels = digits_arrays()
    for table in (source.train, source.test):
        numbers = [int(one.split("/")[1]) for one in table.ids]
        assert np.array_equal(table.labels, labels[numbers])
        for i in (0, len(table) - 1):
            assert np.array_equal(table.inputs[i], np.rint(images[numbers[i]] * (255 / 16)).astype(np.uint8))
    assert source.train.inputs[0].dtype == np.uint8
    assert np.bincount(source.test.labels).tolist() == [44, 46, 44, 46, 45, 46, 45, 45, 44, 45]
    assert source.licence == "CC BY 4.0"
    assert source.n_duplicates == 0


def test_five_tasks_of_digits():
    stream = class_incremental(load("digits"), 5)
    assert [task.classes for task in stream] == [(0, 1), (2, 3), (4, 5), (6, 7), (8, 9)]
    assert sum(len(task.train) for task in stream) == 1347

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from tangentcl.data import from_arrays
from tangentcl.errors import ConfigError, DataError

X, Y = np.arange(24, dtype=np.float32).reshape(8, 3), np.array([0, 1] * 4)


def test_without_test_split_a_stratified_share_is_held_out():
    source = from_arrays(X, Y)
    assert (len(source.train), len(source.test)) == (6, 2)
    assert sorted(source.test.labels.tolist()) == [0, 1]
    assert not set(source.train.ids) & set(source.test.ids)
    rows = np.stack([source.train.inputs[i] for i in range(6)])
    assert np.array_equal(rows[:, 0].astype(int) // 3 % 2, source.train.labels)
    assert "held out" in source.notes[0]
    assert from_arrays(X, Y, test_seed=1).test.ids.tolist() != from_arrays(X, Y, test_seed=2).test.ids.tolist()


def test_labels_of_every_kind():
    assert from_arrays(X, ["b", "a"] * 4).class_names == ("a", "b")
    assert from_arrays(X, ["b", "a"] * 4, X, ["b", "a"] * 4, class_names=["b", "a"]).train.labels.tolist() == [0, 1] * 4
    assert from_arrays(X, [10, 9] * 4).class_names == ("9", "10")
    assert from_arrays(X, ["10", "9"] * 4).class_names == ("9", "10")
    assert from_arrays(X, Y, class_names=["no", "yes"]).class_names == ("no", "yes")
    assert from_arrays(torch.tensor(X), torch.tensor(Y)).modality == "array"


@pytest.mark.parametrize(
    ("x", "modality"),
    [
        (X, "array"),
        (np.zeros((8, 4, 4), np.uint8), "image"),
        (np.zeros((8, 4, 4, 3), np.uint8), "image"),
        (np.zeros((8, 5), np.uint8), "array"),
        (["t"] * 8, "text"),
        (np.array(["t"] * 8), "text"),
        ([Image.new("L", (2, 2))] * 8, "image"),
        ([np.zeros((2 + i, 3), np.uint8) for i in range(8)], "image"),
    ],
)
def test_the_modality_is_seen_from_the_samples(x, modality):
    assert from_arrays(x, Y).modality == modality


def test_the_modality_can_be_given():
    assert from_arrays(np.zeros((8, 4, 4)), Y, modality="image").modality == "image"
    with pytest.raises(ConfigError, match="Did you mean 'image'"):
        from_arrays(X, Y, modality="images")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((X, Y[:5]), "got 8 samples and 5 labels"),
        ((X, Y, X, Y[:1]), "test split of arrays, got 8 samples and 1 labels"),
        ((X, Y, X), "test split together"),
        ((X, Y, X, np.full(8, 7)), "Unknown label 7 in the test split of arrays. Known: 0, 1"),
        ((X[:0], Y[:0]), "at least one training sample"),
        ((X, Y, X[:0], Y[:0]), "test split of arrays is empty"),
        ((X, np.full(8, 0.5)), "texts or integers in the train split of arrays, got .*0.5"),
        ((X, [[0, 1], [2]] * 4), r"got \[0, 1\]"),
        ((X, [{"a": 1}] * 8), "got {'a': 1}"),
        ((None, None), "got None"),
        ((X, Y[:, None]), "shape"),
        ((np.where(X == 5, np.nan, X), Y), "contain NaN or infinity, the first at position 1"),
        ((X, [0] * 7 + [1]), "single sample: 1"),
        ((np.float32(3), Y), "got a single float32"),
        (("text", Y), "got a single str"),
    ],
)
def test_data_that_cannot_be_used_are_refused(arguments, message):
    with pytest.raises(DataError, match=message):
        from_arrays(*arguments)


def test_labels_outside_the_class_names_are_refused():
    with pytest.raises(DataError, match=r"Unknown label 1 in the train split of arrays. Expected 0 to 0"):
        from_arrays(X, Y, class_names=["one"])
    with pytest.raises(DataError, match=r"Unknown label 'dgo'.*Did you mean 'dog'"):
        from_arrays(X, ["cat", "dgo"] * 4, class_names=["cat", "dog"])


def test_a_share_outside_its_range_is_refused():
    with pytest.raises(ConfigError, match="test_share"):
        from_arrays(X, Y, test_share=1.0)


def test_a_lone_validation_split_becomes_the_test_split():
    source = from_arrays(X, Y, x_validation=X + 1, y_validation=Y)
    assert source.validation is None
    assert len(source.test) == 8
    assert "validation split is used" in source.notes[0]


def test_domains_are_named_and_complete():
    source = from_arrays(X, Y, X, Y, domains_train=[2, 10] * 4, domains_test=[10, 2] * 4)
    assert source.domain_names == ("2", "10")
    assert source.test.domains.tolist() == [1, 0] * 4
    with pytest.raises(DataError, match="every split names the domains"):
        from_arrays(X, Y, X, Y, domains_train=[0] * 8)
    with pytest.raises(DataError, match="one domain per sample of the train split, got 3 for 8"):
        from_arrays(X, Y, domains_train=[0] * 3)
    held = from_arrays(X, [0, 0, 1, 1] * 2, domains_train=[0, 1] * 4, test_share=0.5)
    assert sorted(zip(held.test.labels.tolist(), held.test.domains.tolist())) == [(0, 0), (0, 1), (1, 0), (1, 1)]

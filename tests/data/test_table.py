from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tangentcl.data.table import Source, Table, choose_per_class
from tangentcl.errors import DataError


def table(n: int = 4, prefix: str = "train") -> Table:
    return Table(np.eye(n), np.arange(n) % 2, np.array([f"{prefix}/{i}" for i in range(n)]))


def test_lengths_must_agree():
    with pytest.raises(DataError, match="4 inputs and 3 labels"):
        Table(np.eye(4), np.arange(3), np.arange(4))
    with pytest.raises(DataError, match="2 ids"):
        Table(np.eye(4), np.arange(4), np.arange(2))
    with pytest.raises(DataError, match="1 domains"):
        Table(np.eye(4), np.arange(4), np.arange(4), np.arange(1))


@pytest.mark.parametrize("labels", [np.array([0.5, 1.0]), np.array(["a", "b"]), np.zeros((2, 2), dtype=int)])
def test_labels_must_be_integers(labels):
    with pytest.raises(DataError, match="vector of integers"):
        Table(["x", "y"], labels, np.arange(2))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_non_finite_inputs_are_refused_with_their_position(bad):
    inputs = np.zeros((5, 2, 2))
    inputs[3, 1, 0] = bad
    with pytest.raises(DataError, match="1 of 5 inputs contain NaN or infinity, the first at position 3"):
        Table(inputs, np.zeros(5, dtype=int), np.arange(5))
    with pytest.raises(DataError, match="position 3"):
        Table(list(inputs), np.zeros(5, dtype=int), np.arange(5))


def test_source_refuses_unknown_labels_empty_splits_and_double_names():
    with pytest.raises(DataError, match="Unknown label in the test split of toy: 1"):
        Source("toy", "array", ("a",), Table(np.eye(1), np.array([0]), np.arange(1)), table())
    with pytest.raises(DataError, match="train split of toy is empty"):
        Source("toy", "array", ("a", "b"), table(0), table())
    with pytest.raises(DataError, match="more than once: a"):
        Source("toy", "array", ("a", "a"), table(), table())
    with pytest.raises(DataError, match="modalities"):
        Source("toy", "sound", ("a", "b"), table(), table())


def test_fingerprint_changes_with_content_labels_and_names():
    one = Source("toy", "array", ("a", "b"), table(), table(prefix="test"))
    renamed = Source("other", "array", ("a", "b"), table(), table(prefix="test"))
    classes = Source("toy", "array", ("a", "c"), table(), table(prefix="test"))
    labels = Source("toy", "array", ("a", "b"), Table(np.eye(4), np.zeros(4, dtype=int), table().ids), table())
    assert one.fingerprint == renamed.fingerprint
    assert len({one.fingerprint, classes.fingerprint, labels.fingerprint}) == 3


def test_duplicates_between_train_and_test_are_counted():
    source = Source("toy", "array", ("a", "b"), table(), table(6, prefix="test"))
    assert source.n_duplicates == 0  # rows of different length
    again = Source("toy", "array", ("a", "b"), table(), table(prefix="test").take(np.array([0, 1, 2])))
    assert again.describe()["test_samples_also_in_train"] == 3


@given(
    strata=st.lists(st.integers(0, 5), min_size=1, max_size=60),
    seed=st.integers(0, 2**31),
    count=st.integers(1, 8),
)
def test_choose_per_class_takes_the_asked_number_of_each(strata, seed, count):
    values = np.array(strata)
    chosen = choose_per_class(values, seed, count=count)
    assert np.array_equal(chosen, np.unique(chosen))
    for value in np.unique(values):
        assert (values[chosen] == value).sum() == min(count, (values == value).sum())
    assert np.array_equal(chosen, choose_per_class(values, seed, count=count))


@given(
    sizes=st.lists(st.integers(2, 30), min_size=1, max_size=5),
    share=st.floats(0.01, 0.99),
    seed=st.integers(0, 1000),
)
def test_a_share_takes_some_and_leaves_some(sizes, share, seed):
    strata = np.repeat(np.arange(len(sizes)), sizes)
    chosen = choose_per_class(strata, seed, share=share)
    for value, size in enumerate(sizes):
        assert (strata[chosen] == value).sum() == min(max(1, round(share * size)), size - 1)


def test_the_draw_of_a_class_does_not_depend_on_the_others():
    alone = choose_per_class(np.full(20, 3), 7, count=5)
    beside = choose_per_class(np.array([3] * 20 + [4] * 20), 7, count=5)
    assert np.array_equal(alone, beside[:5])


def test_a_share_of_a_single_sample_is_refused():
    with pytest.raises(DataError, match="single training sample, at position 2"):
        choose_per_class(np.array([0, 0, 1]), 0, share=0.5)

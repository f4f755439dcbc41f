from __future__ import annotations

import pickle
from dataclasses import replace

import numpy as np
import pytest

from tangentcl.data import domain_incremental, from_arrays, join_domains, load, permuted, rotated
from tangentcl.data.transforms import to_image
from tangentcl.errors import ConfigError, DataError


def pictures(names: list[str], seed: int = 0):
    rng = np.random.default_rng(seed)
    x = rng.integers(0, 255, (8, 5, 5), dtype=np.uint8)
    return from_arrays(x, np.arange(8) % 2, x[:4], np.arange(4) % 2, class_names=names, name=f"p{seed}")


def test_joined_sources_keep_their_samples_and_match_classes_by_name():
    joined = join_domains({"photo": pictures(["cat", "dog"]), "sketch": pictures(["dog", "cat"], 1)})
    assert joined.domain_names == ("photo", "sketch")
    assert joined.class_names == ("cat", "dog")
    assert joined.train.labels.tolist() == [0, 1] * 4 + [1, 0] * 4
    assert joined.train.domains.tolist() == [0] * 8 + [1] * 8
    assert np.array_equal(joined.train.inputs[9], pictures(["dog", "cat"], 1).train.inputs[1])
    stream = domain_incremental([pictures(["cat", "dog"]), pictures(["dog", "cat"], 1)])
    assert [task.name for task in stream] == ["p0", "p1"]


def test_sources_that_do_not_fit_together_are_refused():
    with pytest.raises(DataError, match="only one of them: cow, dog"):
        join_domains({"a": pictures(["cat", "dog"]), "b": pictures(["cat", "cow"])})
    with pytest.raises(DataError, match="at least two sources"):
        join_domains([pictures(["cat", "dog"])])
    with pytest.raises(DataError, match="at least two sources with different names"):
        join_domains([pictures(["cat", "dog"]), pictures(["cat", "dog"])])
    with_validation = replace(pictures(["cat", "dog"]), validation=pictures(["cat", "dog"]).test)
    with pytest.raises(DataError, match="validation"):
        join_domains({"a": pictures(["cat", "dog"]), "b": with_validation})


def test_a_quarter_turn_is_exact_and_zero_changes_nothing():
    source = pictures(["cat", "dog"])
    turned = rotated(source, [0, 90])
    original = source.train.inputs[3]
    assert np.array_equal(turned.train.inputs[3], original)
    assert np.array_equal(np.asarray(turned.train.inputs[8 + 3]), np.rot90(original))
    assert turned.test.domains.tolist() == [0] * 4 + [1] * 4
    assert turned.n_duplicates == 8  # the toy's test images are training images; turned ones count with turned ones


def test_corners_are_filled_with_the_background():
    white = np.full((9, 9), 255, dtype=np.uint8)
    white[4, 4] = 0
    source = from_arrays([white] * 4, [0, 0, 1, 1], test_share=0.5)
    assert np.asarray(rotated(source, [30]).train.inputs[0])[0, 0] == 255
    colour = from_arrays([np.full((9, 9, 3), (200, 100, 50), dtype=np.uint8)] * 4, [0, 0, 1, 1], test_share=0.5)
    assert np.asarray(rotated(colour, [30]).train.inputs[0])[0, 0].tolist() == [200, 100, 50]


def test_permutations_move_every_image_alike():
    source = pictures(["cat", "dog"])
    moved = permuted(source, [0, 3, 4])
    assert np.array_equal(moved.train.inputs[0], source.train.inputs[0])
    order = np.random.RandomState(3).permutation(25)
    for i in range(3):
        assert np.array_equal(moved.train.inputs[8 + i].ravel(), source.train.inputs[i].ravel()[order])
    assert not np.array_equal(moved.train.inputs[8], moved.train.inputs[16])
    colour = from_arrays(np.arange(4 * 12, dtype=np.uint8).reshape(4, 2, 2, 3), [0, 0, 1, 1], test_share=0.5)
    first = permuted(colour, [1]).train.inputs[0]
    assert sorted(first.reshape(4, 3)[:, 0].tolist()) == sorted(colour.train.inputs[0].reshape(4, 3)[:, 0].tolist())


def test_digits_have_a_domain_stream_whose_images_really_turn():
    stream = domain_incremental(load("digits"), rotations=[0, 45])
    one, two = (np.asarray(to_image(task.train[0][0])) for task in stream)
    assert one.shape == two.shape == (8, 8)
    assert np.abs(one.astype(int) - two).mean() > 10
    assert len(stream[0].train) == len(stream[1].train) == 1347


def test_fingerprints_differ_between_angles():
    source = pictures(["cat", "dog"])
    prints = [rotated(source, a).fingerprint for a in ([0, 10], [0, 20])] + [permuted(source, [0, 10]).fingerprint]
    assert len(set(prints)) == 3


def test_wrapped_images_can_be_sent_to_other_processes():
    turned = rotated(pictures(["cat", "dog"]), [0, 90])
    assert np.array_equal(
        np.asarray(pickle.loads(pickle.dumps(turned)).train.inputs[8]), np.asarray(turned.train.inputs[8])
    )


def test_only_images_without_domains_can_be_turned():
    texts = from_arrays(["a", "b", "c", "d"], [0, 0, 1, 1])
    with pytest.raises(DataError, match="Only images"):
        rotated(texts, [0, 1])
    with pytest.raises(DataError, match="has domains already"):
        permuted(rotated(pictures(["cat", "dog"]), [0, 90]), [1])
    with pytest.raises(ConfigError, match="different rotations"):
        rotated(pictures(["cat", "dog"]), [5, 5.0])
    with pytest.raises(ConfigError, match="one or more"):
        permuted(pictures(["cat", "dog"]), [])

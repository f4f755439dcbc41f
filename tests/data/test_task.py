from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from tangentcl.data import ArrayTransform, Samples, TaskStream, class_incremental, from_arrays
from tangentcl.errors import DataError


def stream() -> TaskStream:
    x = np.arange(48, dtype=np.float32).reshape(24, 2)
    return class_incremental(from_arrays(x, np.arange(24) % 4, x + 100, np.arange(24) % 4), 2)


def changed(which: int, **fields) -> TaskStream:
    made = stream()
    tasks = list(made.tasks)
    tasks[which] = replace(tasks[which], **fields)
    return replace(made, tasks=tuple(tasks))


def nothing(samples: Samples) -> Samples:
    return samples.subset([])


def test_a_sound_stream_passes_and_behaves_like_a_sequence():
    made = stream()
    assert made.check() is made
    assert len(made) == 2
    assert [task.index for task in made] == [0, 1]
    assert made[1].n_seen == made.n_classes == 4


def test_a_training_sample_in_the_test_split_is_found():
    made = stream()
    leak = made[0].train.subset([0])
    with pytest.raises(DataError, match=r"more than one place: 1; train/0 is in train of task T1 and in test of"):
        changed(0, test=Samples.concat([made[0].test, leak])).check()


def test_a_training_sample_in_two_tasks_is_found():
    made = stream()
    leak = made[0].train.subset([0])
    again = Samples(leak.table, leak.positions, np.array([2]))
    both = Samples.concat([made[1].train, again])
    with pytest.raises(DataError, match="train of task T1 and in train of task T2"):
        changed(1, train=both, train_eval=both).check()


def test_a_validation_sample_that_is_trained_on_is_found():
    made = stream()
    with pytest.raises(DataError, match="validation of task T1"):
        changed(0, validation=made[0].train.subset([2])).check()


@pytest.mark.parametrize("split", ["train", "test", "validation"])
def test_an_empty_split_is_found(split):
    empty = nothing(stream()[1].test)
    fields = {"train": empty, "train_eval": empty} if split == "train" else {split: empty}
    with pytest.raises(DataError, match=f"Task T2 has no {split} sample"):
        changed(1, **fields).check()


def test_a_class_in_two_tasks_is_found():
    with pytest.raises(DataError, match=r"repeats the classes \[0\]"):
        changed(1, classes=(0, 2, 3)).check()


def test_labels_must_be_contiguous_in_order_of_arrival():
    with pytest.raises(DataError, match="contiguous"):
        changed(1, classes=(3, 2), new_classes=(3, 2)).check()
    with pytest.raises(DataError, match="contiguous"):
        changed(0, n_seen=3).check()


def test_samples_of_foreign_classes_are_found():
    made = stream()
    with pytest.raises(DataError, match=r"test samples of classes \[2, 3\]"):
        changed(0, test=made[1].test).check()


def test_wrong_index_empty_task_other_evaluation_samples_and_empty_stream_are_found():
    made = stream()
    with pytest.raises(DataError, match="says it is number 5"):
        changed(0, index=5).check()
    with pytest.raises(DataError, match="no class"):
        changed(0, classes=()).check()
    with pytest.raises(DataError, match="other training samples"):
        changed(0, train_eval=made[0].train.subset([0])).check()
    with pytest.raises(DataError, match="no task"):
        replace(made, tasks=()).check()
    with pytest.raises(DataError, match="scenario"):
        replace(made, scenario="classes").check()
    with pytest.raises(DataError, match="Expected 5 classes"):
        replace(made, class_names=(*made.class_names, "x")).check()


def test_transforms_are_set_without_touching_the_stream():
    made = stream()
    train, evaluation = ArrayTransform(), ArrayTransform()
    dressed = made.with_transforms(train, evaluation)
    assert made[0].train.transform is None
    for task in dressed:
        assert task.train.transform is train
        assert task.train_eval.transform is evaluation
        assert task.test.transform is evaluation
    dressed.check()


def test_description_is_json_and_complete():
    made = stream().with_transforms(ArrayTransform(), None)
    described = json.loads(json.dumps(made.describe()))
    assert described["tasks"][1] == {"name": "T2", "n_classes": 2, "n_train": 12, "n_test": 12}
    assert described["transforms"] == {"train": {"kind": "array"}, "evaluation": None}
    assert described["options"]["n_tasks"] == 2
    assert described["fingerprint"] == made.source.fingerprint
    assert described["source"]["test_samples_also_in_train"] == 0

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tangentcl.data import STREAMS, Source, TaskStream, class_incremental, few_shot, from_arrays, load, task_incremental
from tangentcl.data import domain_incremental as domains
from tangentcl.errors import ConfigError, DataError


def source(n_classes: int, n_train: int = 4, n_test: int = 2, validation: bool = False, **extra) -> Source:
    def split(n: int) -> tuple[np.ndarray, np.ndarray]:
        labels = np.tile(np.arange(n_classes), n)
        return np.stack([labels, np.arange(len(labels)) + 1000 * n], axis=1).astype(np.float32), labels

    held = dict(zip(("x_validation", "y_validation"), split(1))) if validation else {}
    names = [f"c{i}" for i in range(n_classes)]
    return from_arrays(*split(n_train), *split(n_test), class_names=names, **held, **extra)


def grouped() -> Source:
    return source(6, groups={"vowels": ("c0", "c4"), "rest": ("c1", "c2", "c3"), "last": ("c5",)})


def sizes(stream: TaskStream) -> list[int]:
    return [len(task.classes) for task in stream]


def assert_partition(stream: TaskStream, given: Source, n_classes: int, n_train: int) -> None:
    assert sorted(label for task in stream for label in task.classes) == list(range(n_classes))
    assert sorted(stream.class_order) == sorted(set(stream.class_order))
    ids = np.concatenate([task.train.ids for task in stream])
    assert len(ids) == len(set(ids)) == n_train
    for task in stream:
        for samples in (task.train, task.train_eval, task.test):
            source_labels = samples.table.labels[samples.positions]
            assert np.array_equal(np.array(stream.class_order)[samples.labels], source_labels)
            assert set(samples.labels.tolist()) == set(task.classes)
    assert [given.class_names[label] for label in stream.class_order] == list(stream.class_names)


@settings(deadline=None, max_examples=60)
@given(n_classes=st.integers(1, 12), data=st.data(), order_seed=st.none() | st.integers(0, 5000))
def test_equal_tasks_partition_classes_and_samples(n_classes, data, order_seed):
    n_tasks = data.draw(st.integers(1, n_classes))
    given_source = source(n_classes)
    stream = class_incremental(given_source, n_tasks, order_seed=order_seed)
    assert_partition(stream, given_source, n_classes, 4 * n_classes)
    assert len(stream) == n_tasks
    assert max(sizes(stream)) - min(sizes(stream)) <= 1
    assert sizes(stream) == sorted(sizes(stream), reverse=True)


@settings(deadline=None, max_examples=60)
@given(n_classes=st.integers(1, 12), data=st.data(), order_seed=st.integers(0, 5000))
def test_base_and_increment_have_the_asked_sizes(n_classes, data, order_seed):
    base = data.draw(st.none() | st.integers(1, n_classes))
    increment = data.draw(st.integers(1, n_classes))
    given_source = source(n_classes)
    stream = class_incremental(given_source, base=base, increment=increment, order_seed=order_seed)
    assert_partition(stream, given_source, n_classes, 4 * n_classes)
    found = sizes(stream)
    assert found[0] == (base or increment)
    assert all(size == increment for size in found[1:-1])
    assert len(found) == 1 or 1 <= found[-1] <= increment


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 10_000))
def test_same_seed_same_stream_other_seed_other_order(seed):
    given_source = source(12)
    one, two, other = (class_incremental(given_source, 3, order_seed=s) for s in (seed, seed, seed + 1))
    assert one.describe() == two.describe()
    assert all(np.array_equal(a.train.ids, b.train.ids) for a, b in zip(one, two))
    assert one.class_order != other.class_order


@settings(deadline=None, max_examples=40)
@given(share=st.floats(0.05, 0.6), split_seed=st.integers(0, 100), limit=st.none() | st.integers(2, 8))
def test_validation_is_a_stratified_share_of_the_training_samples(share, split_seed, limit):
    n_train = min(limit or 8, 8)
    stream = class_incremental(source(4, 8), 2, validation=share, split_seed=split_seed, train_per_class=limit)
    held = min(max(1, round(share * n_train)), n_train - 1)
    for task in stream:
        assert np.bincount(task.validation.labels, minlength=4)[list(task.classes)].tolist() == [held] * 2
        assert np.bincount(task.train.labels, minlength=4)[list(task.classes)].tolist() == [n_train - held] * 2
    reordered = class_incremental(
        source(4, 8), 2, validation=share, split_seed=split_seed, train_per_class=limit, order_seed=3
    )
    ids = [set(np.concatenate([task.validation.ids for task in made])) for made in (stream, reordered)]
    assert ids[0] == ids[1]


def test_the_class_order_of_seed_1993_is_the_fields():
    # First classes of CIFAR-100 in iCaRL, PyCIL and PILOT with seed 1993.
    stream = class_incremental(source(100, 2, 1), 10, order_seed=1993)
    assert stream.class_order[:10] == (68, 56, 78, 8, 23, 84, 90, 65, 74, 76)


def test_no_seed_keeps_the_order_of_the_source():
    assert class_incremental(source(5), 5).class_order == (0, 1, 2, 3, 4)


def test_uneven_sizes():
    assert sizes(class_incremental(source(10), 4)) == [3, 3, 2, 2]
    assert sizes(class_incremental(source(10), base=5, increment=2)) == [5, 2, 2, 1]
    assert sizes(class_incremental(source(10), 3, base=6)) == [6, 2, 2]
    assert sizes(class_incremental(source(10), 1, base=10)) == [10]
    assert sizes(class_incremental(source(10), increment=4)) == [4, 4, 2]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "Give n_tasks"),
        ({"n_tasks": 11}, "n_tasks of at most 10, the number of classes, got 11"),
        ({"n_tasks": 0}, "n_tasks as an integer of at least 1"),
        ({"n_tasks": "5"}, "n_tasks as an integer"),
        ({"n_tasks": True}, "n_tasks as an integer"),
        ({"base": 5}, "Give n_tasks"),
        ({"base": 11, "increment": 1}, "base of at most 10"),
        ({"base": 5, "increment": 0}, "increment as an integer of at least 1"),
        ({"n_tasks": 3, "base": 4, "increment": 2}, "make 4 tasks of 10 classes, but n_tasks is 3"),
        ({"n_tasks": 5, "base": 8}, "2 classes are left after base=8"),
        ({"n_tasks": 1, "base": 8}, "2 classes are left"),
        ({"n_tasks": 2, "validation": 1.0}, "share between 0 and 1"),
        ({"n_tasks": 2, "train_per_class": 0}, "train_per_class as an integer of at least 1"),
        ({"n_tasks": 2, "test_per_class": -1}, "test_per_class as an integer of at least 1"),
        ({"groups": True}, "has no groups"),
        ({"n_tasks": 2, "order_seed": -1}, r"seed as an integer from 0 to 2\*\*32 - 1, got -1"),
        ({"n_tasks": 2, "order_seed": "1993"}, "seed as an integer"),
        ({"n_tasks": 2, "validation": 0.1, "split_seed": 1.5}, "seed as an integer"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        class_incremental(source(10), **settings)


def test_groups_of_the_source_become_tasks():
    stream = class_incremental(grouped(), groups=True)
    assert [task.name for task in stream] == ["vowels", "rest", "last"]
    assert stream.class_names == ("c0", "c4", "c1", "c2", "c3", "c5")
    assert_partition(stream, grouped(), 6, 24)
    shuffled = class_incremental(grouped(), groups=True, order_seed=2)
    assert [task.name for task in shuffled] == [[*grouped().groups][i] for i in np.random.RandomState(2).permutation(3)]


def test_groups_by_name_and_new_groups():
    assert [task.name for task in class_incremental(grouped(), groups=["last", "vowels"])] == ["last", "vowels"]
    lists = class_incremental(source(4), groups=[["c3"], ["c0", "c1"]])
    assert lists.class_order == (3, 0, 1)
    assert_partition(lists, source(4), 3, 12)
    assert class_incremental(source(4), 2, groups={"a": ["c1"], "b": ["c0", "c2", "c3"]})[1].name == "b"
    json.dumps(lists.describe())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"groups": ["vowel"]}, "Did you mean 'vowels'"),
        ({"groups": ["vowels", "vowels"]}, "named twice"),
        ({"groups": [["c0"], ["c9"]]}, "Unknown class 'c9' in group T2"),
        ({"groups": [["c0"], ["c0", "c1"]]}, "'c0' is in the groups T1 and T2"),
        ({"groups": {"a": []}}, "Group a has no class"),
        ({"groups": []}, "at least one group"),
        ({"groups": True, "increment": 2}, "no room for base or increment"),
        ({"groups": True, "n_tasks": 2}, "3 groups make 3 tasks"),
    ],
)
def test_groups_that_do_not_fit_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        class_incremental(grouped(), **settings)


def test_the_sources_validation_split_is_used_as_such():
    stream = class_incremental(source(4, validation=True), 2)
    assert [len(task.validation) for task in stream] == [2, 2]
    assert sum(len(task.train) for task in stream) == 16
    with pytest.raises(ConfigError, match="validation split of its own"):
        class_incremental(source(4, validation=True), 2, validation=0.1)


def test_limits_keep_so_many_of_each_class():
    stream = class_incremental(source(4, 8, 5), 2, train_per_class=3, test_per_class=2)
    assert [np.bincount(task.train.labels).max() for task in stream] == [3, 3]
    assert [len(task.test) for task in stream] == [4, 4]
    other = class_incremental(source(4, 8, 5), 2, train_per_class=3, split_seed=1)
    assert set(stream[0].train.ids) != set(other[0].train.ids)


def test_a_class_without_training_samples_is_named():
    x, y = np.eye(4), np.array([0, 0, 2, 2])
    with pytest.raises(DataError, match="Classes of arrays without training samples: b"):
        class_incremental(from_arrays(x, y, x, y, class_names=["a", "b", "c"]), 2)


def test_a_task_without_test_samples_is_refused():
    with pytest.raises(DataError, match="Task T2 has no test sample"):
        class_incremental(from_arrays(np.eye(2), [0, 1], np.eye(2)[:1], [0]), 2)


def test_task_incremental_differs_in_the_scenario_only():
    one, two = class_incremental(source(6), 3, order_seed=1), task_incremental(source(6), 3, order_seed=1)
    assert (one.scenario, two.scenario) == ("class", "task")
    assert one.class_order == two.class_order
    assert np.array_equal(one[1].train.ids, two[1].train.ids)


@settings(deadline=None, max_examples=40)
@given(
    base=st.integers(1, 4),
    n_way=st.integers(1, 3),
    sessions=st.integers(1, 3),
    k=st.integers(1, 4),
    seed=st.integers(0, 99),
)
def test_few_shot_sessions_have_n_ways_and_k_shots(base, n_way, sessions, k, seed):
    n_classes = base + n_way * sessions
    given_source = source(n_classes, 4)
    make = {"base_classes": base, "n_way": n_way, "k_shot": k, "split_seed": seed}
    stream = few_shot(given_source, **make, order_seed=seed)
    assert_partition(stream, given_source, n_classes, 4 * base + k * n_way * sessions)
    assert sizes(stream) == [base] + [n_way] * sessions
    assert len(stream[0].train) == 4 * base
    for task in stream.tasks[1:]:
        assert np.unique(task.train.labels, return_counts=True)[1].tolist() == [k] * n_way
        assert len(task.test) == 2 * n_way
    again = few_shot(given_source, **make, order_seed=seed)
    assert all(np.array_equal(a.train.ids, b.train.ids) for a, b in zip(stream, again))


def test_shots_do_not_depend_on_the_order_and_the_base_can_be_limited():
    one = few_shot(source(6, 8), base_classes=2, n_way=2, k_shot=3, train_per_class=5)
    assert [len(task.train) for task in one] == [10, 6, 6]
    assert [task.name for task in one] == ["base", "session 1", "session 2"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"base_classes": 5, "n_way": 3, "k_shot": 1}, "Try base_classes=7"),
        ({"base_classes": 10, "n_way": 1, "k_shot": 1}, "base_classes between 1 and 9"),
        ({"base_classes": 0, "n_way": 1, "k_shot": 1}, "base_classes between 1 and 9"),
        ({"base_classes": 5, "n_way": 0, "k_shot": 1}, "n_way as an integer"),
        ({"base_classes": 5, "n_way": 5, "k_shot": 5}, "has 4 training samples, too few for k_shot=5"),
    ],
)
def test_few_shot_settings_that_do_not_fit_are_refused(settings, message):
    with pytest.raises((ConfigError, DataError), match=message):
        few_shot(source(10), **settings)


def test_domains_bring_the_same_classes_again():
    names = ["sun", "rain", "snow"]
    given_source = source(2, 6, 3, domains_train=np.repeat(names, 4), domains_test=np.repeat(names, 2))
    stream = domains(given_source, order_seed=0)
    expected = [sorted(names)[i] for i in np.random.RandomState(0).permutation(3)]
    assert [task.name for task in stream] == expected
    assert [task.new_classes for task in stream] == [(0, 1), (), ()]
    assert all(task.classes == (0, 1) and task.n_seen == 2 for task in stream)
    ids = np.concatenate([task.train.ids for task in stream])
    assert len(set(ids)) == len(ids) == 12


def test_limits_and_validation_count_within_each_domain():
    stream = domains(load("digits"), rotations=[0, 90], train_per_class=10, test_per_class=3, validation=0.2)
    for task in stream:
        assert np.bincount(task.train.labels).tolist() == [8] * 10
        assert np.bincount(task.validation.labels).tolist() == [2] * 10
        assert np.bincount(task.test.labels).tolist() == [3] * 10


def test_a_domain_without_test_samples_is_refused():
    given_source = source(2, 4, 2, domains_train=["a", "b"] * 4, domains_test=["a"] * 4)
    with pytest.raises(DataError, match="Task b has no test sample"):
        domains(given_source)


def test_domain_settings_that_do_not_fit_are_refused():
    with pytest.raises(DataError, match="has no domains"):
        domains(source(2))
    with pytest.raises(ConfigError, match="got both"):
        domains(load("digits"), rotations=[0], permutations=[0])


@pytest.mark.parametrize("kind", [class_incremental, task_incremental])
@pytest.mark.parametrize("own", [True, False])
def test_tuning_sees_the_first_tasks_and_their_validation_samples_alone(kind, own):
    given_source = source(6, validation=own)
    share = {} if own else {"validation": 0.25}
    whole = kind(given_source, 3, order_seed=7, **share)
    tuning = kind(given_source, 3, order_seed=7, tuning_tasks=2, **share)
    assert (len(tuning), tuning.n_classes, tuning.options["tuning_tasks"]) == (2, 4, 2)
    assert tuning.class_names == whole.class_names[:4]
    for task, full in zip(tuning, whole):
        assert (task.n_tasks, task.validation) == (2, None)
        assert task.classes == full.classes
        assert task.train.ids.tolist() == full.train.ids.tolist()
        assert task.test.ids.tolist() == full.validation.ids.tolist()


def test_tuning_of_domains():
    given_source, settings = load("digits"), {"rotations": [0, 30, 60], "validation": 0.2, "train_per_class": 10}
    whole, tuning = domains(given_source, **settings), domains(given_source, **settings, tuning_tasks=2)
    assert [task.name for task in tuning] == [task.name for task in whole][:2]
    assert [t.test.ids.tolist() for t in tuning] == [t.validation.ids.tolist() for t in whole][:2]


def test_tuning_without_validation_samples_or_tasks_is_refused():
    with pytest.raises(ConfigError, match="has no validation samples to tune on"):
        class_incremental(source(4), 2, tuning_tasks=1)
    with pytest.raises(ConfigError, match="at most 2, the number of tasks, got 3"):
        class_incremental(source(4, validation=True), 2, tuning_tasks=3)
    with pytest.raises(ConfigError, match="at least 1, got 0"):
        class_incremental(source(4, validation=True), 2, tuning_tasks=0)


def test_the_table_of_streams_holds_all_of_them():
    assert {
        "class_incremental": class_incremental,
        "domain_incremental": domains,
        "task_incremental": task_incremental,
        "few_shot": few_shot,
    } == STREAMS

"""A stream learned task after task: which cells of the matrix are filled, and with what."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tangentcl.data import (
    ArrayTransform,
    Samples,
    Source,
    Task,
    TaskStream,
    class_incremental,
    domain_incremental,
    few_shot,
    from_arrays,
    task_incremental,
)
from tangentcl.errors import ConfigError, DataError, ModelError, NonFiniteLoss
from tangentcl.methods import NCM, Finetune, Joint, Method, Replay
from tangentcl.nn import Backbone
from tangentcl.training import Runtime, StreamResult, TrainingPlan, run_stream
from tangentcl.training.stream import learn_task

PLAN = TrainingPlan(epochs=1, batch_size=16, lr=0.05, device="cpu")
Make = Callable[[], Backbone]


def with_arrays(stream: TaskStream) -> TaskStream:
    return stream.with_transforms(ArrayTransform(), ArrayTransform())


class Oracle(Method):
    """Reads the scores from the sample itself, ``[B, C]``, and shows the classes seen so far."""

    def __init__(self) -> None:
        super().__init__()
        self.n_seen = 0

    def begin_task(self, task: Task) -> None:
        self.n_seen = task.n_seen

    def training_loss(self, x: Any, y: Tensor) -> dict[str, Tensor]:
        """Nothing to train."""
        return {}

    def end_task(self, task: Task) -> None:
        """Nothing to consolidate."""

    def predict(self, x: Tensor) -> Tensor:
        """The sample."""
        return x[:, : self.n_seen]


def scored() -> Source:
    """Four classes; the test samples are the scores that `Oracle` gives, chosen by hand."""
    test = np.array(
        [
            [9, 1, 5, 0],  # class 0, wins over all
            [3, 1, 5, 0],  # class 0, loses to class 2, wins within {0, 1}
            [1, 3, 5, 9],  # class 1, loses to 2 and 3, wins within {0, 1}
            [4, 3, 0, 0],  # class 1, loses within {0, 1}
            [9, 0, 5, 1],  # class 2, loses to class 0, wins within {2, 3}
            [0, 0, 1, 2],  # class 2, loses within {2, 3}
            [0, 0, 1, 2],  # class 3, wins
            [8, 0, 1, 2],  # class 3, loses to class 0, wins within {2, 3}
        ],
        dtype=np.float32,
    )
    labels = np.repeat(np.arange(4), 2)
    train = np.arange(32, dtype=np.float32).reshape(8, 4) + 100
    return from_arrays(train, labels, test, labels, name="scored", modality="array")


def test_the_matrix_of_a_class_incremental_stream_by_hand() -> None:
    result = run_stream(Oracle(), with_arrays(class_incremental(scored(), n_tasks=2)), PLAN)
    np.testing.assert_array_equal(result.matrix, [[3 / 4, np.nan], [1 / 4, 1 / 4]])
    np.testing.assert_array_equal(result.class_correct, [[2, 1, np.nan, np.nan], [1, 0, 0, 1]])
    assert result.class_total.tolist() == [2, 2, 2, 2]
    assert result.n_test.tolist() == [4, 4]
    assert result.predictions[1][0].tolist() == [0, 2, 3, 0]


def test_in_a_task_incremental_stream_only_the_classes_of_the_task_compete() -> None:
    result = run_stream(Oracle(), with_arrays(task_incremental(scored(), n_tasks=2)), PLAN)
    np.testing.assert_array_equal(result.matrix, [[3 / 4, np.nan], [3 / 4, 3 / 4]])
    np.testing.assert_array_equal(result.class_correct, [[2, 1, np.nan, np.nan], [2, 1, 1, 2]])
    assert result.predictions[1][1].tolist() == [2, 3, 3, 3]
    assert result.summary()["last_accuracy"] == pytest.approx(6 / 8)


def test_in_a_domain_incremental_stream_every_domain_is_tested_after_every_task(tiny_backbone: Make) -> None:
    rng = np.random.default_rng(0)
    labels, domains = np.tile(np.repeat(np.arange(2), 10), 3), np.repeat(np.arange(3), 20)
    x = (rng.normal(size=(60, 3, 4)) + labels[:, None, None] + 5 * domains[:, None, None]).astype(np.float32)
    source = from_arrays(
        *(x, labels, x[::2] + 0.01, labels[::2]),
        domains_train=domains,
        domains_test=domains[::2],
        modality="array",
    )
    result = run_stream(NCM(tiny_backbone()), with_arrays(domain_incremental(source)), PLAN)
    assert result.matrix.shape == (3, 3)
    assert not np.isnan(result.matrix).any()
    assert result.class_total.tolist() == [15, 15]
    np.testing.assert_allclose(result.class_correct.sum(axis=1), (result.matrix * result.n_test).sum(axis=1))
    assert result.summary()["last_accuracy"] == pytest.approx(result.matrix[-1].mean())


def test_a_few_shot_stream(tiny_source: Source, tiny_backbone: Make) -> None:
    stream = with_arrays(few_shot(tiny_source, base_classes=2, n_way=2, k_shot=3))
    result = run_stream(NCM(tiny_backbone()), stream, PLAN)
    assert [len(task.train) for task in stream] == [40, 6, 6]
    assert np.isnan(result.matrix[np.triu_indices(3, 1)]).all()
    assert not np.isnan(result.matrix[np.tril_indices(3)]).any()
    assert result.scenario == "few_shot"


def test_an_uneven_stream_of_one_class_tasks(tiny_source: Source, tiny_backbone: Make) -> None:
    stream = with_arrays(class_incremental(tiny_source, base=4, increment=1))
    result = run_stream(Finetune(tiny_backbone(), rank=2), stream, PLAN)
    assert result.n_test.tolist() == [32, 8, 8]
    assert result.summary()["last_accuracy"] == pytest.approx(np.nansum(result.class_correct[-1]) / 48)


def test_accuracies_equal_a_count_of_the_predictions(tiny_stream: TaskStream, tiny_backbone: Make) -> None:
    result = run_stream(Finetune(tiny_backbone(), rank=2), tiny_stream, PLAN)
    assert len(result.predictions) == 3
    for t, row in enumerate(result.predictions):
        assert sorted(row) == list(range(t + 1))
        counted = np.zeros(6)
        for k, predicted in row.items():
            hits = predicted == tiny_stream[k].test.labels
            assert result.matrix[t, k] == hits.mean()
            counted += np.bincount(tiny_stream[k].test.labels[hits], minlength=6)
        seen = tiny_stream[t].n_seen
        assert result.class_correct[t, :seen].tolist() == counted[:seen].tolist()
        assert np.isnan(result.class_correct[t, seen:]).all()


def test_joint_leaves_the_earlier_rows_empty(tiny_stream: TaskStream, tiny_backbone: Make) -> None:
    events: list[tuple[str, Any]] = []
    result = run_stream(
        Joint(tiny_backbone(), rank=2), tiny_stream, PLAN, emit=lambda event, f: events.append((event, f.get("task")))
    )
    assert np.isnan(result.matrix[:2]).all()
    assert not np.isnan(result.matrix[2]).any()
    assert result.predictions[:2] == [{}, {}]
    assert np.isnan(result.class_correct[:2]).all()
    assert [e for e in events if e[0] != "step"] == [
        ("run_started", None),
        ("task_started", 2),
        ("task_trained", 2),
        ("evaluated", 2),
        ("run_finished", None),
    ]


def test_events_follow_the_tasks(tiny_stream: TaskStream, tiny_backbone: Make) -> None:
    events: list[tuple[str, dict[str, Any]]] = []
    run_stream(NCM(tiny_backbone()), tiny_stream, PLAN, emit=lambda event, fields: events.append((event, fields)))
    names = [event for event, _ in events]
    assert names == ["run_started", *["task_started", "task_trained", "evaluated"] * 3, "run_finished"]
    evaluated = [fields["accuracy"] for event, fields in events if event == "evaluated"]
    assert [sum(a is not None for a in row) for row in evaluated] == [1, 2, 3]
    json.dumps(events, allow_nan=False)


def test_the_backbone_brings_transforms_or_the_stream_must(tiny_source: Source, tiny_backbone: Make) -> None:
    bare = class_incremental(tiny_source, n_tasks=3)
    with pytest.raises(DataError, match=r"have no transform, and the method's backbone brings none. Use stream.with_"):
        run_stream(NCM(tiny_backbone()), bare, PLAN)
    features = tiny_backbone()
    features.eval_transform = ArrayTransform()
    given = run_stream(NCM(features), bare, PLAN)
    np.testing.assert_array_equal(given.matrix, run_stream(NCM(tiny_backbone()), with_arrays(bare), PLAN).matrix)


class Nothing(NCM):
    """Gives no sample to train on."""

    def training_samples(self, task: Task) -> Samples:
        return task.train.subset([])


def test_a_task_without_samples_is_named(tiny_stream: TaskStream, tiny_backbone: Make) -> None:
    with pytest.raises(DataError, match=r"Nothing gave no sample to train on at task 0 \('.+'\)"):
        learn_task(Nothing(tiny_backbone()), tiny_stream[0], PLAN, Runtime(device="cpu"), lambda event, fields: None)


class Breaking(ArrayTransform):
    """Makes a NaN of the samples whose first number is above a limit."""

    def __call__(self, raw: Any, rng: np.random.Generator | None) -> Tensor:
        made = super().__call__(raw, rng)
        return made if raw[0, 0] < 50 else made * torch.nan


def test_a_loss_that_is_not_finite_names_term_step_and_task(tiny_backbone: Make) -> None:
    x, y = np.random.default_rng(0).normal(size=(40, 3, 4)).astype(np.float32), np.repeat(np.arange(4), 10)
    x[35, 0, 0] = 100
    stream = class_incremental(from_arrays(x, y, x[::5], y[::5], modality="array"), n_tasks=2)
    method = Finetune(tiny_backbone(), tune="head")
    with pytest.raises(NonFiniteLoss, match=r"loss term 'cross_entropy' became nan at step \d of 2 of task 1 \('T2'\)"):
        run_stream(method, stream.with_transforms(Breaking(), ArrayTransform()), PLAN)


def test_an_empty_result_has_the_sizes_of_the_stream(tiny_stream: TaskStream) -> None:
    result = StreamResult.empty(tiny_stream)
    assert np.isnan(result.matrix).all()
    assert (result.n_test.tolist(), result.class_total.tolist()) == ([16] * 3, [8] * 6)


def test_the_global_generator_before_a_run_does_not_matter(tiny_stream: TaskStream, tiny_backbone: Make) -> None:
    matrices = []
    for seed in (1, 2):
        method = Finetune(tiny_backbone(), tune="head")
        torch.manual_seed(seed)
        matrices.append(run_stream(method, tiny_stream, PLAN).matrix)
    np.testing.assert_array_equal(*matrices)


def test_samples_of_a_wrong_shape_are_told_from_other_failures(tiny_backbone: Make) -> None:
    x, y = np.zeros((20, 5), dtype=np.float32), np.arange(20) % 4
    stream = with_arrays(class_incremental(from_arrays(x, y, x, y, name="flat", modality="array"), n_tasks=2))
    for method in (NCM(tiny_backbone()), Finetune(tiny_backbone(), rank=2)):
        with pytest.raises(
            DataError, match=r"stream 'flat.*' come of shape \[5\] .* backbone 'tiny' cannot take \(mat1"
        ):
            run_stream(method, stream, PLAN)


class Unlucky(NCM):
    """Fails for a reason of its own."""

    def end_task(self, task: Task) -> None:
        raise ValueError("unlucky")


def test_other_failures_stay_what_they_are(tiny_stream: TaskStream, tiny_backbone: Make) -> None:
    with pytest.raises(ValueError, match=r"^unlucky$"):
        run_stream(Unlucky(tiny_backbone()), tiny_stream, PLAN)


def test_arguments_of_a_wrong_kind_are_named(tiny_stream: TaskStream, tiny_backbone: Make) -> None:
    method: Any = NCM(tiny_backbone())
    for arguments, message in (
        ((NCM, tiny_stream, PLAN), "needs a Method object as method, got the class NCM"),
        ((method, [tiny_stream[0]], PLAN), "needs a TaskStream object as stream, got a list"),
        ((method, tiny_stream, {"epochs": 1}), "needs a TrainingPlan object as plan, got a dict"),
    ):
        with pytest.raises(ConfigError, match=message):
            run_stream(*arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize("value", ["bundled", torch.nn.Linear(2, 2)])
@pytest.mark.parametrize("kind", [NCM, Finetune, Joint, Replay])
def test_a_method_needs_a_backbone(kind: Any, value: Any) -> None:
    with pytest.raises(ConfigError, match=r"a method needs a tangentcl.nn.Backbone, got (str|Linear). Make one with"):
        kind(value)


@pytest.mark.parametrize("kind", [NCM, Finetune, Joint])
def test_a_method_learns_one_stream(kind: Any, tiny_stream: TaskStream, tiny_backbone: Make) -> None:
    method = kind(tiny_backbone())
    run_stream(method, tiny_stream, PLAN)
    with pytest.raises((ConfigError, ModelError), match=r"make a new one for each stream|grows and never shrinks"):
        run_stream(method, tiny_stream, PLAN)

"""What counts as right now, as predicted and in truth."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from tangentcl.data import TaskStream
from tangentcl.training.old_samples import OldSamples, old_samples
from tangentcl.training.outlook import Outlook, competing_outputs


@pytest.fixture
def old(tiny_stream: TaskStream) -> OldSamples:
    """Samples of classes 0, 0, 1, 2 and 3: two tasks, before the third."""
    samples = old_samples(tiny_stream.tasks[:2], 32, seed=0)
    chosen = [0, 1, 8, 16, 24]
    return dataclasses.replace(samples, samples=samples.samples.subset(chosen), tasks=samples.tasks[chosen])


OUTPUTS = torch.tensor(
    [
        [3.0, 0.0, 1.0, 0.0, 9.0, 0.0],  # right: output 4 does not exist yet
        [1.0, 0.0, 2.0, 0.0, 0.0, 0.0],  # wrong, but right among its own task's classes
        [0.0, 5.0, 0.0, 0.0, 0.0, 0.0],
        [0.0, 0.0, 4.0, 0.0, 0.0, 0.0],
        [0.0, 0.0, 0.0, 1.0, 0.0, 0.0],
    ]
)


def _outlook(old: OldSamples, tiny_stream: TaskStream, *, per_task: bool) -> Outlook:
    drift = torch.zeros(5, 6)
    drift[2, 0], drift[3, 4], drift[4, 4] = 6.0, 3.0, 2.0
    competing = competing_outputs(tiny_stream.tasks[:2], old, 6, per_task=per_task)
    real = OUTPUTS.clone()
    real[2, 0] = real[3, 5] = 7.0
    real[0, 4] = 0.0
    return Outlook(old, OUTPUTS, drift, competing, seen=4).learned(real)


def test_old_outputs_compete_now_and_all_of_them_later(old: OldSamples, tiny_stream: TaskStream) -> None:
    found = _outlook(old, tiny_stream, per_task=False)
    assert old.samples.labels.tolist() == [0, 0, 1, 2, 3]
    assert found.correct("now").tolist() == [True, False, True, True, True]
    assert found.correct("predicted").tolist() == [False, False, False, True, False]
    assert found.correct("real").tolist() == [True, False, False, False, True]
    assert found.margins("now").tolist() == [2.0, -1.0, 5.0, 4.0, 1.0]
    assert found.margins("predicted").tolist() == [-6.0, -8.0 + 7.0, -1.0, 1.0, -1.0]
    assert found.lost("predicted").tolist() == [True, False, True, False, True]
    assert found.at_risk(3).tolist() == [0, 2, 4]
    assert [found.accuracy(when) for when in ("now", "predicted", "real")] == [0.8, 0.2, 0.4]
    quality = found.quality()
    assert quality is not None
    assert quality.accuracy_error == pytest.approx(-0.2)
    assert quality.flip_auc == 0.5 / 4  # really lost are 2 and 3, kept 0 and 4; predicted margins -1, 1 and -6, -1


def test_in_task_incremental_evaluation_its_own_classes_compete(old: OldSamples, tiny_stream: TaskStream) -> None:
    found = _outlook(old, tiny_stream, per_task=True)
    assert found.correct("now").all()
    assert found.correct("predicted").tolist() == [True, True, False, True, True]
    assert found.margins("predicted").tolist() == [3.0, 1.0, -1.0, 4.0, 1.0]


def test_the_truth_is_not_known_before(old: OldSamples, tiny_stream: TaskStream) -> None:
    before = dataclasses.replace(_outlook(old, tiny_stream, per_task=False), real_drift=None)
    assert before.quality() is None
    with pytest.raises(AssertionError, match="before training"):
        before.correct("real")


def test_the_band_is_the_accuracy_with_drifts_off_to_either_side(old: OldSamples, tiny_stream: TaskStream) -> None:
    found = _outlook(old, tiny_stream, per_task=False)
    # Of 6 outputs a drift of length 6, 3 and 2 moves a margin of -1, 1 and -1 by 3.46, 1.73 and 1.15 times the error.
    assert [found.band(error) for error in (0.0, 0.3, 0.6, 0.9)] == [(0.2, 0.2), (0.2, 0.4), (0.0, 0.4), (0.0, 0.6)]

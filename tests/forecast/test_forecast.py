"""What a forecast says about accuracy, samples and classes."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from tangentcl.errors import DataError
from tangentcl.forecast import Forecast
from tangentcl.forecast.old_kernel import FeatureModes

OUTPUTS = torch.tensor([[2.0, 0, 9], [0, 1.0, 0], [0, 3.0, 0], [1.0, 2, 0]])
DRIFT = torch.tensor([[0.0, 0, -9], [0, 0, 5.0], [0, -1.0, 0], [2.0, 0, 0]])
LABELS = torch.tensor([0, 1, 1, 0])


def _forecast(**changes: object) -> Forecast:
    made = Forecast(outputs=OUTPUTS, drift=DRIFT, seen=2, old_kernel=FeatureModes(torch.eye(4), False))
    return dataclasses.replace(made, **changes)  # type: ignore[arg-type]


def test_accuracy_now_counts_the_outputs_seen_and_after_counts_all() -> None:
    assert _forecast().accuracy(LABELS) == (0.75, 0.75)  # one is lost to the new class, one is gained
    assert _forecast(labels=LABELS).accuracy() == (0.75, 0.75)
    with pytest.raises(DataError, match="from 0 to 1, got 2"):
        _forecast().accuracy(torch.tensor([0, 1, 2, 0]))


def test_per_class_margins_flips_and_risk() -> None:
    forecast = _forecast(labels=LABELS)
    classes, now, after = forecast.per_class()
    assert (classes.tolist(), now.tolist(), after.tolist()) == ([0, 1], [0.5, 1.0], [1.0, 0.5])
    before, later = forecast.margins()
    assert (before.tolist(), later.tolist()) == ([2, 1, 3, -1], [2, -4, 2, 1])
    assert forecast.flips().tolist() == [False, True, False, False]
    assert forecast.samples_at_risk(2).tolist() == [1, 0]
    assert forecast.classes_at_risk().tolist() == [1, 0]


def test_labels_that_do_not_fit() -> None:
    with pytest.raises(DataError, match="made without labels"):
        _forecast().accuracy()
    with pytest.raises(DataError, match="expected 4 whole numbers"):
        _forecast().accuracy(torch.tensor([0]))
    with pytest.raises(DataError, match="at least two outputs"):
        _forecast(seen=1).margins(torch.zeros(4, dtype=torch.int64))

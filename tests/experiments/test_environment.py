"""What a record says about the run: enough to compare two figures."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from typing import Any

import pytest
import torch

import tangentcl
from tangentcl.data import Source, TaskStream, class_incremental
from tangentcl.experiments import environment as module
from tangentcl.experiments.environment import device_name, environment, source_revision
from tangentcl.nn import Backbone
from tangentcl.training import Runtime, TrainingPlan


def _about(stream: TaskStream, backbone: Backbone, **plan: Any) -> dict[str, Any]:
    return environment(backbone, stream, TrainingPlan(device="cpu", **plan), Runtime(device="cpu"), (0, 1))


def test_versions_and_protocol_are_complete(tiny_stream: TaskStream, tiny_backbone: Callable[[], Backbone]) -> None:
    about = _about(tiny_stream, tiny_backbone(), batch_size=16, accumulate=2)
    json.dumps(about, allow_nan=False)
    assert about["tangentcl"] == tangentcl.__version__
    assert about["torch"] == about["packages"]["torch"] == torch.__version__
    assert (about["device"], about["precision"], about["processes"]) == ("cpu", "fp32", 1)
    assert about["backbone"]["name"] == "tiny"
    assert about["stream"]["fingerprint"]
    protocol = about["protocol"]
    assert set(protocol) == {
        *("checkpoint", "split", "class_order", "averaging", "normalisation", "batch", "selection", "seeds"),
    }
    assert protocol["split"] == "train/test per task 40/16, 40/16, 40/16; validation none"
    assert protocol["batch"] == "16 x accumulate 2 over 1 process(es)"
    assert (protocol["class_order"], protocol["seeds"]) == ("as in the source", [0, 1])


def test_order_validation_and_many_tasks(
    tiny_source: Source, tiny_stream: TaskStream, tiny_backbone: Callable[[], Backbone]
) -> None:
    stream = class_incremental(tiny_source, n_tasks=6, order_seed=1993, validation=0.25)
    stream = stream.with_transforms(tiny_stream[0].train.transform, tiny_stream[0].test.transform)
    protocol = _about(stream, tiny_backbone())["protocol"]
    assert protocol["class_order"] == "RandomState(1993)"
    assert protocol["split"] == "train/test per task 15/8, 15/8, 15/8, ...; validation kept apart"


def test_outside_a_checkout_and_without_git_there_is_no_revision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_git", lambda folder, *arguments: None)
    assert source_revision() == (None, None)

    def no_git(*arguments: Any, **options: Any) -> None:
        raise FileNotFoundError("git")

    monkeypatch.undo()
    monkeypatch.setattr(subprocess, "run", no_git)
    assert source_revision() == (None, None)


def test_the_revision_is_the_commit_of_the_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = {"ls-files": "environment.py", "rev-parse": "abc123", "status": ""}
    monkeypatch.setattr(module, "_git", lambda folder, *arguments: answers[arguments[0]])
    assert source_revision() == ("abc123", False)
    answers["status"] = " M src/tangentcl/cli.py"
    assert source_revision() == ("abc123", True)


def test_device_names() -> None:
    assert device_name(torch.device("cpu")) == "cpu"

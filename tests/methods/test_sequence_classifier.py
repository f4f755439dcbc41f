"""A foreign classifier as a learner: what trains, how it grows, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tangentcl.data import Samples, Table, Task
from tangentcl.errors import ConfigError, ModelError
from tangentcl.methods.sequence_classifier import SequenceClassifier
from tangentcl.nn.hf_classifier import load_classifier
from tangentcl.training import Runtime, TaskFit, TrainingPlan

PLAN = TrainingPlan(epochs=2, batch_size=2, lr=0.05, device="cpu")


def learner(folder: Path, tune: str | None = None) -> tuple[SequenceClassifier, Task]:
    """The classifier and a task that brings one class."""
    found = load_classifier(folder)
    table = Table(["the cat", "a dog", "home now"], np.array([0, 2, 2]), np.arange(3))
    samples = Samples(table, transform=found.transform)
    task = Task(1, "more", (0, 2), (2,), 3, 2, samples, samples, samples)
    return SequenceClassifier(found, tune=tune), task  # type: ignore[arg-type]


@pytest.mark.parametrize("tune", [None, "head"])
def test_old_logits_stay_when_a_class_is_added_and_what_is_tuned_moves(classifier_folder: Path, tune: str) -> None:
    method, task = learner(classifier_folder, tune)
    x, y = next(task.test.batches(3))
    before = method.predict(x).detach()
    method.begin_task(task)
    assert method.predict(x).shape == (3, 3)
    torch.testing.assert_close(method.predict(x)[:, :2].detach(), before)
    expected = torch.nn.functional.cross_entropy(method.predict(x), y)
    torch.testing.assert_close(method.training_loss(x, y)["cross_entropy"], expected)
    weights = {name: p.detach().clone() for name, p in method.named_parameters()}
    TaskFit(method, task, task.train, PLAN, Runtime(device="cpu"), lambda *event: None).run()
    moved = {name for name, p in method.named_parameters() if not torch.equal(p, weights[name])}
    head = {"model.classifier.weight", "model.classifier.bias"}
    assert moved == head if tune == "head" else moved > head


def test_what_should_train_has_to_be_there(classifier_folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"has no peft adapter to train\. Leave tune out"):
        learner(classifier_folder, "adapter")
    with pytest.raises(ConfigError, match=r"got 'haed'. Did you mean 'head'\?"):
        learner(classifier_folder, "haed")


def test_a_frozen_head_or_one_that_is_no_single_layer_does_not_grow(classifier_folder: Path) -> None:
    method, task = learner(classifier_folder)
    method.model.classifier.requires_grad_(False)  # type: ignore[union-attr]
    with pytest.raises(ModelError, match=r"1 classes are new .* classifier is frozen.*modules_to_save"):
        method.begin_task(task)
    found = load_classifier(classifier_folder)
    found.model.classifier = torch.nn.Sequential(torch.nn.Linear(16, 2), torch.nn.Tanh())
    with pytest.raises(ModelError, match="not the output of one linear layer"):
        SequenceClassifier(found, tune="head")
    with pytest.raises(ModelError, match="so no row can be added"):
        SequenceClassifier(found).begin_task(task)

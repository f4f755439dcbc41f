"""What came of a plan: the chosen recipe, really trained from the learner that the plan was made for."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, cast

import torch

from tangentcl.cli.plan_recipes import Considered, old_samples, split_of
from tangentcl.cli.plan_subject import say
from tangentcl.data import Samples
from tangentcl.errors import DataError
from tangentcl.forecast.training_choice import Prospect
from tangentcl.methods import Method
from tangentcl.training import Runtime
from tangentcl.training.evaluate import predicted_classes
from tangentcl.training.stream import learn_task

TOLERATED = 1e-9


@dataclass(frozen=True)
class Measured:
    """Real accuracies on the samples of one split.

    Attributes:
        split: "validation" or "test".
        n_old, n_new: samples.
        old_now, old_after: accuracy on old samples before and after. new_after: on new ones after.
    """

    split: str
    n_old: int
    n_new: int
    old_now: float
    old_after: float
    new_after: float

    @property
    def forgetting(self) -> float:
        """Share of old samples lost."""
        return self.old_now - self.old_after


@dataclass(frozen=True)
class Outcome:
    """A recipe that was trained.

    Attributes:
        prospect: its forecast. max_forgetting: that it was to keep.
        decided: on the samples that the plan was made with.
        held_out: on test samples where validation samples decided, else None.
        seconds: that training took.
    """

    prospect: Prospect
    max_forgetting: float
    decided: Measured
    held_out: Measured | None
    seconds: float

    @property
    def within(self) -> bool:
        """Whether forgetting stayed within the tolerance on the samples that the plan was made with."""
        return self.keeps(self.decided)

    def keeps(self, measured: Measured) -> bool:
        """Whether forgetting stayed within the tolerance on these samples."""
        return measured.forgetting <= self.max_forgetting + TOLERATED

    def to_dict(self) -> dict[str, Any]:
        """As plain values, for `tangentcl.reports`."""
        measured = [m for m in (self.decided, self.held_out) if m is not None]
        return {
            "within": self.within,
            "seconds": self.seconds,
            "measured": [{**vars(m), "forgetting": m.forgetting, "within": self.keeps(m)} for m in measured],
        }


def carry_out(considered: Considered, row: Prospect) -> Outcome:
    """Train a recipe from the learner that it was forecast for; the tasks before are not trained again.

    Raises:
        DataError: the task gives the method nothing to train on.
    """
    subject, task = considered.subject, considered.task
    runtime, plan = subject.runtime, considered.plan_of(row)
    method = subject.learned(considered.changes_of(row), task.index)
    strength = considered.strength_of(row)
    if strength is not None:
        cast(Any, method).strength = strength  # what `has_penalty` asked for
    splits = ["validation", "test"] if considered.split == "validation" else ["test"]
    held = [(split, old_samples(subject.stream, task, split), split_of(task, split)) for split in splits]
    seen = task.n_seen - len(task.new_classes)
    now = [_accuracy(method, old, runtime, seen) for _, old, _ in held]
    say(f"training task {task.index} with the chosen recipe")
    began = time.perf_counter()
    if not learn_task(method, task, plan, runtime, lambda event, fields: None):
        raise DataError(f"{type(method).__name__} learns nothing at task {task.index} ('{task.name}')")
    seconds = time.perf_counter() - began
    measured = [
        Measured(split, len(old), len(new), before, *(_accuracy(method, s, runtime, task.n_seen) for s in (old, new)))
        for (split, old, new), before in zip(held, now)
    ]
    held_out = measured[1] if len(measured) > 1 else None
    return Outcome(row, considered.choice.max_forgetting, measured[0], held_out, seconds)


def _accuracy(method: Method, samples: Samples, runtime: Runtime, n_seen: int) -> float:
    right = predicted_classes(method, samples, runtime, n_seen=n_seen) == torch.as_tensor(samples.labels)
    return float(right.double().mean())

"""The only training loop: one task, step by step."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tangentcl.data import Samples, Task
from tangentcl.errors import ConfigError, NonFiniteLoss
from tangentcl.methods import Method
from tangentcl.nn import Backbone
from tangentcl.training.checkpoint import learned_tensors, load_tensors
from tangentcl.training.order import BatchOrder, derived_seed, epoch_batches
from tangentcl.training.plan import TrainingPlan
from tangentcl.training.runtime import Runtime
from tangentcl.training.state_file import generators, set_generators

Emit = Callable[[str, dict[str, Any]], None]  # name of an event and its fields


class TaskFit:
    """The gradient phase of one task, which can be stopped after any step and continued to the same result.

    ``x, y`` come from the batch order, ``method.training_loss(x, y)`` gives named terms, their sum goes backward, the
    optimiser steps. Everything the rest of the phase depends on is in `state_dict`: position, optimiser, schedule,
    loss scaler, random generators, the method's own state, and the loss terms not yet reported.

    Args:
        method: has seen ``begin_task(task)``.
        task: names the task in events and errors.
        samples: what to train on.
        plan: the recipe.
        runtime: device, precision, processes.
        emit: called with ``("step", fields)`` every ``plan.log_every`` steps and at the last one.
    """

    def __init__(
        self, method: Method, task: Task, samples: Samples, plan: TrainingPlan, runtime: Runtime, emit: Emit
    ) -> None:
        self.method, self.task, self.samples, self.plan, self.runtime = method, task, samples, plan, runtime
        self.emit = emit
        self.parameters = [p for p in method.parameters() if p.requires_grad]
        self.order = BatchOrder(
            len(samples),
            batch_size=plan.batch_size,
            accumulate=plan.accumulate,
            seed=plan.seed,
            task=task.index,
            rank=runtime.rank,
            world=runtime.world,
        )
        self.n_steps = plan.epochs * self.order.steps_per_epoch
        inside = {id(p) for m in method.modules() if isinstance(m, Backbone) for p in m.parameters()}
        backbone, head = (
            [p for p in self.parameters if id(p) in inside],
            [p for p in self.parameters if id(p) not in inside],
        )
        self.optimizer = runtime.prepare(plan.make_optimizer(backbone, head))
        self.schedule = plan.make_schedule(self._plain_optimizer(), self.n_steps)
        self.step = 0
        self._names: list[str] = []
        self._pending: list[Tensor] = []  # terms of steps not yet reported, each [k]
        # Dropout must differ between processes; everything before this point must not.
        torch.manual_seed(derived_seed(plan.seed, "noise", task.index, runtime.rank))

    def _plain_optimizer(self) -> torch.optim.Optimizer:
        return getattr(self.optimizer, "optimizer", self.optimizer)  # Accelerate's wrapper hides the real one

    def run(self, stop_at: int | None = None, after_step: Callable[[TaskFit], None] = lambda fit: None) -> int:
        """Train to the end of the task, or until ``stop_at`` steps are done; returns the number of steps done.

        Args:
            after_step: called after each step, when `state_dict` may be taken.

        Raises:
            NonFiniteLoss: names the term, the task and the step.
        """
        stop = self.n_steps if stop_at is None else min(stop_at, self.n_steps)
        self.method.train()
        self._clock, self._counted = time.perf_counter(), 0
        while self.step < stop:
            epoch, start = divmod(self.step, self.order.steps_per_epoch)
            windows = epoch_batches(self.samples, self.order, epoch, start=start, workers=self.plan.workers)
            for weights, batches in windows:
                self._train_step(weights, batches)
                self._report(epoch)
                after_step(self)
                if self.step >= stop:
                    break
        return self.step

    def _train_step(self, weights: list[float], batches: list[tuple[Any, Tensor]]) -> None:
        total: dict[str, Tensor] = {}
        for weight, (x, y) in zip(weights, batches, strict=True):
            x, y = self.runtime.to_device(x), self.runtime.to_device(y)
            with self.runtime.autocast():
                terms = self.method.training_loss(x, y)
            self._check(terms)
            terms = {name: term * weight for name, term in terms.items()}
            self.runtime.backward(torch.stack([term.float() for term in terms.values()]).sum())
            for name, term in terms.items():
                detached = term.detach().float()
                total[name] = total[name] + detached if name in total else detached
            self._counted += len(y)
        values = torch.stack(list(total.values()))  # [k]
        self.runtime.sum_gradients(self.parameters, values)
        self._names = list(total)
        self._pending.append(values)
        if values.device.type == "cpu":  # elsewhere a look at the value waits for the device: done when reporting
            self._refuse_non_finite([values], self.step + 1)
        if self.plan.clip_norm is not None:
            self.runtime.clip(self.parameters, self.optimizer, self.plan.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.schedule.step()
        self.step += 1

    def _check(self, terms: dict[str, Tensor]) -> None:
        where = f"{type(self.method).__name__}.training_loss"
        if not isinstance(terms, dict) or not all(isinstance(term, Tensor) for term in terms.values()):
            raise ConfigError(f"{where} must return a dict of scalar tensors by name, got {type(terms).__name__}")
        if not terms:
            raise ConfigError(f"{where} returned no term, but the method has trainable parameters")
        for name, term in terms.items():
            if term.ndim:
                raise ConfigError(
                    f"{where}: term '{name}' must be a scalar, got shape {tuple(term.shape)}; take its mean"
                )
        if not any(term.requires_grad for term in terms.values()):
            raise ConfigError(f"{where}: no term depends on a trainable parameter; was one detached?")

    def _refuse_non_finite(self, values: list[Tensor], first: int) -> None:
        """Look at the terms of consecutive steps, the first of which has number ``first`` (from 1)."""
        finite = torch.isfinite(torch.stack(values))  # [steps, k]
        if bool(finite.all()):
            return
        row = int((~finite).any(dim=1).nonzero()[0])
        column = int((~finite[row]).nonzero()[0])
        raise NonFiniteLoss(
            f"loss term '{self._names[column]}' became {values[row][column].item()} at step {first + row} of "
            f"{self.n_steps} of task {self.task.index} ('{self.task.name}'). Try a smaller plan.lr, "
            f"plan.clip_norm = 1.0, warm-up, or precision 'fp32'; check the samples for extreme values."
        )

    def _report(self, epoch: int) -> None:
        if self.step % self.plan.log_every and self.step != self.n_steps:
            return
        if self._pending[0].device.type != "cpu":
            self._refuse_non_finite(self._pending, self.step - len(self._pending) + 1)
        mean = torch.stack(self._pending).double().mean(dim=0).tolist()
        now = time.perf_counter()
        rate = self._counted * self.runtime.world / max(now - self._clock, 1e-9)
        self._clock, self._counted = now, 0
        self._pending = []
        self.emit(
            "step",
            {
                "task": self.task.index,
                "epoch": epoch,
                "step": self.step,
                "n_steps": self.n_steps,
                "terms": dict(zip(self._names, mean, strict=True)),
                "lr": self.schedule.get_last_lr()[0],
                "samples_per_s": rate,
            },
        )

    def state_dict(self) -> dict[str, Any]:
        """Everything that the remaining steps depend on, beside the pre-trained weights: tensors and plain values."""
        schedule = {**self.schedule.state_dict(), "lr_lambdas": [None]}  # it follows from the plan
        return {
            "step": self.step,
            "method": copy.deepcopy(learned_tensors(self.method)),
            "optimizer": copy.deepcopy(self._plain_optimizer().state_dict()),
            "schedule": copy.deepcopy(schedule),
            "scaler": self.runtime.scaler_state,
            "generators": generators(self.runtime.device),
            "names": list(self._names),
            "pending": [value.clone() for value in self._pending],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict` of a fit with the same method, task, samples and plan.

        Raises:
            ModelError: tensors of another method.
        """
        load_tensors(self.method, state["method"], f"the state of task {self.task.index} at step {state['step']}")
        self._plain_optimizer().load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.runtime.scaler_state = state["scaler"]
        set_generators(state["generators"], self.runtime.device)
        self._names = list(state["names"])
        self._pending = [value.clone().to(self.runtime.device) for value in state["pending"]]
        self.step = int(state["step"])

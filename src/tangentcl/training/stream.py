"""A method learns a stream: begin, train, end, evaluate, task after task."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tangentcl import metrics
from tangentcl.data import Task, TaskStream
from tangentcl.errors import ConfigError, DataError, TangentclError
from tangentcl.methods import Method
from tangentcl.nn import Backbone, trainable_parameters
from tangentcl.training.evaluate import count_correct, predicted_classes
from tangentcl.training.loop import Emit, TaskFit
from tangentcl.training.memory import peak_memory_bytes, reset_peak_memory
from tangentcl.training.plan import TrainingPlan
from tangentcl.training.predictions import Predictions
from tangentcl.training.resume import Checkpoints, go_on
from tangentcl.training.runtime import Runtime
from tangentcl.training.stage import Stage, StageWatcher, begin


@dataclass
class StreamResult:
    """What a method got right, after every task.

    Attributes:
        scenario: of the stream.
        matrix: ``[T, T]``; row t, column k is the accuracy on task k's test samples after training on task t, in
            [0, 1], NaN where it was not evaluated.
        n_test: test samples of each task, ``[T]``.
        class_correct: correct test predictions of each class after each task, ``[T, C]``, NaN where not evaluated.
        class_total: test samples of each class, ``[C]``.
        predictions: ``predictions[t][k]`` are the predicted stream labels of task k's test samples after task t.
    """

    scenario: str
    matrix: NDArray[np.float64]
    n_test: NDArray[np.int64]
    class_correct: NDArray[np.float64]
    class_total: NDArray[np.int64]
    predictions: list[Predictions] = field(default_factory=list)

    @staticmethod
    def empty(stream: TaskStream) -> StreamResult:
        """Nothing evaluated yet."""
        n, c = len(stream), stream.n_classes
        total = np.zeros(c, dtype=np.int64)
        for task in stream:
            total += np.bincount(task.test.labels, minlength=c)
        return StreamResult(
            scenario=stream.scenario,
            matrix=np.full((n, n), np.nan),
            n_test=np.array([len(task.test) for task in stream]),
            class_correct=np.full((n, c), np.nan),
            class_total=total,
        )

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` needs, as tensors."""
        rows = [np.zeros(0, dtype=np.int32), *(row.all.astype(np.int32) for row in self.predictions)]
        together = torch.from_numpy(np.concatenate(rows))
        matrices = {"matrix": torch.from_numpy(self.matrix), "class_correct": torch.from_numpy(self.class_correct)}
        return {**matrices, "predictions": together, "tasks": [list(row) for row in self.predictions]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict` of the same stream."""
        self.matrix, self.class_correct = state["matrix"].numpy().copy(), state["class_correct"].numpy().copy()
        left = iter(state["predictions"].split([int(self.n_test[k]) for row in state["tasks"] for k in row]))
        self.predictions = [
            Predictions({k: next(left).numpy().astype(np.int64) for k in row}) for row in state["tasks"]
        ]

    def __str__(self) -> str:
        """The accuracy matrix in percent, see `tangentcl.metrics.matrix_text`."""
        return metrics.matrix_text(self.matrix, self.n_test)

    def summary(self) -> dict[str, Any]:
        """All metrics that can be computed from the matrix, see `tangentcl.metrics.summary`."""
        return metrics.summary(self.matrix, self.n_test, self.class_correct, self.class_total, scenario=self.scenario)


def ignore(event: str, fields: dict[str, Any]) -> None:
    """Observe nothing."""


def run_stream(
    method: Method,
    stream: TaskStream,
    plan: TrainingPlan,
    *,
    runtime: Runtime | None = None,
    emit: Emit = ignore,
    watchers: Sequence[StageWatcher] = (),
    checkpoints: Checkpoints | None = None,
) -> StreamResult:
    """Train ``method`` on every task of ``stream`` in order and evaluate it after each.

    After task t the method is evaluated on the tasks 0..t; in a domain-incremental stream, whose classes are all known
    from the start, on all tasks. In a task-incremental stream it chooses among the classes of the sample's task.

    Args:
        method: freshly constructed.
        stream: its samples carry transforms, or those of the method's backbone are used.
        plan: the recipe, the same for every task.
        runtime: device and processes; made from the plan if not given.
        emit: called with the name and the fields of every event (they are listed in ``docs/training.md``).
        watchers: look on before and after each task that something is learned of, such as `Forecasting`. They nest:
            the last one looks last before a task and first after it.
        checkpoints: where states of the run are kept. If one is there, the run goes on from it, to the same numbers as
            if it had never been stopped; method, stream and plan have to be made as they were.

    Raises:
        NonFiniteLoss, DataError, ConfigError, ModelError: with task and step where they apply.
    """
    for name, value, kind in (("method", method, Method), ("stream", stream, TaskStream), ("plan", plan, TrainingPlan)):
        if not isinstance(value, kind):
            given = f"the class {value.__name__}" if isinstance(value, type) else f"a {type(value).__name__}"
            raise ConfigError(f"run_stream needs a {kind.__name__} object as {name}, got {given}")
    runtime = runtime or Runtime(device=plan.device, precision=plan.precision)
    stream = with_backbone_transforms(stream, method)
    method.to(runtime.device)
    run = _Run(method, stream, plan, runtime, emit, watchers, checkpoints)
    try:
        with nullcontext() if checkpoints is None or runtime.world > 1 else checkpoints.stopping.listening():
            return run.learn()
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        if not isinstance(error, TangentclError):
            explain_wrong_input(method, stream, runtime, error)
        raise
    finally:
        if checkpoints is not None:
            checkpoints.replaying = False  # whatever is said from here on was not said before
            checkpoints.forget()


class _Run:
    """A method on its way through a stream; arguments as for `run_stream`."""

    def __init__(
        self,
        method: Method,
        stream: TaskStream,
        plan: TrainingPlan,
        runtime: Runtime,
        emit: Emit,
        watchers: Sequence[StageWatcher],
        checkpoints: Checkpoints | None,
    ) -> None:
        self.method, self.stream, self.plan, self.runtime = method, stream, plan, runtime
        self.emit = emit if checkpoints is None else checkpoints.audible(emit)
        self.watchers, self.checkpoints = watchers, checkpoints
        self.result = StreamResult.empty(stream)
        self.began = time.perf_counter()
        self.passed = passes(method)

    def learn(self) -> StreamResult:
        """All tasks that are left."""
        first, within = self._begin()
        for task in self.stream.tasks[first:]:
            self._task(task, within)
            within = None
        seconds = time.perf_counter() - self.began
        self.emit("run_finished", {"seconds": seconds, "backbone_passes": passes(self.method) - self.passed})
        return self.result

    def _begin(self) -> tuple[int, dict[str, Any] | None]:
        """The first task that is left, and the state within it, if there is one."""
        of = (self.method, self.stream, self.plan, self.runtime, self.watchers)
        state = None if self.checkpoints is None else go_on(self.checkpoints, *of)
        n_tasks = len(self.stream)
        if state is None:
            self.emit("run_started", {"n_tasks": n_tasks, "n_classes": self.stream.n_classes})
            return 0, None
        first = 0
        if state.after is not None:
            self.result.load_state_dict(state.after["result"])
            first, self.began = state.after["task"] + 1, self.began - state.after["seconds"]
        self.emit("resumed", {"n_tasks": n_tasks, "task": first, "step": state.step, "notes": list(state.notes)})
        return first, state.within

    def _task(self, task: Task, within: dict[str, Any] | None) -> None:
        """Learn a task, evaluate after it, keep the state."""
        method, runtime, checkpoints = self.method, self.runtime, self.checkpoints
        if learn_task(method, task, self.plan, runtime, self.emit, self.watchers, checkpoints, within):
            evaluate_stage(method, self.stream, task.index, self.result, self.plan, runtime, self.emit)
        else:
            self.result.predictions.append(Predictions({}))
        if checkpoints is not None:
            checkpoints.forget()
            found, seconds = self.result.state_dict(), time.perf_counter() - self.began
            checkpoints.task_done(task.index, method, self.watchers, runtime, result=found, seconds=seconds)


def passes(method: Method) -> int:
    """Samples that went through the method's backbones so far."""
    return sum(module.passes for module in method.modules() if isinstance(module, Backbone))


def with_backbone_transforms(stream: TaskStream, method: Method) -> TaskStream:
    """``stream`` under the transforms of the method's backbone, unless it carries its own.

    Raises:
        DataError: neither has any.
    """
    if stream[0].train.transform is not None:
        return stream
    backbones = [module for module in method.modules() if isinstance(module, Backbone)]
    if not backbones or backbones[0].eval_transform is None:
        raise DataError(
            f"the samples of stream '{stream.name}' have no transform, and the method's backbone brings none. "
            f"Use stream.with_transforms(train, evaluation)."
        )
    train, evaluation = backbones[0].train_transform, backbones[0].eval_transform
    return stream.with_transforms(train or evaluation, evaluation)


def explain_wrong_input(method: Method, stream: TaskStream, runtime: Runtime, error: Exception) -> None:
    """After a failure: whether the method's backbone takes a sample of the stream at all, which tells a wrong shape.

    Raises:
        DataError: it does not.
    """
    backbones = [module for module in method.modules() if isinstance(module, Backbone)]
    if not backbones or "CUDA" in str(error):  # a device in error fails whatever it is asked
        return
    method.eval()
    x, _ = next(iter(stream[0].test.subset([0]).batches(1)))
    try:
        with torch.no_grad():
            backbones[0](runtime.to_device(x))
    except Exception as refusal:
        got = f"of shape {list(x.shape[1:])}" if isinstance(x, torch.Tensor) else f"as {type(x).__name__}"
        raise DataError(
            f"the samples of stream '{stream.name}' come {got} from their transform, which the backbone "
            f"'{backbones[0].card.name}' cannot take ({str(refusal).splitlines()[0]}). Check transform and backbone."
        ) from error


def learn_task(
    method: Method,
    task: Task,
    plan: TrainingPlan,
    runtime: Runtime,
    emit: Emit,
    watchers: Sequence[StageWatcher] = (),
    checkpoints: Checkpoints | None = None,
    within: dict[str, Any] | None = None,
) -> bool:
    """One task without evaluation; whether anything was learned (see `Method.training_samples`).

    Args:
        checkpoints: where states within the task are kept. within: the one to go on from; until it is reached,
            everything happens as it did, and nothing is emitted.
    """
    began = time.perf_counter()
    if checkpoints is not None:
        checkpoints.replaying = within is not None
    begin(method, task, plan.seed)
    method.to(runtime.device)
    with runtime.autocast():
        samples = method.training_samples(task)
    if samples is None:
        return False
    if len(samples) == 0:
        raise DataError(f"{type(method).__name__} gave no sample to train on at task {task.index} ('{task.name}')")
    emit(
        "task_started",
        {"task": task.index, "name": task.name, "n_train": len(samples), "n_classes": len(task.classes)},
    )
    stage = Stage(method, task, samples, plan, runtime)
    watched = time.perf_counter()
    for watcher in watchers:
        watcher.before(stage)
    began += time.perf_counter() - watched
    reset_peak_memory(runtime.device)  # what follows is training
    steps = 0
    if any(p.requires_grad for p in method.parameters()):
        steps, began = _trained(stage, emit, checkpoints, within, began)
    method.eval()
    with runtime.autocast():
        method.end_task(task)
    emit(
        "task_trained",
        {
            "task": task.index,
            "steps": steps,
            "seconds": time.perf_counter() - began,
            "trainable_parameters": trainable_parameters(method),
            "stored_samples": method.stored_samples,
            "state_bytes": method.state_bytes,
            "peak_memory_bytes": peak_memory_bytes(runtime.device),
        },
    )
    for watcher in reversed(watchers):
        watcher.after(stage)
    return True


def _trained(
    stage: Stage, emit: Emit, checkpoints: Checkpoints | None, within: dict[str, Any] | None, began: float
) -> tuple[int, float]:
    """The gradient phase, with states kept on the way: steps done, and when training began, less what was lost."""
    fit = TaskFit(stage.method, stage.task, stage.samples, stage.plan, stage.runtime, emit)
    if within is not None:
        fit.load_state_dict({**within["fit"], "generators": within["fit"]["generators"][stage.runtime.rank]})
        began -= within["seconds"]
    if checkpoints is None:
        return fit.run(), began
    checkpoints.replaying = False
    with checkpoints.stopping.waiting():
        return fit.run(after_step=lambda fit: checkpoints.step_done(fit, time.perf_counter() - began)), began


def evaluate_stage(
    method: Method,
    stream: TaskStream,
    stage: int,
    result: StreamResult,
    plan: TrainingPlan,
    runtime: Runtime,
    emit: Emit,
) -> None:
    """Fill row ``stage`` of ``result``."""
    began = time.perf_counter()
    correct = np.zeros(stream.n_classes)
    predictions: dict[int, NDArray[np.int64]] = {}
    last = len(stream) - 1 if stream.scenario == "domain" else stage
    for task in stream.tasks[: last + 1]:
        among = task.classes if stream.scenario == "task" else None
        predicted = predicted_classes(
            method,
            task.test,
            runtime,
            batch_size=plan.eval_batch_size,
            among=among,
            n_seen=stream[stage].n_seen,
        )
        labels = torch.as_tensor(task.test.labels)
        right, total = count_correct(predicted, labels, stream.n_classes)
        result.matrix[stage, task.index] = float(right.sum()) / float(total.sum())
        correct += right.numpy()
        predictions[task.index] = predicted.numpy()
    result.predictions.append(Predictions(predictions))
    result.class_correct[stage] = correct
    if stream.scenario != "domain":
        result.class_correct[stage, stream[stage].n_seen :] = np.nan
    row = result.matrix[stage]
    emit(
        "evaluated",
        {
            "task": stage,
            "seconds": time.perf_counter() - began,
            "accuracy": [None if np.isnan(value) else float(value) for value in row],
        },
    )

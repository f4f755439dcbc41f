"""States of a run on disk, from which it goes on as if it had not been stopped."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from tangentcl.data import TaskStream
from tangentcl.errors import ConfigError, ModelError, RecordError
from tangentcl.files import Damaged, remove_parts
from tangentcl.methods import Method
from tangentcl.nn.known import FeatureTransform
from tangentcl.training.checkpoint import learned_tensors, load_tensors
from tangentcl.training.loop import Emit, TaskFit
from tangentcl.training.plan import TrainingPlan
from tangentcl.training.runtime import Runtime
from tangentcl.training.stage import RemembersTasks, StageWatcher, begin
from tangentcl.training.state_file import read_state, write_state
from tangentcl.training.stopping import Stopping

NAME = re.compile(r"state-(\d{3,})(?:-step-(\d{6,}))?\.safetensors")
KEPT = 2


@dataclass(frozen=True)
class State:
    """Where a run goes on.

    Attributes:
        name: of the newest file.
        after: what `Checkpoints.task_done` kept of the last finished task; None where none is.
        within: what `Checkpoints.step_done` kept of the next one; None at its beginning.
        notes: files that were damaged, and what was taken in their place.
    """

    name: str
    after: dict[str, Any] | None
    within: dict[str, Any] | None
    notes: tuple[str, ...] = ()

    @property
    def step(self) -> int:
        """Steps done within the task."""
        return 0 if self.within is None else int(self.within["fit"]["step"])

    @property
    def newest(self) -> dict[str, Any]:
        """The one written last."""
        found = self.within or self.after
        assert found is not None
        return found


class Checkpoints:
    """Keeps the state of a run at the end of each task and every so many steps, and finds it again.

    Each file is written aside, synced and renamed, and carries its checksum, so a kill at any moment leaves whole
    files. The last two of each kind stay; a damaged one is passed over for the one before. A state within a task goes
    on from the state at the end of the task before it: `run_stream` begins the task anew, and then takes up the step.

    Args:
        folder: for the files of one run, and nothing else.
        every: optimiser steps between two states within a task; 0 keeps those at the ends of tasks only.
        outside: called when a state is written; what it returns is kept with it. For what else has to go on from the
            same moment, such as the length of a log. Plain values and tensors.

    Attributes:
        replaying: whether the run is on its way back to a state, and what it says was said before.

    Raises:
        ConfigError: a negative number of steps.
    """

    def __init__(self, folder: str | Path, *, every: int = 500, outside: Callable[[], Any] = lambda: None) -> None:
        if isinstance(every, bool) or not isinstance(every, int) or every < 0:
            raise ConfigError(f"a state is kept every so many steps, 0 for ends of tasks only; got {every!r}")
        self.folder, self.every, self.outside = Path(folder), every, outside
        self.stopping = Stopping()
        self.replaying = False
        self.about: dict[str, Any] = {}
        self._state: State | None = None

    @property
    def exist(self) -> bool:
        """Whether there is a state, readable or not."""
        return bool(self._files())

    def forget(self) -> None:
        """Let go of what `found` read: it holds all that was learned a second time."""
        self._state = None

    def audible(self, emit: Emit) -> Emit:
        """``emit`` that is silent while the run is on its way back to a state."""
        return lambda event, fields: None if self.replaying else emit(event, fields)

    def clear(self) -> None:
        """Remove every state.

        Raises:
            RecordError: the disk refuses.
        """
        self._state = None
        try:
            for path, _, _ in self._files():
                path.unlink(missing_ok=True)
            if self.folder.is_dir():
                remove_parts(self.folder)
                if not any(self.folder.iterdir()):
                    self.folder.rmdir()
        except OSError as error:
            raise RecordError(f"the states of a run in {self.folder} cannot be removed: {error}") from error

    def _files(self) -> list[tuple[Path, int, int]]:
        """Files with task and step, the newest first; one at a task's end has step -1, before those of the next."""
        if not self.folder.is_dir():
            return []
        found = []
        for path in self.folder.iterdir():
            if match := NAME.fullmatch(path.name):
                found.append((path, int(match[1]), int(match[2]) if match[2] else -1))
        return sorted(found, key=lambda one: (one[1] if one[2] >= 0 else one[1] + 1, one[2]), reverse=True)

    def found(self) -> State | None:
        """The newest state that can be read, with what it builds on; kept until `forget`.

        Raises:
            RecordError: states are there, but none of them can be used.
        """
        if self._state is None:
            self._state = self._newest()
        return self._state

    def _newest(self) -> State | None:
        notes: list[str] = []
        files = self._files()
        whole: dict[Path, dict[str, Any] | None] = {}

        def read(path: Path) -> dict[str, Any] | None:
            if path not in whole:
                try:
                    whole[path] = read_state(path)
                except (Damaged, OSError) as error:
                    whole[path] = None
                    notes.append(f"{path.name} cannot be used: {error}")
            return whole[path]

        for path, task, step in files:
            state = read(path)
            if state is None:
                continue
            if step < 0:
                return State(path.name, state, None, tuple(notes))
            base = [one for one, t, s in files if s < 0 and t == task - 1]
            after = read(base[0]) if base else None
            if after is not None or task == 0:
                return State(path.name, after, state, tuple(notes))
        if notes:
            raise RecordError(
                f"no state of the run in {self.folder} can be used: {'; '.join(notes)}. Start afresh with --overwrite."
            )
        return None

    def task_done(
        self,
        task: int,
        method: Method,
        watchers: Sequence[StageWatcher],
        runtime: Runtime,
        *,
        result: dict[str, Any],
        seconds: float,
    ) -> None:
        """Keep the state after a task, in the main process; states within it are no longer needed.

        Args:
            result: of the stream so far. seconds: that the run has taken.
        """
        if not runtime.is_main:
            return
        remembered = [watcher.state_dict() for watcher in watchers if isinstance(watcher, RemembersTasks)]
        tree = {"method": method_state(method), "watchers": remembered, "result": result, "seconds": seconds}
        tree = {"about": self.about, "outside": self.outside(), "task": task, **tree}
        write_state(self.folder / f"state-{task:03d}.safetensors", tree)
        self._drop([one for one in self._files() if one[2] >= 0 or one[1] <= task - KEPT])

    def step_done(self, fit: TaskFit, seconds: float) -> None:
        """Keep the state after a step, in the main process; every process has to call this at the same step.

        Raises:
            KeyboardInterrupt: a stop was asked for; the state is kept.
        """
        stop = self.stopping.asked
        if not stop and not (self.every and fit.step % self.every == 0 and fit.step < fit.n_steps):
            return
        state = fit.state_dict()
        every = [state["generators"]]
        if fit.runtime.world > 1:
            every = [None] * fit.runtime.world
            dist.all_gather_object(every, state["generators"])
        if fit.runtime.is_main:
            tree = {"about": self.about, "outside": self.outside(), "fit": {**state, "generators": every}}
            task = fit.task.index
            write_state(self.folder / f"state-{task:03d}-step-{fit.step:06d}.safetensors", {**tree, "seconds": seconds})
            self._drop([one for one in self._files() if one[2] >= 0][KEPT:])
        if stop:
            raise KeyboardInterrupt(f"stopped after step {fit.step} of task {fit.task.index}")

    def _drop(self, files: list[tuple[Path, int, int]]) -> None:
        try:
            for path, _, _ in files:
                path.unlink(missing_ok=True)
        except OSError as error:
            raise RecordError(f"old states in {self.folder} cannot be removed: {error}") from error


def go_on(
    checkpoints: Checkpoints,
    method: Method,
    stream: TaskStream,
    plan: TrainingPlan,
    runtime: Runtime,
    watchers: Sequence[StageWatcher],
) -> State | None:
    """Bring a freshly constructed method, and watchers, to the end of the last finished task, if there is a state.

    Raises:
        ConfigError: the state is of another run, or processes find different ones.
        RecordError: no state can be read. ModelError: tensors of another method.
    """
    checkpoints.about = about_run(method, stream, plan, runtime)
    state = checkpoints.found()
    name = None if state is None else state.name
    if (first := runtime.agree(name)) != name:
        raise ConfigError(f"process {runtime.rank} finds state {name} in {checkpoints.folder}, the first one {first}")
    if state is None:
        return None
    require_same(state.newest["about"], checkpoints.about, checkpoints.folder)
    if state.after is not None:
        for task in stream.tasks[: state.after["task"] + 1]:
            begin(method, task, plan.seed)
        restore_method(method, state.after["method"])
        method.to(runtime.device)
        remembering = [watcher for watcher in watchers if isinstance(watcher, RemembersTasks)]
        for watcher, kept in zip(remembering, state.after["watchers"], strict=True):
            watcher.load_state_dict(kept, stream.tasks)
    return state


def about_run(method: Method, stream: TaskStream, plan: TrainingPlan, runtime: Runtime) -> dict[str, Any]:
    """What has to be the same for a run to go on to the same numbers."""
    return {
        "method": type(method).__name__,
        "stream": stream.name,
        "class order": list(stream.class_order),
        "training samples": [len(task.train) for task in stream],
        "features from a store": isinstance(stream[0].test.transform, FeatureTransform),
        "plan": dataclasses.asdict(plan),
        "processes": runtime.world,
        "device": runtime.device.type,
        "torch": torch.__version__,
    }


def require_same(kept: dict[str, Any], here: dict[str, Any], folder: Path) -> None:
    """Refuse to go on from the state of another run.

    Raises:
        ConfigError: names what differs.
    """
    differing = [f"{key} was {kept.get(key)!r}, is {here[key]!r}" for key in here if kept.get(key) != here[key]]
    if differing:
        raise ConfigError(
            f"the run in {folder} cannot be continued here: {'; '.join(differing)}. Continue it as it was begun, or "
            "start afresh with --overwrite or in another folder."
        )


def method_state(method: Method) -> dict[str, Any]:
    """What `restore_method` needs."""
    return {
        "tensors": learned_tensors(method),
        "trainable": [name for name, p in method.named_parameters() if p.requires_grad],
    }


def restore_method(method: Method, state: dict[str, Any]) -> None:
    """Load what `method_state` found into a method that was led through ``begin_task`` alike.

    Raises:
        ModelError: tensors of another method.
    """
    load_tensors(method, state["tensors"], "the state of the run")
    trainable = set(state["trainable"])
    if unknown := trainable - {name for name, _ in method.named_parameters()}:
        raise ModelError(f"the state of the run trains {sorted(unknown)[:3]}, which the method does not have")
    for name, parameter in method.named_parameters():
        parameter.requires_grad_(name in trainable)

"""A trained learner as files: what was learned, without the frozen weights it stands on."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from tangentcl.data import Task
from tangentcl.errors import ModelError, RecordError
from tangentcl.methods import Method
from tangentcl.nn import Backbone
from tangentcl.training.stage import Stage, begin

LEARNER = "learner.safetensors"


def learned_tensors(method: Method) -> dict[str, Tensor]:
    """The state dict without the tensors of backbones that are still what they were made with.

    What was trained and then frozen (adapters of earlier tasks, a first session of full fine-tuning) is included: it is
    told by its content, not by ``requires_grad``.
    """
    return {
        key: value
        for key, value in method.state_dict().items()
        if isinstance(value, Tensor) and not _is_pretrained(method, key, value)
    }


def _is_pretrained(method: Method, key: str, value: Tensor | None = None) -> bool:
    """Whether ``key`` names a tensor that comes with a backbone; with a value, whether it is unchanged as well."""
    for prefix, module in method.named_modules():
        if isinstance(module, Backbone):
            name = key.removeprefix(f"{prefix}.model.")
            if name != key and module.holds_pretrained(name):
                return value is None or not module.changed(name, value)
    return False


def save_learner(method: Method, folder: str | Path) -> Path:
    """Write `learned_tensors` to ``folder/learner.safetensors``, in one piece or not at all; returns the file.

    Raises:
        RecordError: the folder cannot be written.
    """
    path = Path(folder) / LEARNER
    tensors = {key: value.detach().cpu().contiguous().clone() for key, value in learned_tensors(method).items()}
    aside = path.with_suffix(".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(aside, "wb") as file:
            file.write(save(tensors, metadata={"format": "pt", "method": type(method).__name__}))
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    except OSError as error:
        raise RecordError(f"the trained learner cannot be written to {path}: {error}") from error
    return path


def load_learner(method: Method, folder: str | Path) -> Method:
    """Load what `save_learner` wrote into a method that was constructed and led through ``begin_task`` alike.

    Raises:
        ModelError: missing or damaged file, or tensors of another method, stream or backbone.
    """
    path = Path(folder) / LEARNER
    try:
        tensors = load_file(path)
    except FileNotFoundError as error:
        raise ModelError(f"there is no trained learner at {path}; was it saved (save = true)?") from error
    except Exception as error:  # safetensors raises its own type for a damaged file
        raise ModelError(f"{path} is damaged: {error}") from error
    return load_tensors(method, tensors, str(path))


def load_tensors(method: Method, tensors: Mapping[str, Tensor], where: str) -> Method:
    """Load `learned_tensors` into a method that was constructed and led through ``begin_task`` alike.

    Raises:
        ModelError: tensors of another method, stream or backbone, which ``where`` holds.
    """
    here = method.state_dict()
    if unknown := sorted(set(tensors) - set(here)):
        raise ModelError(f"{where} holds {len(unknown)} unknown tensors, among them {unknown[:3]}: another method?")
    own = {key for key, value in here.items() if isinstance(value, Tensor) and not _is_pretrained(method, key)}
    if missing := sorted(own - set(tensors)):
        raise ModelError(f"{where} lacks {len(missing)} tensors, among them {missing[:3]}: another method or options?")
    free = {f"{prefix}.{name}" for prefix, module in method.named_modules() for name in getattr(module, "free", ())}
    for key, value in tensors.items():  # free: shapes that follow from what was seen
        if value.shape != here[key].shape and key not in free and not key.endswith("_extra_state"):
            raise ModelError(f"{where}: {key} has shape {tuple(value.shape)}, here it is {tuple(here[key].shape)}")
    with torch.no_grad():
        method.load_state_dict({**here, **tensors})
    return method


def task_folder(checkpoints: str | Path, task: int) -> Path:
    """Where the learner lies as it was at the end of a task (from 0), for `save_learner` and `load_learner`.

    >>> task_folder("checkpoints", 2).as_posix()
    'checkpoints/task-002'
    """
    return Path(checkpoints) / f"task-{task:03d}"


def remove_learners(checkpoints: str | Path) -> None:
    """Remove what `save_learner` wrote there and below for an earlier run; its learners are not those of the next.

    Raises:
        RecordError: the disk refuses.
    """
    folders = [Path(checkpoints), *(path for path in Path(checkpoints).glob("task-*") if path.name[5:].isdigit())]
    try:
        for folder in folders:
            (folder / LEARNER).unlink(missing_ok=True)
        for folder in folders[1:]:
            if not any(folder.iterdir()):
                folder.rmdir()
    except OSError as error:
        raise RecordError(f"the learners of an earlier run in {checkpoints} cannot be removed: {error}") from error


def restore_learner(method: Method, tasks: Sequence[Task], folder: str | Path, *, seed: int) -> Method:
    """Lead a freshly constructed method through the beginnings of ``tasks`` and load what it had learned after them.

    Args:
        method: constructed as it was for the run.
        tasks: from the first to the last that the learner has learned.
        folder: where `save_learner` wrote it.
        seed: of the plan.

    Raises:
        ModelError: as `load_learner`.
    """
    for task in tasks:
        begin(method, task, seed)
    return load_learner(method, folder)


class LearnerKeeper:
    """A `StageWatcher` that saves the learner at the end of every task, for `restore_learner`.

    Args:
        checkpoints: the learner after task 2 goes into ``checkpoints/task-002``.
    """

    def __init__(self, checkpoints: str | Path) -> None:
        self.checkpoints = Path(checkpoints)

    def before(self, stage: Stage) -> None:
        """Nothing is kept before a task: it is what was kept after the last."""

    def after(self, stage: Stage) -> None:
        """Save the learner, in the main process."""
        if stage.runtime.is_main:
            save_learner(stage.method, task_folder(self.checkpoints, stage.task.index))

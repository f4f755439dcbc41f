"""Moments of a task's features, saved at its end: what later forecasts need when the task's data are gone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.distributed as dist

from tangentcl.data import Task
from tangentcl.errors import ConfigError, DataError, RecordError
from tangentcl.forecast.layer_moments import adapted_layers, layer_sketches, sketched_inputs
from tangentcl.forecast.moments import TaskMoments
from tangentcl.linalg.sketch_file import read_tensors, write_tensors
from tangentcl.methods import Method
from tangentcl.nn import Backbone
from tangentcl.nn.backbone import to_device
from tangentcl.nn.layer_inputs import mask_of
from tangentcl.processes import is_first, rank_and_world
from tangentcl.training.stage import Stage

FOLDER = "moments"  # inside a record


def save_moments(
    method: Method,
    task: Task,
    folder: str | Path,
    *,
    sketch: str = "low_rank_diagonal",
    k: int = 64,
    layers_k: int = 32,
    batch_size: int = 256,
) -> Path | None:
    """Write the moments of a task that was just learned to ``folder/moments/task-003.safetensors``.

    One pass over the task's training samples under the evaluation transform. Where ``torch.distributed`` is
    initialised every process has to call this: each reads its share, and the first one writes.

    Args:
        method: in the state in which it leaves the task; its modes are restored.
        task: with its data.
        folder: of the record.
        sketch, k: see `tangentcl.forecast.moments.TaskMoments.empty`.
        layers_k: directions kept of the inputs of each adapted layer; 0 = no layers.
        batch_size: samples per forward pass.

    Returns:
        The file; None for a method without a backbone, whose features nobody knows.

    Raises:
        ConfigError: an unknown sketch or a negative number. RecordError: the file cannot be written.
    """
    backbones = [module for module in method.modules() if isinstance(module, Backbone)]
    if not backbones:
        return None
    moments = collect_moments(backbones[0], task, sketch=sketch, k=k, layers_k=layers_k, batch_size=batch_size)
    path = Path(folder) / FOLDER / f"task-{task.index:03d}.safetensors"
    if is_first():
        try:
            write_tensors(path, moments.header, moments.tensors())
        except OSError as error:
            raise RecordError(f"the moments of task {task.index} cannot be written to {path}: {error}") from error
    return path


@torch.no_grad()
def collect_moments(
    backbone: Backbone,
    task: Task,
    *,
    sketch: str = "low_rank_diagonal",
    k: int = 64,
    layers_k: int = 32,
    batch_size: int = 256,
) -> TaskMoments:
    """Moments of a task's training samples, the same in every process; arguments as for `save_moments`."""
    if layers_k < 0:
        raise ConfigError(f"layers_k must be zero or more directions, got {layers_k}")
    moments = TaskMoments.empty(backbone.width, sketch=sketch, k=k, task=task.index, name=task.name)
    layers = adapted_layers(backbone) if layers_k else {}
    moments.layers.update(layer_sketches(layers, sketch, layers_k))
    rank, world = rank_and_world()
    own = task.train_eval.short_first()[rank::world]
    modes = {module: module.training for module in backbone.modules()}
    backbone.eval()
    try:
        with sketched_inputs(layers, moments.layers) as mask:
            for x, y in task.train_eval.subset(own).batches(batch_size):
                mask[:] = mask_of(x)
                moments.add(backbone(to_device(x, backbone.device)), y)
    finally:
        for module, mode in modes.items():
            module.training = mode
    return _together(moments) if world > 1 else moments


def _together(own: TaskMoments) -> TaskMoments:
    """The moments of all processes, merged in their order."""
    parts: list[object] = [None] * dist.get_world_size()
    dist.all_gather_object(parts, (own.header, own.tensors()))
    first, *others = (TaskMoments.restored(*part) for part in parts)  # type: ignore[misc]
    for other in others:
        first.merge(other)
    return first


class MomentsWriter:
    """A `StageWatcher` that saves the moments of every task when it was learned, see `save_moments`.

    Args:
        folder: of the record.
        clear: whether what an earlier run left in the folder is removed first.
        sketch, k, layers_k: as for `save_moments`.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        clear: bool = True,
        sketch: str = "low_rank_diagonal",
        k: int = 64,
        layers_k: int = 32,
    ) -> None:
        self.folder, self.sketch, self.k, self.layers_k = folder, sketch, k, layers_k
        self._cleared = not clear

    def before(self, stage: Stage) -> None:
        """Nothing: the moments are of what the task leaves behind."""

    def after(self, stage: Stage) -> None:
        """Save them."""
        if stage.runtime.is_main and not self._cleared:
            for path in (Path(self.folder) / FOLDER).glob("task-*.safetensors"):
                try:
                    path.unlink()
                except OSError as error:
                    raise RecordError(f"the moments of an earlier run in {path} cannot be removed: {error}") from error
            self._cleared = True
        size = stage.plan.eval_batch_size
        save_moments(
            stage.method,
            stage.task,
            self.folder,
            sketch=self.sketch,
            k=self.k,
            layers_k=self.layers_k,
            batch_size=size,
        )


def load_moments(folder: str | Path, tasks: Sequence[int] | None = None) -> list[TaskMoments]:
    """The moments that a run saved, in the order of its tasks.

    Args:
        folder: of the record.
        tasks: indices of the wanted tasks; None = all there are.

    Raises:
        RecordError: none was saved, a wanted one is missing, or a file is damaged.
    """
    place = Path(folder) / FOLDER
    paths = (
        [place / f"task-{t:03d}.safetensors" for t in tasks]
        if tasks is not None
        else sorted(place.glob("task-*.safetensors"))
    )
    if not paths:
        raise RecordError(f"{place} holds no moments of a task. They are written by a run, at each task's end.")
    found = []
    for path in paths:
        try:
            found.append(TaskMoments.restored(*read_tensors(path)))
        except DataError as error:
            raise RecordError(f"the moments in {path} cannot be read: {error}") from error
    return sorted(found, key=lambda moments: moments.task)

"""A predictor from an export folder or from a run's record, without the data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from tangentcl.errors import ConfigError, ModelError, RecordError, TangentclError
from tangentcl.experiments.build import build_backbone, build_method, transforms
from tangentcl.files import Damaged, metadata
from tangentcl.methods import Method
from tangentcl.nn import Backbone
from tangentcl.records import Record
from tangentcl.serving.description import EXPORT, Description, file_digest
from tangentcl.serving.predictor import Predictor
from tangentcl.training.checkpoint import LEARNER, load_learner, task_folder
from tangentcl.training.stage import begin


def load_predictor(
    path: str | Path,
    *,
    after_task: int | None = None,
    backbone: str | Path | None = None,
    device: str | torch.device = "auto",
    precision: str | None = None,
    batch_size: int | None = None,
    trust_remote_code: bool = False,
) -> Predictor:
    """What a run has learned, ready to answer. Neither the data nor any label is needed.

    Args:
        path: an export folder (``tangentcl export``), or the folder of a run's record with its learner.
        after_task: of a record, the learner as it was after this task (from 0); None = at the end.
        backbone: where the pre-trained weights lie now, or their name; None = where they lay then. Their checksum has
            to be the same.
        device: "auto" (CUDA, else MPS, else CPU), or a device of torch.
        precision: "fp32", "bf16" or "fp16"; None = as in the run's evaluation.
        batch_size: inputs per forward pass; None = as in the run's evaluation.
        trust_remote_code: run Python code that comes with a backbone from the hub, where the run did.

    Raises:
        ModelError: not an export, damaged files, other pre-trained weights, or a learner that does not fit.
        RecordError: an unfinished or damaged record, or one without that learner.
        ConfigError: settings that cannot be used here.
    """
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise ModelError(
            f"there is no folder {folder}. Give an export (tangentcl export) or a run's record (tangentcl list runs)."
        )
    if (folder / EXPORT).exists() or not (folder / "status.json").exists():
        if after_task is not None:
            raise ConfigError(f"{folder} is an export and holds one learner; after_task is for records of runs.")
        description = Description.read(folder)
        check_files(folder, description)
    else:
        record = Record.read(folder)
        description = Description.of_record(record, after_task)
        folder = learner_folder(record, len(description.tasks) - 1, description.n_tasks)
    features = _features(description, backbone, trust_remote_code)
    method = _method(description, features)
    load_learner(method, folder)
    transform = transforms(features, description.transform)[1]
    if transform is None:
        raise ModelError(f"the backbone {features.card.name} has no transform for raw inputs.")
    return Predictor(description, method, transform, device=device, precision=precision, batch_size=batch_size)


def learner_folder(record: Record, task: int, n_tasks: int) -> Path:
    """Where a record keeps the learner after a task (from 0).

    Raises:
        RecordError: it does not keep it; how to get it is said.
    """
    checkpoints = record.folder / "checkpoints"
    folders = [task_folder(checkpoints, task), *([checkpoints] if task == n_tasks - 1 else [])]
    found = next((folder for folder in reversed(folders) if (folder / LEARNER).exists()), None)
    if found is not None:
        return found
    save = record.config.get("save")
    if save == "tasks":
        raise RecordError(
            f"{record.folder} does not hold the learner after task {task}: {record.method} may have learned nothing "
            "there, or the file was removed. Try a later task."
        )
    asked = "true" if task == n_tasks - 1 else '"tasks"'
    raise RecordError(
        f"{record.folder} does not hold the learner after task {task}: it was run with save = {str(save).lower()}. "
        f"Run it again with save = {asked}: tangentcl run FILE --set 'save={asked}' --overwrite"
    )


def check_files(folder: Path, description: Description) -> None:
    """Compare the files of an export with what its description says of them.

    Raises:
        ModelError: a file that is missing or has another content, by name.
    """
    if LEARNER not in description.files:
        raise ModelError(f"{folder / EXPORT} is damaged: it names no {LEARNER}.")
    for name, digest in description.files.items():
        path = folder / name
        if Path(name).name != name:
            raise ModelError(f"{folder / EXPORT} names the file {name!r} outside its folder; refusing to use it.")
        if not path.is_file():
            raise ModelError(f"{path} is missing; the export needs it. Was it copied completely?")
        if file_digest(path) != digest:
            raise ModelError(f"{path} is damaged: its checksum is not the one in {EXPORT}. Copy the export again.")
    try:
        metadata((folder / LEARNER).read_bytes())
    except Damaged as error:
        raise ModelError(f"{folder / LEARNER} is damaged: {error}.") from error


def _features(description: Description, place: str | Path | None, trust_remote_code: bool) -> Backbone:
    """The backbone, if it has the weights that the learner was trained on.

    Raises:
        ModelError: it cannot be made, or has others.
    """
    table: dict[str, Any] = dict(description.backbone)
    if place is not None:
        table["name"] = str(place)
        if Path(place).is_dir():
            table.pop("revision", None)
    if table.get("trust_remote_code") and not trust_remote_code:
        raise ModelError(
            f"the backbone {table.get('name')!r} runs Python code of its own. If you trust it, repeat with "
            "trust_remote_code=True (--trust-remote-code)."
        )
    try:
        features = build_backbone(table)
    except ModelError as error:
        if place is not None:
            raise
        raise ModelError(f"{error} Where do its weights lie now? backbone=... (--backbone) says it.") from error
    known = description.pretrained.get("sha256")
    if known != features.card.sha256:
        raise ModelError(
            f"the backbone {table.get('name')!r} has other weights than those that were trained on: their checksum was "
            f"{str(known)[:12]}, it is {features.card.sha256[:12]}. Give the place of the right ones: backbone=... "
            "(--backbone)."
        )
    return features


def _method(description: Description, features: Backbone) -> Method:
    """The method as its run constructed it, led through the beginnings of its tasks.

    Raises:
        ModelError: it needs samples to begin a task.
    """
    method = build_method(description.method, features, description.seed)
    for task in description.stream():
        try:
            begin(method, task, description.seed)
        except TangentclError:
            raise
        except Exception as error:  # a user's own method can raise anything
            raise ModelError(
                f"{type(method).__name__}.begin_task({task.index}) failed without samples ({type(error).__name__}: "
                f"{error}). It may look at classes, but samples belong into training_samples, training_loss or "
                "end_task: what begins a task is begun again when a learner is loaded, without data."
            ) from error
    return method

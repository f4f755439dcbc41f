"""A trained learner that answers: raw inputs in, class names or scores out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tangentcl.data import Samples, Table, Transform
from tangentcl.data.inputs import Inputs
from tangentcl.errors import ConfigError, DataError, ModelError, nearest
from tangentcl.methods import Method
from tangentcl.nn.backbone import to_device
from tangentcl.serving.description import Description
from tangentcl.serving.raw_inputs import raw_inputs

PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}

Skip = Callable[[int, str], None]  # position of an input that cannot be used, and why


class Predictor:
    """What a run has learned, ready to answer; made by `tangentcl.load_predictor`.

    Inputs are raw: PIL images, paths of image files, numpy images, texts, or arrays, as many as there are; they pass
    the transform of the run's evaluation. Answers on the samples of an evaluation are those of the run, to the last
    bit with the same batch size on the same kind of device.

    Args:
        description: what it is.
        method: with all that it has learned; moved to ``device``, and never trained here.
        transform: of evaluation.
        device: "auto" (CUDA, else MPS, else CPU), or a device of torch. precision: "fp32", "bf16" or "fp16"; None is
            the run's. batch_size: inputs per forward pass; None is the run's.

    Attributes:
        description, method, transform, device, precision, batch_size: as above.

    Raises:
        ConfigError: a device that is not there, an unknown precision, or a batch size below 1.
    """

    def __init__(
        self,
        description: Description,
        method: Method,
        transform: Transform,
        *,
        device: str | torch.device = "auto",
        precision: str | None = None,
        batch_size: int | None = None,
    ) -> None:
        self.description, self.transform = description, transform
        self.device = _device(device)
        self.precision = description.precision if precision is None else precision
        if self.precision not in PRECISIONS:
            raise ConfigError(f"unknown precision {self.precision!r}.{nearest(str(self.precision), PRECISIONS)}")
        if self.precision == "fp16" and self.device.type != "cuda":
            raise ConfigError(
                f"precision 'fp16' needs CUDA, the device is {str(self.device)!r}. Try precision='bf16' or 'fp32'."
            )
        self.batch_size = description.batch_size if batch_size is None else batch_size
        if self.batch_size < 1:
            raise ConfigError(f"batch_size must be at least 1, got {self.batch_size}")
        self.method = method.to(self.device).eval()

    @property
    def class_names(self) -> list[str]:
        """Names of the classes, in the order of labels and scores."""
        return list(self.description.class_names)

    @property
    def task_names(self) -> list[str]:
        """Names of the tasks learned, in order."""
        return [str(task["name"]) for task in self.description.tasks]

    def predict(self, inputs: Any, *, task: int | str | None = None) -> list[str]:
        """Name of the class of each input.

        Args:
            inputs: see the class; a single text, path or PIL image counts as a list of one.
            task: number (from 0) or name of a task: choose among its classes only, as a task-incremental evaluation
                does.

        Raises:
            DataError: an input that cannot be used, by its place. ModelError: scores that are NaN.
            ConfigError: no such task.
        """
        return [self.description.class_names[label] for label in self.labels(inputs, task=task).tolist()]

    def labels(self, inputs: Any, *, task: int | str | None = None) -> np.ndarray:
        """Label of each input, int64 [n], a place in ``class_names``; arguments and errors as `predict`."""
        scores = self.scores(inputs)
        allowed = np.asarray(self.classes_of(task), dtype=np.int64)
        return allowed[scores[:, allowed].argmax(axis=1)]

    def scores(self, inputs: Any, *, task: int | str | None = None) -> np.ndarray:
        """What the method gives for each input and class, [n, C]; minus infinity outside ``task``, else as `predict`.

        What a score is depends on the method: a logit, a cosine, a negative distance. Greater is more likely.
        """
        given = raw_inputs(inputs, self.description.modality)
        n = len(given)
        scores: np.ndarray | None = None
        for positions, found in self.batches(given):
            if scores is None:
                scores = np.zeros((n, found.shape[1]), dtype=found.dtype)
            scores[positions] = found
        if scores is None:
            return np.zeros((0, len(self.description.class_names)), dtype=np.float32)
        return self.among(scores, task)

    def softmax(self, inputs: Any, *, task: int | str | None = None) -> np.ndarray:
        """Softmax of `scores`, [n, C]; a probability only where the method was trained by cross-entropy."""
        return softmax(self.scores(inputs, task=task))

    def among(self, scores: np.ndarray, task: int | str | None) -> np.ndarray:
        """Scores [n, C] with minus infinity for classes outside a task."""
        if task is None:
            return scores
        outside = np.ones(scores.shape[1], dtype=bool)
        outside[self.classes_of(task)] = False
        kept = scores.copy()
        kept[:, outside] = -np.inf
        return kept

    def classes_of(self, task: int | str | None) -> list[int]:
        """Labels of a task, by number (from 0) or name; of all tasks for None.

        Raises:
            ConfigError: no such task.
        """
        if task is None:
            return list(range(len(self.description.class_names)))
        names = self.task_names
        if isinstance(task, str) and task in names:
            task = names.index(task)
        if isinstance(task, str) or not 0 <= task < len(names):
            known = nearest(str(task), names) if len(names) <= 20 else f" There are {len(names)} tasks."
            raise ConfigError(f"there is no task {task!r}: give 0 to {len(names) - 1}, or a name.{known}")
        return list(self.description.tasks[task]["classes"])

    def batches(self, inputs: Inputs, *, skip: Skip | None = None) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Positions [b] and scores [b, C], batch by batch, short texts first.

        Args:
            inputs: as `raw_inputs` returns them.
            skip: called for an input that cannot be used, which is then left out; None raises the error.

        Raises:
            DataError: an input that cannot be used. ModelError: scores that are NaN, or of another shape.
        """
        n = len(inputs)
        table = Table(inputs, np.zeros(n, dtype=np.int64), np.arange(n))
        samples = Samples(table, transform=self.transform)
        order = samples.short_first() if self.description.modality == "text" else np.arange(n)
        for start in range(0, n, self.batch_size):
            positions, items = _usable(samples, order[start : start + self.batch_size], skip)
            if items:
                yield positions, self._scores(samples.collate(items)[0], positions)

    def _scores(self, x: Any, positions: np.ndarray) -> np.ndarray:
        with torch.inference_mode(), self._autocast():
            scores = self.method.predict(to_device(x, self.device))
        expected = (len(positions), len(self.description.class_names))
        if not isinstance(scores, Tensor) or tuple(scores.shape) != expected:
            got = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
            raise ModelError(f"{type(self.method).__name__}.predict must give scores {list(expected)}, got {got}.")
        found = scores if scores.dtype == torch.float64 else scores.float()
        bad = torch.isnan(found).any(dim=1).cpu().numpy()
        if bad.any():
            raise ModelError(f"{type(self.method).__name__}.predict gave NaN for input {int(positions[bad][0])}.")
        return found.cpu().numpy()

    def _autocast(self) -> AbstractContextManager[Any]:
        half = PRECISIONS[self.precision]
        return torch.autocast(self.device.type, dtype=half or torch.bfloat16, enabled=half is not None)

    def __repr__(self) -> str:
        about = self.description
        return (
            f"Predictor({about.label!r} of {about.experiment!r}, {len(about.class_names)} classes of "
            f"{len(about.tasks)} tasks, {about.modality} inputs, on {self.device})"
        )


def softmax(scores: np.ndarray) -> np.ndarray:
    """Row by row, float64; minus infinity gets 0.

    >>> softmax(np.array([[0.0, 0.0, -np.inf]])).tolist()
    [[0.5, 0.5, 0.0]]
    """
    shifted = np.exp(scores.astype(np.float64) - scores.max(axis=1, keepdims=True))
    return shifted / shifted.sum(axis=1, keepdims=True)


def _usable(samples: Samples, positions: Sequence[int] | np.ndarray, skip: Skip | None) -> tuple[np.ndarray, list[Any]]:
    kept, items = [], []
    for position in positions:
        try:
            items.append(samples.item(int(position), None))
            kept.append(int(position))
        except DataError as error:
            if skip is None:
                raise DataError(f"Input {int(position)} cannot be used: {error}") from error
            skip(int(position), str(error))
    return np.array(kept, dtype=np.int64), items


def _device(device: str | torch.device) -> torch.device:
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if device == "auto":
        return torch.device(next(name for name in ("cuda", "mps", "cpu") if available[name]))
    try:
        found = torch.device(device)
    except RuntimeError as error:
        raise ConfigError(f"unknown device {device!r}.{nearest(str(device), [*available, 'auto'])}") from error
    if not available.get(found.type, True):
        has = ", ".join(name for name, yes in available.items() if yes)
        raise ConfigError(f"device is {str(device)!r}, which this machine does not have. It has: {has}.")
    return found

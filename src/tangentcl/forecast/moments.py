"""What a task leaves behind for forecasts without its data: second moments of its features, and class means."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tangentcl.errors import DataError
from tangentcl.linalg import Sketch, make_sketch, restored, with_constant

FORMAT = 1  # of `TaskMoments.header`


@dataclass(eq=False)
class TaskMoments:
    """Moments of one task's features, which always carry a constant 1 as their last column.

    Attributes:
        features: second moment of the features, of width d + 1.
        sums: of the features of each class, label -> float64 [d + 1]; the last number is how many there are.
        layers: second moments of what goes into each adapted layer, with a constant, over tokens; by the layer's name.
        task: its index in the stream, 0 for the first.
        name: of the task.
    """

    features: Sketch
    sums: dict[int, Tensor] = field(default_factory=dict)
    layers: dict[str, Sketch] = field(default_factory=dict)
    task: int = 0
    name: str = ""

    @classmethod
    def empty(
        cls, width: int, *, sketch: str = "low_rank_diagonal", k: int = 64, task: int = 0, name: str = ""
    ) -> TaskMoments:
        """Nothing seen yet, for features [n, width].

        Args:
            sketch: kind of the second moment: ``"exact"``, ``"low_rank_diagonal"`` or ``"frequent_directions"``.
            k: directions that a sketch keeps.

        Raises:
            ConfigError: an unknown kind or k below 1.

        >>> moments = TaskMoments.empty(2, sketch="exact")
        >>> moments.add(torch.tensor([[1.0, 0.0], [3.0, 0.0]]), torch.tensor([7, 7]))
        >>> moments.n, moments.classes.tolist(), moments.means.tolist()
        (2, [7], [[2.0, 0.0, 1.0]])
        """
        return cls(make_sketch(sketch, width + 1, k), task=task, name=name)

    @property
    def n(self) -> int:
        """Number of samples."""
        return self.features.n

    @property
    def classes(self) -> Tensor:
        """Labels that occurred, ascending, int64 [K]."""
        return torch.tensor(sorted(self.sums), dtype=torch.int64)

    @property
    def counts(self) -> Tensor:
        """Samples of each class, int64 [K]."""
        return self._sums()[:, -1].round().to(torch.int64)

    @property
    def means(self) -> Tensor:
        """Mean features of each class, with the constant, float64 [K, d + 1]."""
        sums = self._sums()
        return sums / sums[:, -1:]

    def add(self, features: Tensor, labels: Tensor) -> None:
        """Add samples: features [m, d], labels int64 [m].

        Raises:
            DataError: shapes that do not fit, or features that are not finite.
        """
        if features.ndim != 2 or features.shape[1] + 1 != self.features.d or labels.shape != features.shape[:1]:
            raise DataError(
                f"expected features [m, {self.features.d - 1}] and m labels, "
                f"got {list(features.shape)} and {list(labels.shape)}"
            )
        rows = with_constant(features.detach().cpu(), 1.0)
        self.features.update(rows)
        classes, index = labels.cpu().unique(return_inverse=True)
        sums = torch.zeros(len(classes), self.features.d, dtype=torch.float64).index_add_(0, index, rows)
        for label, total in zip(classes.tolist(), sums):
            self.sums[label] = self.sums[label] + total if label in self.sums else total.clone()

    def merge(self, other: TaskMoments) -> None:
        """Add the samples of other moments of the same kind and size, which stay as they are.

        Raises:
            DataError: another kind of sketch, another width, or other layers.
        """
        if set(self.layers) != set(other.layers):
            odd = sorted(set(self.layers) ^ set(other.layers))
            raise DataError(f"moments of different layers cannot be merged; only one side has {odd[:3]}")
        self.features.merge(other.features)
        for label, total in other.sums.items():
            self.sums[label] = self.sums[label] + total if label in self.sums else total.clone()
        for name, sketch in other.layers.items():
            self.layers[name].merge(sketch)

    @property
    def header(self) -> dict[str, Any]:
        """Sizes and names as JSON values."""
        return {
            "format": FORMAT,
            "task": self.task,
            "name": self.name,
            "features": self.features.header,
            "layers": {name: sketch.header for name, sketch in self.layers.items()},
        }

    def tensors(self) -> dict[str, Tensor]:
        """What a file holds besides the header."""
        found = {f"features/{key}": value for key, value in self.features.tensors().items()}
        for name, sketch in self.layers.items():
            found |= {f"layers/{name}/{key}": value for key, value in sketch.tensors().items()}
        return {**found, "classes": self.classes, "sums": self._sums()}

    @classmethod
    def restored(cls, header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> TaskMoments:
        """The moments whose `header` and `tensors` these are.

        Raises:
            DataError: values that are missing or do not fit.
        """
        try:
            if header["format"] != FORMAT:
                raise DataError(f"moments of format {header['format']!r}; this version reads format {FORMAT}")
            features = restored(header["features"], _under("features/", tensors))
            layers = {str(key): restored(of, _under(f"layers/{key}/", tensors)) for key, of in header["layers"].items()}
            task, name = int(header["task"]), str(header["name"])
            classes, sums = tensors["classes"], tensors["sums"]
        except (KeyError, TypeError, AttributeError) as error:
            raise DataError(f"not the moments of a task: {error!r} is missing or of another kind") from error
        if classes.ndim != 1 or sums.shape != (len(classes), features.d) or sums.dtype != torch.float64:
            raise DataError(f"moments with {list(classes.shape)} classes and class sums {list(sums.shape)} do not fit")
        if not bool(sums.isfinite().all()) or not bool((sums[:, -1] > 0).all()):
            raise DataError("class sums must be finite, each of at least one sample")
        return cls(features, dict(zip(classes.tolist(), sums.clone())), layers, task, name)

    def _sums(self) -> Tensor:
        rows = [self.sums[label] for label in sorted(self.sums)]
        return torch.stack(rows) if rows else torch.zeros(0, self.features.d, dtype=torch.float64)


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}

"""Accuracy of a method on samples, counted class by class."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tangentcl.data import Samples
from tangentcl.errors import ModelError
from tangentcl.methods import Method
from tangentcl.training.runtime import Runtime


def predicted_classes(
    method: Method,
    samples: Samples,
    runtime: Runtime,
    *,
    batch_size: int = 256,
    among: Sequence[int] | None = None,
    n_seen: int | None = None,
) -> Tensor:
    """Predicted stream label of every sample, ``[n]`` int64 on the CPU; the samples are shared among processes.

    Args:
        among: classes to choose from, as in task-incremental evaluation; all seen classes when ``None``.
        n_seen: columns that the scores must have; not checked when ``None``.

    Raises:
        ModelError: scores of another shape than ``[B, n_seen]``, or one that is NaN, named with its sample.
    """
    n = len(samples)
    mine = samples.short_first()[runtime.rank :: runtime.world]  # [n / world], dealt so that each has all lengths
    predicted = torch.zeros(n, dtype=torch.int64, device=runtime.device)
    was_training, done, damaged = method.training, 0, -1
    method.eval()
    with torch.inference_mode():
        for x, y in samples.subset(mine).batches(batch_size):
            with runtime.autocast():
                scores = method.predict(runtime.to_device(x))  # [B, n_seen]
            _check_shape(method, scores, len(y), n_seen)
            here = torch.from_numpy(mine[done : done + len(y)]).to(runtime.device)
            done += len(y)
            bad = torch.isnan(scores).any(dim=1)
            if damaged < 0 and bool(bad.any()):
                damaged = int(here[bad][0])
            if among is None:
                best = scores.argmax(dim=1)
            else:
                allowed = torch.as_tensor(among, device=scores.device)
                best = allowed[scores[:, allowed].argmax(dim=1)]
            predicted[here] = best
    method.train(was_training)
    worst = runtime.sum(torch.tensor([damaged + 1], device=runtime.device))  # every process must stop together
    if int(worst) > 0:
        raise ModelError(
            f"{type(method).__name__}.predict gave NaN"
            + (f" for sample {str(samples.ids[damaged])!r}" if damaged >= 0 else "")
            + ". Training may have diverged: try a smaller plan.lr, or plan.clip_norm."
        )
    return runtime.sum(predicted).cpu()


def predicted_scores(method: Method, samples: Samples, runtime: Runtime, *, batch_size: int = 256) -> Tensor:
    """What ``method.predict`` gives for every sample, float32 ``[n, C]`` on the CPU; shared among processes.

    Raises:
        ModelError: scores that are no ``[B, C]``.
    """
    mine = samples.short_first()[runtime.rank :: runtime.world]
    mine = mine if len(mine) else samples.short_first()[:1]  # every process has to know the number of columns
    scores: Tensor | None = None
    was_training, done = method.training, 0
    method.eval()
    with torch.inference_mode():
        for x, y in samples.subset(mine).batches(batch_size):
            with runtime.autocast():
                found = method.predict(runtime.to_device(x))  # [B, C]
            _check_shape(method, found, len(y), None)
            if scores is None:
                scores = torch.zeros(len(samples), found.shape[1], device=runtime.device)
            here = torch.from_numpy(mine[done : done + len(y)]).to(runtime.device)
            done += len(y)
            if runtime.rank < len(samples):
                scores[here] = found.float()
        if scores is None:
            raise ModelError(f"{type(method).__name__} was asked for scores of no sample")
        total = runtime.sum(scores).cpu()
    method.train(was_training)
    return total.clone()


def _check_shape(method: Method, scores: Tensor, batch: int, n_seen: int | None) -> None:
    got = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
    if not isinstance(got, tuple) or len(got) != 2 or got[0] != batch or (n_seen is not None and got[1] != n_seen):
        columns = "classes seen" if n_seen is None else f"{n_seen} classes seen"
        raise ModelError(
            f"{type(method).__name__}.predict must return one score per sample and class, "
            f"[{batch} samples, {columns}], got {got}"
        )


def count_correct(predicted: Tensor, labels: Tensor, n_classes: int) -> tuple[Tensor, Tensor]:
    """Correct predictions and samples of each class, two ``[n_classes]`` int64 tensors.

    >>> count_correct(torch.tensor([0, 1, 1]), torch.tensor([0, 0, 1]), 3)
    (tensor([1, 1, 0]), tensor([2, 1, 0]))
    """
    total = torch.bincount(labels, minlength=n_classes)
    correct = torch.bincount(labels[predicted == labels], minlength=n_classes)
    return correct, total

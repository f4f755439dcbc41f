"""Batches as models eat them: a tensor, or a mapping or a sequence that holds tensors with one row per sample."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from tangentcl.errors import DataError


def tensors(x: Any) -> list[Tensor]:
    """The tensors of a batch, in order; what is not a tensor belongs to every sample."""
    if isinstance(x, Tensor):
        return [x]
    values = list(x.values()) if isinstance(x, Mapping) else list(x) if isinstance(x, (list, tuple)) else []
    return [value for value in values if isinstance(value, Tensor)]


def with_tensors(x: Any, replaced: list[Tensor]) -> Any:
    """The batch with other tensors, in the order of `tensors`."""
    if isinstance(x, Tensor):
        return replaced[0]
    left = iter(replaced)
    if isinstance(x, Mapping):
        return {key: next(left) if isinstance(value, Tensor) else value for key, value in x.items()}
    return type(x)(next(left) if isinstance(value, Tensor) else value for value in x)


def n_samples(x: Any) -> int:
    """Rows that all tensors of the batch share.

    Raises:
        DataError: no tensor, no sample, or tensors with different numbers of rows.

    >>> import torch
    >>> n_samples({"input_ids": torch.zeros(3, 5), "attention_mask": torch.ones(3, 5)})
    3
    """
    sizes = {len(t) if t.ndim else -1 for t in tensors(x)}
    if len(sizes) != 1 or min(sizes) < 1:
        raise DataError(
            "expected a batch: a tensor, or a dict, list or tuple of tensors with one row per sample and at least one "
            f"sample; got {type(x).__name__} with {sorted(sizes)} rows"
        )
    return sizes.pop()


def samples(x: Any, start: int, stop: int) -> Any:
    """Some samples of a batch."""
    return with_tensors(x, [t[start:stop] for t in tensors(x)])


def chunks(x: Any, size: int) -> Iterator[Any]:
    """The batch in parts of at most ``size`` samples."""
    for start in range(0, n_samples(x), size):
        yield samples(x, start, start + size)

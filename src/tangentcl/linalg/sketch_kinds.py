"""Sketches by the name of their kind, and from what a file holds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from tangentcl.errors import ConfigError, DataError, nearest
from tangentcl.linalg.sketch import SecondMoment, Sketch
from tangentcl.linalg.streamed_sketch import FrequentDirections, LowRankDiagonal

KINDS = {kind.kind: kind for kind in (SecondMoment, LowRankDiagonal, FrequentDirections)}


def make_sketch(kind: str, d: int, k: int | None = None) -> Sketch:
    """An empty sketch by the name of its kind: ``"exact"``, ``"low_rank_diagonal"`` or ``"frequent_directions"``.

    Args:
        d: width of the rows; k: directions kept, not used by ``"exact"``.

    Raises:
        ConfigError: an unknown kind, or no k where one is needed.

    >>> make_sketch("low_rank_diagonal", 4, 2).header
    {'kind': 'low_rank_diagonal', 'd': 4, 'n': 0, 'total': 0.0, 'shed': 0.0, 'k': 2}
    """
    if kind not in KINDS:
        raise ConfigError(f"a sketch must be one of {', '.join(KINDS)}, got {kind!r}.{nearest(str(kind), KINDS)}")
    if kind == SecondMoment.kind:
        return SecondMoment(d)
    if k is None:
        raise ConfigError(f"a {kind} sketch needs the number of directions to keep, k")
    return LowRankDiagonal(d, k) if kind == LowRankDiagonal.kind else FrequentDirections(d, k)


def restored(header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Sketch:
    """The sketch whose `Sketch.header` and `Sketch.tensors` these are.

    Raises:
        DataError: values that are missing or do not fit.
    """
    try:
        sketch = make_sketch(str(header["kind"]), int(header["d"]), header.get("k"))  # an exact one takes its memory
        sketch.n, sketch.total, sketch._shed = int(header["n"]), float(header["total"]), float(header["shed"])
    except (KeyError, TypeError, ValueError, OverflowError, RuntimeError, MemoryError) as error:
        raise DataError(f"not the header of a sketch: {dict(header)} ({error!r})") from error
    try:
        sketch._restore(tensors)
    except (RuntimeError, MemoryError) as error:  # sizes in the header that no tensor can have
        raise DataError(f"not the header of a sketch: {dict(header)} ({error!r:.200})") from error
    return sketch

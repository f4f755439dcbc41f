"""A module traced to ONNX, for any number of samples and any length of texts."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from tangentcl.nn.weights import reason

MAX_BATCH, MAX_TOKENS = 4096, 1 << 20


def onnx_program(module: nn.Module, batch: dict[str, Tensor], output: str, most_tokens: int | None = None) -> Any:
    """The ``ModelProto`` of ``module(*batch.values())``; its first dimension, and the second of ``input_ids`` and what
    comes with them, are free.

    Args:
        module: in evaluation mode.
        batch: inputs by name.
        output: name of the result.
        most_tokens: length of the longest text.

    Raises:
        Exception: of many kinds, the exporter's own; see `why`.
    """
    free: dict[int, Any] = {0: torch.export.Dim("batch", max=MAX_BATCH)}
    if "input_ids" in batch:
        free[1] = torch.export.Dim("tokens", max=most_tokens or MAX_TOKENS)
    few = {key: value[: max(2, min(3, len(value)))] for key, value in batch.items()}
    if any(len(value) < 2 for value in few.values()):  # a batch of one would be traced as always one
        few = {key: torch.cat([value, value]) for key, value in few.items()}
    with torch.enable_grad(), _quietly():  # without gradients small batches may take another way, by their size
        program = torch.onnx.export(
            module,
            tuple(few.values()),
            input_names=list(few),
            output_names=[output],
            dynamic_shapes=tuple(dict(free) for _ in few),
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    assert program is not None
    return program.model_proto


def why(error: BaseException) -> str:
    """The cause of a failure in one line."""
    text = str(error)
    if "GuardOnDataDependent" in text or "data-dependent" in text:
        return "what it computes depends on values and not on shapes alone (data-dependent control flow)."
    cause = error.__cause__ or error
    said = reason(cause)[:200].rstrip(".")
    return f"{type(cause).__name__}: {said}."


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """The exporter prints steps, warns of packages that are not needed, and logs graphs that it cannot trace."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "torch.fx", "torch", "onnxscript")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels):
            logger.setLevel(level)

"""A backbone's features by OpenVINO, on a CPU."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tangentcl.errors import ModelError, import_extra
from tangentcl.nn.backbone import Backbone
from tangentcl.nn.engine import Forward, Inputs, tensors_of

TELEMETRY = "openvino_telemetry"


def openvino_forward(backbone: Backbone, precision: str) -> Forward:
    """The backbone compiled for any batch and any length of texts.

    Raises:
        MissingExtra: openvino is not installed.
        ModelError: the backbone cannot be traced or compiled.
    """
    core = load_openvino()
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

    hints = {
        "INFERENCE_PRECISION_HINT": {"fp32": "f32", "bf16": "bf16"}[precision],  # its own default rounds where it can
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "PERFORMANCE_HINT": "LATENCY",
    }
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Python values that tracing fixes; the check finds what matters
            tensors = tuple(tensors_of(backbone.sample_input()))
            traced = torch.jit.trace(Inputs(backbone).eval(), tensors, check_trace=False, strict=False)
            frontend = FrontEndManager().load_by_framework("pytorch")
            decoder = TorchScriptPythonDecoder(traced)  # has to live until it is converted
            model = frontend.convert(frontend.load(decoder))
        compiled = core.compile_model(model, "CPU", hints)
    except Exception as error:  # each of the three raises kinds of its own
        raise ModelError(
            f"engine 'openvino' cannot compute {backbone.card.name}: {_why(error)} Try engine='torch'."
        ) from error

    def forward(inputs: Sequence[NDArray[Any]]) -> NDArray[np.float32]:
        try:
            return compiled(list(inputs))[0]
        except RuntimeError as error:
            shapes = ", ".join(str(array.shape) for array in inputs)
            raise ModelError(
                f"engine 'openvino' cannot compute {backbone.card.name} for inputs {shapes}: {_why(error)} "
                "Try engine='torch'."
            ) from error

    return forward


def _why(error: Exception) -> str:
    """Its many lines in one; the cause comes last."""
    text = " ".join(str(error).split())
    return (text if len(text) < 300 else f"... {text[-300:]}").rstrip(".") + "."


def load_openvino() -> Any:
    """OpenVINO's ``Core``.

    Raises:
        MissingExtra: openvino is not installed.
    """
    with _silent():
        return import_extra("openvino", extra="openvino", purpose="the engine 'openvino'").Core()


@contextmanager
def _silent() -> Iterator[None]:
    """Importing openvino reports its use over the network, unasked; without that package it uses a stub."""
    if TELEMETRY in sys.modules:  # the user's own import came first
        yield
        return
    sys.modules[TELEMETRY] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[TELEMETRY]

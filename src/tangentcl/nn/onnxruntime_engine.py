"""A backbone's features by ONNX Runtime, on a CPU."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tangentcl.errors import ModelError, import_extra
from tangentcl.nn.backbone import Backbone
from tangentcl.nn.engine import Forward, Inputs, tensors_of
from tangentcl.nn.onnx_program import onnx_program, why

NAMES = {1: ("pixels",), 2: ("input_ids", "attention_mask")}


class _OfTexts(nn.Module):
    """`Inputs` with the two arguments spelled out, which the exporter asks for."""

    def __init__(self, inputs: Inputs) -> None:
        super().__init__()
        self.inputs = inputs

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.inputs(input_ids, attention_mask)


class _OfImages(nn.Module):
    """`Inputs` with the one argument spelled out."""

    def __init__(self, inputs: Inputs) -> None:
        super().__init__()
        self.inputs = inputs

    def forward(self, pixels: Tensor) -> Tensor:
        return self.inputs(pixels)


def onnxruntime_forward(backbone: Backbone) -> Forward:
    """The backbone as an ONNX program for any batch and any length of texts, in float32.

    Raises:
        MissingExtra: its packages are not installed.
        ModelError: the backbone cannot be traced, or not be run by onnxruntime.
    """
    onnxruntime = load_onnxruntime()
    tensors = tensors_of(backbone.sample_input())
    names = NAMES[len(tensors)]
    wrapped = (_OfImages if len(tensors) == 1 else _OfTexts)(Inputs(backbone)).eval()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    try:
        program = onnx_program(wrapped, dict(zip(names, tensors)), "features", _most_tokens(backbone))
        session = onnxruntime.InferenceSession(program.SerializeToString(), options, ["CPUExecutionProvider"])
    except Exception as error:  # the exporter and onnxruntime raise many kinds
        raise ModelError(
            f"engine 'onnxruntime' cannot compute {backbone.card.name}: {why(error)} Try engine='torch'."
        ) from error

    def forward(inputs: Sequence[NDArray[Any]]) -> NDArray[np.float32]:
        try:
            return session.run(None, dict(zip(names, inputs)))[0]
        except Exception as error:  # onnxruntime's own kinds
            shapes = ", ".join(str(array.shape) for array in inputs)
            raise ModelError(
                f"engine 'onnxruntime' cannot compute {backbone.card.name} for inputs {shapes}: {why(error)} "
                "Try engine='torch'."
            ) from error

    return forward


def load_onnxruntime() -> Any:
    """The package, with those that write its programs.

    Raises:
        MissingExtra: one of them is not installed.
    """
    found = [
        import_extra(package, extra="onnx", purpose="the engine 'onnxruntime'")
        for package in ("onnx", "onnxscript", "onnxruntime")
    ]
    return found[-1]


def _most_tokens(backbone: Backbone) -> int | None:
    if backbone.card.modality != "text":
        return None
    from tangentcl.nn.hf import position_limit

    return position_limit(backbone.model)

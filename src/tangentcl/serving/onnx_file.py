"""Backbone and head of a learner as one ONNX file, checked against the learner itself."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tangentcl.data import ImageTransform, Samples
from tangentcl.errors import ModelError, import_extra
from tangentcl.methods import Method
from tangentcl.nn import Backbone
from tangentcl.nn.onnx_program import onnx_program, why
from tangentcl.serving.description import Description
from tangentcl.serving.predictor import Predictor

ONNX = "model.onnx"
CHECKED = 32  # samples that the file is checked on
TOLERANCE = 1e-4  # on a score, in units of the largest where that exceeds 1


class _OfImages(nn.Module):
    """``predict`` of a tensor."""

    def __init__(self, method: Method) -> None:
        super().__init__()
        self.method = method

    def forward(self, pixels: Tensor) -> Tensor:
        return self.method.predict(pixels)


class _OfTexts(nn.Module):
    """``predict`` of tokens."""

    def __init__(self, method: Method) -> None:
        super().__init__()
        self.method = method

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.method.predict({"input_ids": input_ids, "attention_mask": attention_mask})


def onnx_file(predictor: Predictor, samples: Samples | None) -> tuple[bytes, dict[str, Any]]:
    """The content of the file, and how it was checked.

    The inputs are ``pixels`` [B, 3, H, W], or ``input_ids`` and ``attention_mask`` [B, N], both of any B (and N): what
    the transform of evaluation makes of raw inputs. The output is ``scores`` [B, C]. Names of the classes and the
    transform are in the file's metadata.

    Args:
        predictor: in float32 on a CPU.
        samples: real ones to check it on; None checks on made-up ones.

    Raises:
        MissingExtra: its packages are not installed.
        ModelError: a prediction that cannot be traced, or that onnxruntime computes otherwise or not at all.
    """
    for package in ("onnx", "onnxscript", "onnxruntime"):
        import_extra(package, extra="onnx", purpose="writing an ONNX file")
    name = type(predictor.method).__name__
    batch, made_up = _batch(predictor, samples)
    with torch.inference_mode():
        expected = predictor.method.predict(_as_batch(batch))  # heads solve for their weights here, before the tracing
    wrapped: nn.Module = _OfTexts(predictor.method) if "input_ids" in batch else _OfImages(predictor.method)
    content = _traced(wrapped.eval(), batch, predictor.description, name)
    largest = _compare(content, batch, expected, name)
    what = "made-up inputs" if made_up else "test samples of the run"
    return content, {"checked": len(expected), "on": what, "largest_difference": largest, "tolerance": TOLERANCE}


def _batch(predictor: Predictor, samples: Samples | None) -> tuple[dict[str, Tensor], bool]:
    """Inputs by name, and whether they are made up."""
    if samples is not None and len(samples):
        x = next(samples.batches(len(samples)))[0]
    else:
        x = _made_up(predictor)
    return (x if isinstance(x, dict) else {"pixels": x}), samples is None


def _made_up(predictor: Predictor) -> Any:
    if isinstance(predictor.transform, ImageTransform):
        size, rng = predictor.transform.size, np.random.default_rng(0)
        noise = rng.integers(0, 256, (CHECKED, size, size, 3), dtype=np.uint8)
        return predictor.transform.collate([predictor.transform(image, None) for image in noise])
    found = next(m for m in predictor.method.modules() if isinstance(m, Backbone))
    return found.sample_input()


def _as_batch(batch: dict[str, Tensor]) -> Any:
    return batch.get("pixels", batch)


def _traced(module: nn.Module, batch: dict[str, Tensor], about: Description, name: str) -> bytes:
    """The file's content."""
    import onnx

    try:
        longest = _most_tokens(module) if "input_ids" in batch else None
        model = onnx_program(module, batch, "scores", longest)
        facts = {"class_names": about.class_names, "transform": about.transforms, "label": about.label}
        onnx.helper.set_model_props(model, {key: json.dumps(value) for key, value in facts.items()})
        return model.SerializeToString()
    except Exception as error:  # the exporter raises many kinds
        raise ModelError(
            f"the prediction of {name} cannot be written as ONNX: {why(error)} Serve it from Python instead: "
            "tangentcl.load_predictor."
        ) from error


def _most_tokens(module: nn.Module) -> int | None:
    """Tokens that the position embedding of a text encoder holds."""
    from tangentcl.nn.hf import position_limit

    found = next((m for m in module.modules() if isinstance(m, Backbone)), None)
    return position_limit(found.model) if found is not None else None


def _compare(content: bytes, batch: dict[str, Tensor], expected: Tensor, name: str) -> float:
    """The largest difference of a score, over all inputs together, the first alone, and some in between.

    Raises:
        ModelError: onnxruntime cannot run the file, or gives other scores.
    """
    import onnxruntime

    largest = 0.0
    try:
        session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
        for n in sorted({1, len(expected) // 2 or 1, len(expected)}):
            found = session.run(None, {key: value[:n].numpy() for key, value in batch.items()})[0]
            largest = max(largest, _difference(found, expected[:n].numpy()))
    except ModelError:
        raise
    except Exception as error:  # onnxruntime's own kinds
        raise ModelError(
            f"the prediction of {name} cannot be run by onnxruntime: {why(error)} Serve it from Python instead: "
            "tangentcl.load_predictor."
        ) from error
    scale = max(1.0, float(expected[expected.isfinite()].abs().max()) if bool(expected.isfinite().any()) else 1.0)
    if not largest <= TOLERANCE * scale:
        raise ModelError(
            f"the ONNX file of {name} gives other scores than {name} itself: they differ by up to {largest:.2g}, "
            f"{TOLERANCE * scale:.2g} is allowed. Serve it from Python instead: tangentcl.load_predictor."
        )
    return largest


def _difference(found: np.ndarray, expected: np.ndarray) -> float:
    """The largest difference; infinite for another shape, or another arg max that is no tie."""
    if found.shape != expected.shape:
        return np.inf
    both = np.isfinite(found) & np.isfinite(expected)
    if not np.array_equal(found[~both], expected[~both]):
        return np.inf
    difference = float(np.abs(found[both] - expected[both]).max(initial=0.0))
    rows = np.arange(len(found))
    lost = expected[rows, expected.argmax(1)] - expected[rows, found.argmax(1)]
    return np.inf if (lost > 2 * difference).any() else difference

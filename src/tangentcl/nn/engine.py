"""Other programs than torch that compute a backbone's features, checked against torch before they are used."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tangentcl.data.samples import Samples
from tangentcl.errors import ConfigError, ModelError, nearest
from tangentcl.nn.backbone import Backbone, BackboneCard, Batch
from tangentcl.nn.extract import evaluating
from tangentcl.nn.known import known_features

ENGINES = ("torch", "openvino", "onnxruntime")
PRECISIONS = {"openvino": ("fp32", "bf16"), "onnxruntime": ("fp32",)}
TOLERANCE = {"fp32": 1e-4, "bf16": 2e-2}
CHECKED = 8  # samples
Forward = Callable[[Sequence[NDArray[Any]]], NDArray[np.float32]]  # inputs by position -> features [B, width]


class Inputs(nn.Module):
    """A backbone's features as a function of plain tensors: ``pixels``, or ``input_ids`` and ``attention_mask``."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.model, self.features = backbone.model, backbone.features

    def forward(self, *tensors: Tensor) -> Tensor:
        x = tensors[0] if len(tensors) == 1 else dict(zip(("input_ids", "attention_mask"), tensors))
        return self.features(self.model, x)


class Engine:
    """A `FeatureExtractor` whose features another program computes. Samples count as passes of the backbone.

    Args:
        backbone: on the CPU, frozen.
        forward: the other program.
    """

    def __init__(self, backbone: Backbone, forward: Forward) -> None:
        self.backbone, self.forward, self.width = backbone, forward, backbone.width

    @property
    def card(self) -> BackboneCard:
        return self.backbone.card

    @property
    def device(self) -> torch.device:
        return self.backbone.device

    def modules(self) -> Iterator[nn.Module]:
        return self.backbone.modules()

    def eval(self) -> Engine:
        self.backbone.eval()
        return self

    def __call__(self, x: Batch) -> Tensor:
        known = known_features(x)
        if known is not None:
            return known
        tensors = tensors_of(x)
        self.backbone.passes += len(tensors[0])
        return self.computed(x)

    def computed(self, x: Batch) -> Tensor:
        """Features of a batch, without counting them."""
        found = self.forward([tensor.numpy() for tensor in tensors_of(x)])
        return torch.from_numpy(np.array(found, dtype=np.float32))  # a copy: the program may reuse its memory


def tensors_of(x: Batch) -> list[Tensor]:
    """The tensors of a batch in the order of `Inputs`.

    Raises:
        ModelError: a batch of other tensors.
    """
    if isinstance(x, Tensor):
        return [x]
    if set(x) != {"input_ids", "attention_mask"}:
        raise ModelError(
            f"an engine computes features of images or of input_ids and attention_mask, got a batch of {sorted(x)}. "
            "Try engine='torch'."
        )
    return [x["input_ids"], x["attention_mask"]]


def check_engine(name: str) -> str:
    """The name of an engine that is installed.

    Raises:
        ConfigError: no such engine.
        MissingExtra: its package is not installed.
    """
    if name not in ENGINES:
        raise ConfigError(f"engine '{name}' is unknown.{nearest(name, ENGINES)}")
    if name == "openvino":
        from tangentcl.nn.openvino_engine import load_openvino

        load_openvino()
    if name == "onnxruntime":
        from tangentcl.nn.onnxruntime_engine import load_onnxruntime

        load_onnxruntime()
    return name


def build_engine(name: str, backbone: Backbone, precision: str, samples: Samples) -> Engine:
    """An engine for a backbone, checked on some of the samples that it will see.

    Args:
        name: ``"openvino"`` or ``"onnxruntime"``.
        precision: ``"fp32"``, or with openvino ``"bf16"``, where the processor has it.
        samples: under the evaluation transform.

    Raises:
        MissingExtra: its package is not installed.
        ConfigError: a device or precision that it does not have.
        ModelError: it cannot compute this backbone, or computes something else.
    """
    if backbone.device.type != "cpu":
        raise ConfigError(
            f"engine '{name}' computes on a CPU, the backbone is on {backbone.device}. Try plan.device = 'cpu', or the "
            "engine 'torch'."
        )
    if precision not in PRECISIONS[name]:
        raise ConfigError(
            f"engine '{name}' computes in {' or '.join(PRECISIONS[name])}, got precision {precision!r}. Try the engine "
            "'torch'."
        )
    with evaluating(backbone):
        if name == "openvino":
            from tangentcl.nn.openvino_engine import openvino_forward

            engine = Engine(backbone, openvino_forward(backbone, precision))
        else:
            from tangentcl.nn.onnxruntime_engine import onnxruntime_forward

            engine = Engine(backbone, onnxruntime_forward(backbone))
        check(engine, name, precision, samples)
    return engine


@torch.no_grad()
def check(engine: Engine, name: str, precision: str, samples: Samples) -> float:
    """The largest relative error of a sample's features against torch in float32: of several together, few, and one.

    Raises:
        ModelError: it is larger than 1e-4 in fp32, 2e-2 in bf16.
    """
    order = samples.short_first()
    chosen = order[np.unique(np.linspace(0, len(order) - 1, CHECKED).astype(np.int64))]
    largest = 0.0
    for n in sorted({1, min(3, len(chosen)), len(chosen)}):  # short texts alone, so other lengths, too
        x, _ = next(samples.subset(chosen[:n]).batches(n))
        with torch.autocast("cpu", enabled=False):
            expected = engine.backbone.features(engine.backbone.model, x).float()
        found = engine.computed(x)
        if found.shape != expected.shape:
            raise ModelError(
                f"engine '{name}' makes features {tuple(found.shape)} with {engine.card.name}, torch "
                f"{tuple(expected.shape)}. Try engine='torch'."
            )
        largest = max(largest, relative_errors(found, expected).max().item())
    if not largest <= TOLERANCE[precision]:
        raise ModelError(
            f"engine '{name}' makes other features of {engine.card.name} than torch: a relative error of "
            f"{largest:.2g} in {precision} on {len(chosen)} samples, {TOLERANCE[precision]:.0e} is allowed. "
            "Try engine='torch'."
        )
    return largest


def relative_errors(found: Tensor, expected: Tensor) -> Tensor:
    """``|found - expected| / |expected|`` of each sample, [B]; NaN counts as infinite.

    >>> relative_errors(torch.tensor([[3.0, 4.5]]), torch.tensor([[3.0, 4.0]]))
    tensor([0.1000])
    """
    errors = (found - expected).norm(dim=1) / expected.norm(dim=1).clamp_min(1e-12)
    return errors.nan_to_num(nan=torch.inf)

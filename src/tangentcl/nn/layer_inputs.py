"""What goes into the linear layers of a backbone: watched in any forward pass, or gathered as second moments."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from tangentcl.data.samples import Samples
from tangentcl.nn.backbone import Backbone, Batch, to_device
from tangentcl.nn.extract import evaluating
from tangentcl.processes import own_stretch, summed


@contextmanager
def layer_inputs(layers: Mapping[str, nn.Module], keep: Callable[[str, Tensor, int], None]) -> Iterator[list[Tensor]]:
    """While it lasts, ``keep(name, rows, n_samples)`` gets the inputs of each layer, [n, d], in every forward pass.

    Yields:
        A list for the mask of the batch, [B, N]: tokens where it is 0 are left out of inputs [B, N, d]. See `mask_of`.
    """
    mask: list[Tensor] = []

    def called(name: str, x: Tensor, output: Any) -> None:
        keep(name, token_rows(x.detach(), mask), len(x))

    with layer_calls(layers, called):
        yield mask


@contextmanager
def layer_calls(layers: Mapping[str, nn.Module], called: Callable[[str, Tensor, Any], None]) -> Iterator[None]:
    """While it lasts, ``called(name, input, output)`` hears of every call of the layers."""

    def hook_of(name: str) -> Any:
        def hook(module: nn.Module, inputs: tuple[Any, ...], keywords: dict[str, Any], output: Any) -> None:
            called(name, [*inputs, *keywords.values()][0], output)

        return hook

    handles = [module.register_forward_hook(hook_of(name), with_kwargs=True) for name, module in layers.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def token_rows(x: Tensor, mask: Sequence[Tensor]) -> Tensor:
    """Values of a layer [B, ..., d] as rows [m, d], without tokens [B, N] where the mask of the batch is 0.

    >>> token_rows(torch.zeros(1, 3, 2), [torch.tensor([[1, 1, 0]])]).shape
    torch.Size([2, 2])
    """
    masked = mask and x.ndim == 3 and x.shape[:2] == mask[-1].shape
    return x[mask[-1].to(x.device).bool()] if masked else x.reshape(-1, x.shape[-1])


def mask_of(x: Batch) -> list[Tensor]:
    """The mask of a batch of texts for `layer_inputs`; nothing for any other batch.

    >>> mask_of(torch.zeros(1, 2)), mask_of({"attention_mask": torch.ones(1, 2)})
    ([], [tensor([[1., 1.]])])
    """
    return [x["attention_mask"]] if isinstance(x, dict) and "attention_mask" in x else []


@torch.no_grad()
def input_moments(
    backbone: Backbone,
    layers: Mapping[str, nn.Module],
    samples: Samples,
    *,
    forward: Callable[[Batch], Tensor] | None = None,
    constant: bool = False,
    batch_size: int = 256,
) -> dict[str, Tensor]:
    r"""Second moments of the layers' inputs over samples, :math:`C = \sum_n h_n h_n^\top`, float64 on the CPU [d, d].

    In evaluation mode, over all tokens but those of padding. Layers that are called on the same tensor one after the
    other, as query, key and value are, share one product. When ``torch.distributed`` is initialised each process passes
    one stretch of the samples, and every process gets the sums.

    Args:
        backbone: its modes are restored afterwards.
        layers: linear layers that a pass calls, adapted or not, by name.
        forward: runs a batch through all layers; None = the backbone.
        constant: whether a constant 1 is appended to the inputs: a bias is its weight.
        samples: under the evaluation transform.
        batch_size: samples per forward pass.

    >>> from tangentcl.data import ArrayTransform, from_arrays, class_incremental
    >>> from tangentcl.nn import from_module
    >>> import numpy as np
    >>> x, y = np.eye(2, dtype=np.float32), np.array([0, 1])
    >>> stream = class_incremental(from_arrays(x, y, x, y, name="two", modality="array"), n_tasks=1)
    >>> samples = stream.with_transforms(ArrayTransform(), ArrayTransform())[0].train_eval
    >>> layer = nn.Linear(2, 3)
    >>> toy = from_module(layer, None, 3, name="toy", modality="array")
    >>> input_moments(toy, {"layer": layer}, samples)["layer"].tolist()
    [[1.0, 0.0], [0.0, 1.0]]
    """
    sums: dict[str, Tensor] = {}
    last: list[Tensor] = []  # rows and their moment

    def keep(name: str, rows: Tensor, n_samples: int) -> None:
        wide = rows.to("cpu" if rows.device.type == "mps" else rows.device).double()  # autocast leaves it alone
        wide = torch.cat([wide, wide.new_ones(len(wide), 1)], dim=1) if constant else wide
        if not last or last[0].shape != wide.shape or not torch.equal(last[0], wide):
            last[:] = [wide, wide.T @ wide]
        sums[name] = sums[name] + last[1] if name in sums else last[1]

    own = samples.subset(range(*own_stretch(len(samples))))
    with evaluating(backbone), layer_inputs(layers, keep) as mask:
        for x, _ in own.subset(own.short_first()).batches(batch_size):
            mask[:] = mask_of(x)
            (forward or backbone)(to_device(x, backbone.device))
    d = {name: _width(layer) + constant for name, layer in layers.items()}
    return {name: summed(sums.get(name, torch.zeros(d[name], d[name], dtype=torch.float64))) for name in layers}


def _width(layer: nn.Module) -> int:
    weight: Any = getattr(layer, "base_layer", layer).weight  # what an adapter is around
    return int(weight.shape[1])

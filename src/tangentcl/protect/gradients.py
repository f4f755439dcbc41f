"""Gradients of outputs on old samples: the directions in which parameters change what is known."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tangentcl.kernels.batch import chunks
from tangentcl.kernels.jacobian import JacobianRows
from tangentcl.kernels.network import Network

LABEL, ROWS = "label of the gradient", "x"


def output_gradients(
    model: nn.Module, parameters: Sequence[str], x: Any, labels: Tensor | None = None, chunk: int = 8
) -> Tensor:
    r"""Gradients of outputs with respect to some parameters, one row per output, :math:`\nabla_\theta f_c(x_i)`.

    In evaluation mode and float32, also within autocast; parameters flattened one after the other in the order given.

    Args:
        model: called with a batch, returns outputs [n, C]; it is not changed.
        parameters: names in ``model.named_parameters()``.
        x: a batch, a tensor or a dict of tensors.
        labels: the one output c of each sample, [n]; None = all, sample by sample.
        chunk: samples whose gradients are computed at a time.

    Returns:
        ``[n, P]``, or ``[n C, P]`` without labels.

    >>> layer = nn.Linear(2, 3)
    >>> output_gradients(layer, ["weight"], torch.tensor([[1.0, 2.0]]), torch.tensor([1]))
    tensor([[0., 0., 1., 2., 0., 0.]])
    """
    batch = dict(x) if isinstance(x, dict) else {ROWS: x}
    if labels is not None:
        batch[LABEL] = labels

    def outputs(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        left = {name: value for name, value in batch.items() if name != LABEL}
        f = model(left[ROWS] if not isinstance(x, dict) else left)  # [n, C]
        return f if labels is None else f.gather(1, batch[LABEL][:, None])

    network = Network(model, outputs, list(parameters))
    rows = JacobianRows(network)
    device = next(iter(network.parameters.values())).device
    with network.evaluating(), torch.autocast(device.type, enabled=False):
        return torch.cat([rows(part).rows.detach() for part in chunks(batch, chunk)])

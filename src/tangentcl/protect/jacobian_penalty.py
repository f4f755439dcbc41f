"""A penalty on the first-order drift of outputs, from a sketch of old Jacobians over all trained parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tangentcl.errors import ConfigError, DataError, ModelError
from tangentcl.nn.heads import at_least_float32
from tangentcl.protect.moment_store import MomentStore
from tangentcl.protect.weight_changes import Values

Outputs = Callable[[nn.Module, Any], Tensor]
PROBED = 8  # samples whose gradients, each along random signs, make one row


class JacobianPenalty(nn.Module):
    r""":math:`\frac1n \|J \delta\|^2`, the energy per old sample of the outputs' drift to first order.

    With random signs :math:`s_{ic}` for samples and outputs, one row :math:`v = \sum_{ic} s_{ic} \nabla f_{ic}` for
    every few samples has :math:`E\,v v^\top = \sum_i J_i^\top J_i`: one backward pass, whatever the number of outputs.
    What is kept of :math:`\sum v v^\top` is low rank plus diagonal over P parameters, (k + 1) P numbers; new tasks
    are merged into it. P must not change.

    Args:
        model: holds the parameters.
        names: those in the Jacobian, in ``model.named_parameters()``.
        k: directions kept.
    """

    samples: Tensor

    def __init__(self, model: nn.Module, names: Sequence[str], *, k: int = 32) -> None:
        super().__init__()
        known = dict(model.named_parameters())
        if not names:
            raise ModelError("a sketch of Jacobians needs parameters that train")
        if k < 1:
            raise ConfigError(f"k is a number of directions to keep, at least 1, got {k}")
        self.names = tuple(names)
        width = sum(known[name].numel() for name in self.names)
        self.moment = MomentStore(1, width, k)
        self.register_buffer("samples", torch.zeros((), dtype=torch.float64))
        self.register_buffer("reference", torch.zeros(width))

    def hold(self, values: Values) -> None:
        """The model is to stay where it is with these values."""
        with torch.no_grad():
            self.reference.copy_(self._flat(values))

    reference: Tensor

    def energy(self, values: Values) -> Tensor:
        """Energy of the drift per old sample since `hold`, differentiable in the values."""
        delta = self._flat(values) - self.reference
        scale = self.samples.clamp(min=1).float()
        rows, diagonal = self.moment.rows[0].to(delta), self.moment.diagonal[0].to(delta)
        return ((rows @ delta).square().sum() + (diagonal * delta.square()).sum()) / scale

    def observe(self, model: nn.Module, batches: Iterable[Any], outputs: Outputs) -> None:
        """Add samples: a forward and a backward pass each. Modes are restored.

        Raises:
            DataError: no batch.
        """
        parameters = dict(model.named_parameters())
        chosen = [parameters[name] for name in self.names]
        (sketch,) = self.moment.sketches()
        draw = torch.Generator().manual_seed(0)
        modes = {module: module.training for module in model.modules()}
        model.eval()
        n = 0
        try:
            for x in batches:
                with torch.enable_grad():
                    f = outputs(model, x)
                    signs = (torch.randint(0, 2, f.shape, generator=draw) * 2 - 1).to(f)
                    along = [part.sum() for part in (f * signs).split(PROBED)]
                for i, part in enumerate(along):
                    pulled = torch.autograd.grad(part, chosen, retain_graph=i + 1 < len(along))
                    sketch.update(torch.cat([g.detach().float().flatten() for g in pulled])[None].cpu())
                n += len(f)
        finally:
            for module, mode in modes.items():
                module.training = mode
        if not n:
            raise DataError("there is no old sample to observe")
        self.samples += n
        self.moment.put([sketch])

    def _flat(self, values: Values) -> Tensor:
        return torch.cat([at_least_float32(values[name]).flatten() for name in self.names])

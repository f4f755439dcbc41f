"""Per-sample Jacobians of any model: vectorised reverse mode, or one backward call per output."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tangentcl.kernels.batch import n_samples, samples, tensors, with_tensors
from tangentcl.kernels.network import Network
from tangentcl.kernels.tangent import Tangent


class JacobianRows:
    """Explicit rows [n C, P], parameters in the order of the network.

    Attributes:
        note: why one backward call per sample and output is used, where `torch.vmap` cannot run the model; else "".
    """

    def __init__(self, network: Network) -> None:
        self.network = network
        self.note = ""

    def __call__(self, x: Any) -> Tangent:
        if not self.note:
            try:
                return Tangent(self._vectorised(x))
            except torch.cuda.OutOfMemoryError:
                raise
            except (RuntimeError, NotImplementedError) as error:
                self.note = f"torch.vmap cannot run the model ({str(error).strip().splitlines()[0][:200]})"
        return Tangent(self._one_by_one(x))

    def _vectorised(self, x: Any) -> Tensor:
        def outputs(values: dict[str, Tensor], sample: list[Tensor]) -> Tensor:
            return self.network.at(values, with_tensors(x, [t[None] for t in sample]))[0]

        per_sample = torch.func.vmap(torch.func.jacrev(outputs), in_dims=(None, 0))
        blocks = per_sample(self.network.values, tensors(x))
        rows = [blocks[name].detach() for name in self.network.parameters]  # [n, C, ...]; [n, C] of a single number
        return torch.cat([row[:, :, None].flatten(2) for row in rows], dim=2).flatten(0, 1)

    def _one_by_one(self, x: Any) -> Tensor:
        parameters = list(self.network.parameters.values())
        rows: list[Tensor] = []
        for i in range(n_samples(x)):
            f = self.network(samples(x, i, i + 1))[0]  # [C]
            for c in range(len(f)):
                if not f.requires_grad:
                    rows.append(f.new_zeros(self.network.n_parameters))
                    continue
                found = torch.autograd.grad(
                    f[c], parameters, retain_graph=c + 1 < len(f), allow_unused=True, materialize_grads=True
                )
                rows.append(torch.cat([g.flatten() for g in found]))
        return torch.stack(rows)

"""The kernel by its action alone: one reverse and one forward derivative per vector."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from tangentcl.errors import ModelError
from tangentcl.kernels.batch import chunks, n_samples
from tangentcl.kernels.network import Network
from tangentcl.linalg import LinearOperator


class MatrixFreeNTK(LinearOperator):
    r""":math:`K v = J_1 (J_2^\top v)`, about 4.5 forward passes per sample and vector; holds O(P) besides a chunk.

    The parameters are copied when the operator is made; the rest of the model must not change while it is used.
    """

    def __init__(self, network: Network, x1: Any, x2: Any, n_outputs: int, chunk: int) -> None:
        self.network, self.x1, self.x2, self.n_outputs, self.chunk = network, x1, x2, n_outputs, chunk
        self.values = {name: value.clone() for name, value in network.values.items()}
        self.shape = (n_samples(x1) * n_outputs, n_samples(x2) * n_outputs)

    @property
    def T(self) -> MatrixFreeNTK:
        other = MatrixFreeNTK(self.network, self.x2, self.x1, self.n_outputs, self.chunk)
        other.values = self.values
        return other

    def matmul(self, x: Tensor) -> Tensor:
        with self.network.evaluating():
            columns = [self._forward(self._reverse(v)) for v in x.T]
        return torch.stack(columns, dim=1).to(x.dtype) if columns else x.new_zeros(self.shape[0], 0)

    def _at(self, x: Any, values: dict[str, Tensor]) -> Tensor:
        return self.network.at(values, x)

    def _reverse(self, v: Tensor) -> dict[str, Tensor]:
        """``J_2^T v``, by parameter."""
        total = {name: torch.zeros_like(value) for name, value in self.values.items()}
        parts = v.view(-1, self.n_outputs).split(self.chunk)  # [n2, C]
        for part, cotangent in zip(chunks(self.x2, self.chunk), parts):
            f, pull = torch.func.vjp(partial(self._at, part), self.values)[:2]
            (found,) = pull(cotangent.to(f))
            for name, value in found.items():
                total[name] += value.detach()
        return total

    def _forward(self, direction: dict[str, Tensor]) -> Tensor:
        """``J_1`` times a direction in parameter space, [n1 C]."""
        rows = []
        for part in chunks(self.x1, self.chunk):
            try:
                moved = torch.func.jvp(partial(self._at, part), (self.values,), (direction,))[1]
            except NotImplementedError as error:
                raise ModelError(
                    f"an operation of the model has no forward-mode derivative: {error}. Use backend='jacobian'."
                ) from error
            rows.append(moved.detach().flatten())
        return torch.cat(rows)

"""The empirical neural tangent kernel of whatever trains."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tangentcl.errors import ConfigError, ModelError
from tangentcl.kernels.batch import chunks, n_samples
from tangentcl.kernels.choice import Choice, Size, choose
from tangentcl.kernels.jacobian import JacobianRows
from tangentcl.kernels.kernel import Kernel
from tangentcl.kernels.layers import LayerRows, disagreement, find_layers
from tangentcl.kernels.matrix_free import MatrixFreeNTK
from tangentcl.kernels.network import Network, Outputs
from tangentcl.kernels.tangent import TangentOf, kernel_matrix
from tangentcl.linalg import DenseOperator, GramOperator, LinearOperator


class EmpiricalNTK(Kernel):
    r""":math:`K(x_1, x_2) = J(x_1) J(x_2)^\top`, with :math:`J = \partial f / \partial \theta` as the model is.

    For any module and whatever in it requires grad: LoRA, adapters, norms, a head, everything. Exact, by one of three
    back ends: "layers" (inputs and output gradients of linear layers and layer norms, by hooks), "jacobian"
    (per-sample Jacobians with torch.func) and "matrix_free" (a reverse and a forward derivative per product). The model
    runs in evaluation mode, is checked to be deterministic and to treat samples separately, and is left as it was.

    Source: Jacot, Gabriel and Hongler, "Neural Tangent Kernel", NeurIPS 2018, equation 4, at finite width.

    Args:
        model: a module; batches are tensors, or dicts, lists or tuples of tensors with one row per sample.
        outputs: ``outputs(model, batch) -> [n, C]``, or [n, tokens, C], flattened; None calls ``model(batch)``.
        parameters: names in ``model.named_parameters()``; None takes all that require grad when the kernel is called.
        backend: "auto" decides by n, C, P and memory (`tangentcl.kernels.choice.choose`).
        memory: bytes for Jacobians and kernel.
        chunk_size: samples at a time; None takes 8, 4 for "jacobian" and 16 for "matrix_free".
        products: how many products K v are wanted; for few, "auto" does not form the kernel.

    Attributes:
        choice: how the last kernel was computed and why; note: what had to be done differently, "" for nothing.

    Raises:
        ModelError: a model that is random, mixes samples, gives something else than [n, C], or is not finite.

    >>> model = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2))
    >>> kernel = EmpiricalNTK(model)
    >>> K = kernel(torch.randn(5, 3), torch.randn(4, 3))
    >>> K.shape, kernel.choice.backend
    ((10, 8), 'layers')
    """

    exact = True

    def __init__(
        self,
        model: nn.Module,
        outputs: Outputs | None = None,
        parameters: Sequence[str] | None = None,
        *,
        backend: str = "auto",
        memory: float = 2e9,
        chunk_size: int | None = None,
        products: int | None = None,
    ) -> None:
        if chunk_size is not None and chunk_size < 1:
            raise ConfigError(f"chunk_size must be at least 1, got {chunk_size}")
        if parameters is not None and not len(parameters):
            raise ConfigError("parameters names no parameter; None takes all that require grad")
        self.model, self.outputs, self.parameters = model, outputs, parameters
        self.backend, self.memory, self.chunk_size, self.products = backend, memory, chunk_size, products
        self.choice: Choice | None = None
        self.note = ""
        self._n_outputs: int | None = None

    @property
    def n_outputs(self) -> int:  # type: ignore[override]
        """C; known once the kernel was called."""
        if self._n_outputs is None:
            raise ModelError("the number of outputs is known after the kernel was called once")
        return self._n_outputs

    def __call__(self, x1: Any, x2: Any = None) -> LinearOperator:
        network = Network(self.model, self.outputs, self.parameters)
        with network.evaluating():
            choice, tangent = self._prepared(network, x1, x2, self.backend)
            if choice.backend == "matrix_free":
                return MatrixFreeNTK(network, x1, x1 if x2 is None else x2, self.n_outputs, choice.chunk)
            if choice.keep_rows:
                J1 = _finite(torch.cat([tangent(part).rows for part in chunks(x1, choice.chunk)]))
                J2 = None if x2 is None else torch.cat([tangent(part).rows for part in chunks(x2, choice.chunk)])
                found: LinearOperator = GramOperator(J1, None if J2 is None else _finite(J2))
            else:
                K = kernel_matrix(x1, x2, tangent, chunk=choice.chunk, tile=choice.tile)
                found = DenseOperator(_finite(K))
        self.note = tangent.note if isinstance(tangent, JacobianRows) else ""
        return found

    def jacobian_blocks(self, x: Any) -> Iterator[Tensor]:
        """Rows of J for some samples after the other, [chunk C, P], parameters in the order of the model."""
        network = Network(self.model, self.outputs, self.parameters)
        backend = "auto" if self.backend == "matrix_free" else self.backend
        with network.evaluating():
            choice, tangent = self._prepared(network, x, None, backend, explicit=True)
            parts = chunks(x, choice.chunk)
        for part in parts:
            with network.evaluating():
                rows = _finite(tangent(part).rows)
            yield rows

    def _prepared(
        self, network: Network, x1: Any, x2: Any, backend: str, explicit: bool = False
    ) -> tuple[Choice, TangentOf]:
        """Check the model on a few samples, choose, and make what gives Jacobians of a chunk."""
        probe = network.check(x1)
        n2 = 0
        if x2 is not None:
            n2, other = n_samples(x2), network.check(x2)
            if other.shape[1] != probe.shape[1]:
                raise ModelError(f"outputs differ in number: {probe.shape[1]} and {other.shape[1]} per sample")
        layers, why = find_layers(network)
        tokens: dict[str, int] = {}
        if not why and backend in ("auto", "layers"):
            for x in (x1,) if x2 is None else (x1, x2):
                why, seen = disagreement(network, layers, x)
                tokens = {name: max(T, tokens.get(name, 0)) for name, T in seen.items()}
                if why:
                    break
        self._n_outputs = probe.shape[1]
        size = Size(n_samples(x1), n2, self._n_outputs, probe.element_size())
        products = None if explicit else self.products
        memory = float("inf") if explicit else self.memory
        choice = choose(
            network,
            size,
            backend=backend,
            memory=memory,
            chunk=self.chunk_size,
            products=products,
            layers=why,
            tokens=tokens,
        )
        self.choice = choice
        if choice.backend == "layers":
            return choice, LayerRows(network, layers, frozenset() if explicit else choice.factored)
        return choice, JacobianRows(network)


def _finite(K: Tensor) -> Tensor:
    if not bool(K.isfinite().all()):
        raise ModelError("the derivatives of the outputs are not finite, though the outputs are")
    return K

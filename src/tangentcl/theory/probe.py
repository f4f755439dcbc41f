"""A network on a few fixed samples, before and after it was trained: what Q9 measures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from tangentcl.errors import ModelError
from tangentcl.kernels import EmpiricalNTK
from tangentcl.kernels.batch import n_samples, samples
from tangentcl.kernels.network import Network, Outputs
from tangentcl.theory.laziness import (
    Laziness,
    centred_kernel,
    feature_kernel,
    kernel_alignment,
    kernel_change,
    linearisation_error,
)

DIRECTIONS = 4  # of the outputs that the tangent kernel is computed for


@contextmanager
def buffers_of(model: nn.Module, values: Mapping[str, Tensor]) -> Iterator[None]:
    """Other values of the module's buffers while it lasts; afterwards the very tensors that were there."""
    held: list[tuple[nn.Module, str, Tensor | None]] = []
    try:
        for name, value in values.items():
            owner, _, own = name.rpartition(".")
            module = model.get_submodule(owner)
            held.append((module, own, module._buffers[own]))
            module._buffers[own] = value
        yield
    finally:
        for module, own, tensor in held:
            module._buffers[own] = tensor


class TangentProbe:
    r"""Outputs and tangent kernel of a model as it is now; `compare` sets them beside what training makes of them.

    Outputs are taken along four orthonormal random directions: their tangent kernel is a part of the whole one that
    keeps, in expectation, its trace, at the cost of four gradients per sample. (The sum of outputs, of which the
    pseudo-NTK is made, is the one direction that cross-entropy never uses.) Only trained parameters differ before and
    after; buffers are taken as they were before.

    Args:
        model: something in it requires grad.
        x: a batch on the model's device.
        outputs: ``outputs(model, batch) -> [n, C]``.
        seed: of the directions.

    Raises:
        ModelError: outputs that are not finite, random, or a mix of samples.
    """

    def __init__(self, model: nn.Module, x: Any, outputs: Outputs, *, seed: int = 0) -> None:
        self.model, self.x = model, x
        network = Network(model, outputs)
        with network.evaluating():
            C = network.check(x).shape[1]
        draw = torch.randn(C, min(C, DIRECTIONS), dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        self._directions = torch.linalg.qr(draw).Q
        self._outputs = outputs
        self.start = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
        self._buffers = {name: b.detach().clone() for name, b in model.named_buffers()}
        self._used = self._what_outputs_depend_on()
        self._before, self._kernel = self._values(), self._tangent()

    def compare(self, features_before: Tensor, features_after: Tensor, *, function: str = "outputs") -> Laziness:
        """The gauges of what was trained since.

        Args:
            features_before, features_after: of the probe's samples, [n, d].
            function: what ``outputs`` are, in one word.

        Raises:
            ModelError: other parameters train now, or the model has no forward-mode derivative.
        """
        now = {name: p.detach() for name, p in self.model.named_parameters() if p.requires_grad}
        if {k: v.shape for k, v in now.items()} != {k: v.shape for k, v in self.start.items()}:
            raise ModelError("other parameters train after the task than before it, so they cannot be compared")
        with buffers_of(self.model, self._buffers):
            after, kernel, linear = self._values(), self._tangent(), self._linear(now)
        before_h, after_h = feature_kernel(features_before), feature_kernel(features_after)
        return Laziness(
            kernel_change(before_h, after_h),
            kernel_alignment(before_h, after_h),
            kernel_change(self._kernel, kernel),
            kernel_alignment(self._kernel, kernel),
            linearisation_error(self._before, linear, after),
            function,
        )

    def _what_outputs_depend_on(self) -> list[str]:
        """Trained parameters that the outputs see; proxies that only a loss sees are not among them."""
        network = Network(self.model, self._outputs)
        parameters = network.parameters
        with network.evaluating():
            f = network(samples(self.x, 0, 2))
            if not f.requires_grad:
                return []
            found = torch.autograd.grad(f.sum(), list(parameters.values()), allow_unused=True)
        return [name for name, gradient in zip(parameters, found) if gradient is not None]

    def _projected(self, model: nn.Module, x: Any) -> Tensor:
        f = self._outputs(model, x)
        return f @ self._directions.to(f)

    @torch.no_grad()
    def _values(self) -> Tensor:
        """Outputs [n, C] on the CPU."""
        network = Network(self.model, self._outputs)
        with network.evaluating(), torch.no_grad():
            return network(self.x).detach().cpu()

    def _tangent(self) -> Tensor:
        """The tangent kernel of the chosen directions around its mean, float64 on the CPU."""
        n = n_samples(self.x)
        if not self._used:
            size = n * self._directions.shape[1]
            return torch.zeros(size, size, dtype=torch.float64)
        kernel = EmpiricalNTK(self.model, self._projected, self._used)(self.x)
        matrix = kernel.to_dense().detach().to("cpu", torch.float64)
        return centred_kernel(matrix, n)

    def _linear(self, now: Mapping[str, Tensor]) -> Tensor:
        """J at the start times the change of the parameters, [n, C] on the CPU."""
        if not self._used:
            return torch.zeros_like(self._before)
        network = Network(self.model, self._outputs, self._used)
        start = {name: self.start[name] for name in self._used}
        change = {name: now[name] - value for name, value in start.items()}
        with network.evaluating(), torch.no_grad():
            try:
                found = torch.func.jvp(lambda values: network.at(values, self.x), (start,), (change,))
            except NotImplementedError as error:
                raise ModelError(f"an operation of the model has no forward-mode derivative ({error})") from error
        return found[1].detach().cpu()

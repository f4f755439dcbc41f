"""Finding the linear layer that makes a model's outputs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from tangentcl.kernels.network import Network
from tangentcl.nn import GrowingLinear

Linear = nn.Linear | GrowingLinear


@contextmanager
def watched(module: nn.Module) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """What goes into a layer and what comes out of it during forward passes, as (input, output) of every call."""
    calls: list[tuple[Tensor, Tensor]] = []

    def keep(_: nn.Module, inputs: tuple[Any, ...], keywords: dict[str, Any], output: Any) -> None:
        calls.append(([*inputs, *keywords.values()][0], output))

    handle = module.register_forward_hook(keep, with_kwargs=True)
    try:
        yield calls
    finally:
        handle.remove()


@torch.no_grad()
def linear_head(network: Network, x: Any) -> Linear | None:
    """The linear layer whose output is the model's output, called once per sample with features [n, d]; or None.

    Found by what it does on a few samples, and not by its name: ``classifier``, ``fc`` and peft's ``modules_to_save``
    are the same to it. Other numbers put out by it have to be the model's outputs too, or a clamp after it would not
    show; and its parameters must be its own.
    """
    candidates = [m for m in network.model.modules() if isinstance(m, (nn.Linear, GrowingLinear))]
    with ExitStack() as stack:
        calls = [stack.enter_context(watched(module)) for module in candidates]
        f = network(x)
    found: Linear | None = None
    for module, seen in zip(candidates, calls):
        if len(seen) == 1 and seen[0][0].ndim == 2 and seen[0][1].shape == f.shape and torch.equal(seen[0][1], f):
            found = module
    if found is None or _is_shared(network.model, found) or not _is_last(network, found, x, f):
        return None
    return found


def _is_last(network: Network, module: nn.Module, x: Any, f: Tensor) -> bool:
    """Whether nothing is done to what a layer puts out, shown by numbers of both signs and all sizes."""
    draw = torch.randn(f.shape, generator=torch.Generator().manual_seed(0))
    replaced: list[Tensor] = []

    def hook(_: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        replaced.append((1e3 * draw).to(output))
        return replaced[0].clone()

    handle = module.register_forward_hook(hook)
    try:
        return torch.equal(network(x).to(replaced[0].dtype), replaced[0])
    finally:
        handle.remove()


def _is_shared(model: nn.Module, head: nn.Module) -> bool:
    """Whether another layer uses a parameter of the head, as an embedding that is tied to it does."""
    own = {id(p) for p in head.parameters()}
    return any(id(p) in own for m in model.modules() if m is not head for p in m.parameters(recurse=False))

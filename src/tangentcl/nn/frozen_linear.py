"""Products with the frozen linear layers of a backbone: several as one, and weights cast once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Weights = tuple[Tensor, Tensor | None]


class FrozenLinear:
    """Linear layers that look at the same input, as one product in the precision of autocast.

    One product reads its input once and has one gradient in place of a sum of several. Autocast casts weights without
    gradient again in every product; here they are cast when they are first met, which costs half of their memory, and
    again when they have changed.

    Args:
        layers: what makes the outputs. Anything but frozen ``nn.Linear`` of one shape without hooks is called as it is.

    Shapes: ``[..., d]`` -> ``[..., m]`` for each layer.

    >>> first, second = nn.Linear(2, 3).requires_grad_(False), nn.Linear(2, 3).requires_grad_(False)
    >>> both = FrozenLinear([first, second])
    >>> x = torch.ones(4, 2)
    >>> a, b = both(x)
    >>> bool(torch.allclose(a, first(x))), list(b.shape)
    (True, [4, 3])
    """

    def __init__(self, layers: Sequence[Callable[[Tensor], Tensor]]) -> None:
        self.layers = tuple(layers)
        self._forget()

    def _forget(self) -> None:
        self._made: Weights | None = None
        self._made_for: tuple[torch.dtype | None, list[tuple[Tensor, int]]] = (None, [])

    def __getstate__(self) -> dict[str, object]:  # a copy makes its own weights
        return {"layers": self.layers}

    def __setstate__(self, state: dict[str, tuple[Callable[[Tensor], Tensor], ...]]) -> None:
        self.layers = state["layers"]
        self._forget()

    def __call__(self, x: Tensor) -> tuple[Tensor, ...]:
        weights = self.weights(x.device.type)
        if weights is None:
            return tuple(layer(x) for layer in self.layers)
        found = F.linear(x, *weights)
        return (found,) if len(self.layers) == 1 else found.chunk(len(self.layers), dim=-1)

    def weights(self, device_type: str) -> Weights | None:
        """Weight ``[layers m, d]`` and bias ``[layers m]``, or None where they are not frozen linear layers."""
        plain = [layer for layer in self.layers if _is_plain(layer)]
        if len(plain) < len(self.layers) or len({(w.weight.shape, w.bias is None) for w in plain}) > 1:
            return None
        cast = torch.get_autocast_dtype(device_type) if torch.is_autocast_enabled(device_type) else None
        if cast is None and len(plain) == 1:
            return plain[0].weight, plain[0].bias
        if self._made is None or not self._still_of(plain, cast):
            with torch.inference_mode(False), torch.no_grad():  # made while predicting, it may be used in training
                self._made = _joined(plain, cast)
                self._made_for = cast, [(p.detach(), p._version) for layer in plain for p in layer.parameters()]
        return self._made

    def _still_of(self, layers: Sequence[nn.Linear], cast: torch.dtype | None) -> bool:
        """Whether the weights are those of these layers as they are; no other can lie in a storage that is held."""
        made_for, known = self._made_for
        now = [p for layer in layers for p in layer.parameters()]
        return (
            made_for == cast
            and len(now) == len(known)
            and all(
                p.data_ptr() == old.data_ptr() and p.dtype == old.dtype and p._version == version
                for p, (old, version) in zip(now, known)
            )
        )


def _is_plain(layer: object) -> TypeGuard[nn.Linear]:
    return (
        type(layer) is nn.Linear
        and all(type(p) is nn.Parameter and not (p.requires_grad or p.is_inference()) for p in layer.parameters())
        and not layer._forward_hooks
        and not layer._forward_pre_hooks
    )


def _joined(layers: Sequence[nn.Linear], dtype: torch.dtype | None) -> Weights:
    weight, bias = torch.cat([layer.weight for layer in layers]), None
    if layers[0].bias is not None:
        bias = torch.cat([layer.bias for layer in layers])
    return weight.to(dtype or weight.dtype), None if bias is None else bias.to(dtype or bias.dtype)

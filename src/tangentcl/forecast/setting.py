"""A model, old and new samples, as a forecast looks at them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tangentcl.errors import DataError
from tangentcl.forecast.forecast import Origin
from tangentcl.forecast.head import Linear, watched
from tangentcl.forecast.inputs import Inputs, mapped
from tangentcl.forecast.sites import Values
from tangentcl.kernels.network import Network


@dataclass(frozen=True)
class Setting:
    """What `tangentcl.forecast.prepare_forecast` found; see there for the settings.

    Attributes:
        network: model and output function; its parameters are those that train.
        head: the linear layer that makes the outputs, or None.
        given_old: the old samples, or None.
        n_outputs: C. seen: outputs that count now.
        move: puts a batch on the network's device.
        notes: why no forecast of this setting can be exact.
    """

    network: Network
    head: Linear | None
    given_old: Inputs | None
    new: Inputs
    n_outputs: int
    seen: int
    move: Callable[[Any], Any]
    notes: tuple[str, ...]
    directions: int
    modes: int
    batch_size: int
    memory: float

    @property
    def old(self) -> Inputs:
        """The old samples. Raises DataError where none were given."""
        if self.given_old is None:
            raise DataError("there are no old samples to look at. Pass old=, or forecast from stored moments.")
        return self.given_old

    @property
    def device(self) -> torch.device:
        """Of the parameters."""
        return next(iter(self.network.parameters.values())).device

    @property
    def head_name(self) -> str | None:
        """Of the head in the model."""
        found = [name for name, module in self.network.model.named_modules() if module is self.head]
        return found[0] if found else None

    def origin(self, parameters: Values) -> Origin:
        """What a forecast with these values after training is of."""
        return Origin(self.old, self.network.output_function, self.head_name, parameters)

    def body(self) -> Network:
        """The network up to the head's input, and what trains in it; the whole network without a head."""
        if self.head is None:
            return self.network
        own = {id(p) for p in self.head.parameters()}
        names = [name for name, p in self.network.parameters.items() if id(p) not in own]
        return Network(self.network.model, self._into_head, names)

    def _into_head(self, model: nn.Module, x: Any) -> Tensor:
        assert self.head is not None
        with watched(self.head) as calls:
            self.network.call(x)
        return calls[0][0]

    def features(self, inputs: Inputs) -> Tensor:
        """Inputs of the head, float32 or more, [n, d] on the CPU."""
        return self.each(inputs, self.body(), {})

    def each(self, inputs: Inputs, network: Network, values: Values) -> Tensor:
        """A network's outputs on all samples, with other values of some parameters, [n, ...] on the CPU."""

        def of(x: Any) -> Tensor:
            found = network.at(values, self.move(x)) if values else network(self.move(x))
            return found.to(torch.promote_types(found.dtype, torch.float32))

        with network.evaluating(), torch.no_grad():
            return mapped(of, inputs, self.batch_size)

    @contextmanager
    def holding(self, values: Values) -> Iterator[None]:
        """The model with other values of its parameters; its own are put back."""
        before = {name: p.detach().clone() for name, p in self.network.parameters.items()}
        try:
            self._put(values)
            yield
        finally:
            self._put(before)

    @torch.no_grad()
    def _put(self, values: Values) -> None:
        for name, value in values.items():
            self.network.parameters[name].copy_(value)

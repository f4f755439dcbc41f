"""The forward-mode derivative of features along a displacement of the parameters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tangentcl.errors import ModelError
from tangentcl.forecast.inputs import Inputs, mapped
from tangentcl.forecast.setting import Setting
from tangentcl.forecast.sites import LoRASite, Site, Values
from tangentcl.kernels.network import Network


def along(
    setting: Setting,
    body: Network,
    sites: Sequence[Site],
    start: Values,
    values: Values,
    inputs: Inputs,
    *,
    at: Values | None = None,
) -> tuple[Tensor, Tensor]:
    """Outputs of ``body`` and their derivative along ``values - start``, two [n, d] on the CPU.

    Where LoRA factors are blind the derivative is that of their product: with B = 0 the outputs do not depend on A, so
    A may be taken as it is afterwards, and the derivative along B then is the whole product.

    Args:
        at: parameters at which the derivative is taken; None = ``start``.
    """
    primal = {name: (start if at is None else at)[name] for name in body.parameters}
    direction = {name: values[name] - start[name] for name in body.parameters}
    for site in sites:
        if at is None and isinstance(site, LoRASite) and site.is_blind:
            fixed = site.names[1] if bool(site.B.any()) else site.names[0]
            primal[fixed] = values[fixed]
            direction[fixed] = torch.zeros_like(direction[fixed])
    if not primal:
        h = setting.each(inputs, body, {})
        return h, torch.zeros_like(h)

    def both(x: Any) -> Tensor:
        x = setting.move(x)
        try:
            found = torch.func.jvp(lambda moving: body.at(moving, x), (primal,), (direction,))
        except NotImplementedError as error:
            raise ModelError(
                f"an operation of the model has no forward-mode derivative ({error}). Replace it, e.g. by choosing "
                "another attention implementation."
            ) from error
        return torch.stack(found, dim=1).to(torch.promote_types(found[0].dtype, torch.float32))  # [B, 2, d]

    with body.evaluating():
        result = mapped(both, inputs, setting.batch_size)
    return result[:, 0], result[:, 1]

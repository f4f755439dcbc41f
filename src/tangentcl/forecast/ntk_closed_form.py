"""Recipes without steps on the linearised network: a linear problem in its parameters."""

from __future__ import annotations

import torch
from torch import Tensor

from tangentcl.errors import ConfigError
from tangentcl.forecast.closed_form import Ridge
from tangentcl.forecast.dynamics import Dynamics
from tangentcl.forecast.local import Objective
from tangentcl.forecast.problem import LinearProblem
from tangentcl.forecast.setting import Setting
from tangentcl.forecast.sites import Values
from tangentcl.kernels import EmpiricalNTK


def closed_form_values(setting: Setting, objective: Objective, dynamics: Dynamics) -> Values:
    r"""Parameters after a recipe such as gradient flow or ridge, with the network linearised at its present ones.

    :math:`f(\theta) = f_0 + J (\theta - \theta_0)` is a linear head :math:`\theta` on the features J with targets
    :math:`y - f_0 + J \theta_0`: one output, and a row for every new sample and output in the loss (Lee et al., NeurIPS
    2019, equations 9-11). Rows are scaled by the root of their number per sample where the recipe takes means over
    samples.

    Raises:
        ConfigError: the Jacobian does not fit ``setting.memory``.
    """
    network, columns = setting.network, objective.columns.cpu()
    n, P = len(setting.new), network.n_parameters
    if 16.0 * n * len(columns) * P > setting.memory:
        raise ConfigError(
            f"the Jacobian of {n} new samples, {len(columns)} outputs and {P:,} parameters takes "
            f"{16.0 * n * len(columns) * P / 1e9:.3g} GB; memory is {setting.memory / 1e9:.3g} GB. Use a recipe of "
            "steps (SGD, AdamW, GradientDescent), which form='bilinear' follows in few directions."
        )
    kernel = EmpiricalNTK(network.model, network.output_function, list(network.parameters))
    x = setting.move(setting.new.take(torch.arange(n)))
    J = torch.cat([rows.cpu().double() for rows in kernel.jacobian_blocks(x)]).view(n, setting.n_outputs, P)
    J = J[:, columns].flatten(0, 1)  # [n C_active, P]
    start = torch.cat([value.flatten() for value in network.values.values()]).cpu().double()
    f0 = setting.each(setting.new, network, {})[:, columns].double()
    targets = (objective.targets.cpu().double() - f0).flatten() + J @ start
    scale = 1.0 if isinstance(dynamics, Ridge) else len(columns) ** 0.5
    problem = LinearProblem(J * scale, start[:, None], targets[:, None] * scale, torch.zeros(1, dtype=torch.int64))
    moved = start + dynamics.displacement(problem).weight[:, 0]
    return _unflattened(moved, network.values)


def _unflattened(flat: Tensor, like: Values) -> Values:
    pieces = flat.split([value.numel() for value in like.values()])
    return {name: piece.view_as(value).to(value) for piece, (name, value) in zip(pieces, like.items())}

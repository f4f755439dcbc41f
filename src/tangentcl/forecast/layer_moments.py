"""How much a change of adapters changes what their layers put out on old data, from moments of the layers' inputs."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn

from tangentcl.errors import DataError, ModelError, nearest
from tangentcl.forecast.moments import TaskMoments
from tangentcl.linalg import Sketch, make_sketch, with_constant
from tangentcl.nn import GrowingLinear
from tangentcl.nn.layer_inputs import layer_inputs

SAME = 1e-9  # relative difference up to which a float64 layer counts as linear
TOKENS = 16  # of the inputs of one sample, on average, that a layer's moment is made of


def is_linear(layer: object) -> TypeGuard[nn.Linear | GrowingLinear]:
    """Whether it is a linear layer without anything around it, a head that grows included."""
    return isinstance(layer, (nn.Linear, GrowingLinear))


def base_weight(layer: nn.Module) -> Tensor:
    """Weight [d_out, d_in] of a linear layer, or of the one that an adapter is around.

    Raises:
        ModelError: there is none.
    """
    base = getattr(layer, "base_layer", layer)  # what peft wraps
    if not is_linear(base):
        raise ModelError(f"expected a linear layer or an adapter around one, got {type(layer).__name__}")
    return base.weight


def adapted_layers(model: nn.Module) -> dict[str, nn.Module]:
    """The linear layers whose weight trains, by name: adapted ones (LoRA, IA3, DoRA, ... of peft) and plain ones.

    >>> adapted_layers(nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3)))
    {'0': Linear(in_features=2, out_features=3, bias=True)}
    """
    found: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        base = getattr(module, "base_layer", module)  # what peft wraps
        inside = any(name.startswith(f"{outer}.") for outer in found)
        if is_linear(base) and not inside and any(p.requires_grad for p in module.parameters()):
            found[name] = module
    return found


def layer_sketches(layers: Mapping[str, nn.Module], kind: str, k: int) -> dict[str, Sketch]:
    """Empty sketches of the inputs of some layers, with a constant."""
    return {name: make_sketch(kind, _width(layer) + 1, k) for name, layer in layers.items()}


def _width(layer: nn.Module) -> int:
    return base_weight(layer).shape[1]


@contextmanager
def sketched_inputs(layers: Mapping[str, nn.Module], sketches: Mapping[str, Sketch]) -> Iterator[list[Tensor]]:
    """While it lasts, every forward pass adds the inputs of the layers, with a constant, to their sketches.

    Of more than `TOKENS` tokens per sample a fixed draw of that many is taken.

    Yields:
        A list for the mask of the batch, see `tangentcl.nn.layer_inputs.layer_inputs`.
    """
    draw = torch.Generator().manual_seed(0)

    def keep(name: str, rows: Tensor, n_samples: int) -> None:
        sketches[name].update(with_constant(few_tokens(rows, n_samples, draw).cpu(), 1.0))

    with layer_inputs(layers, keep) as mask:
        yield mask


def few_tokens(rows: Tensor, n_samples: int, draw: torch.Generator) -> Tensor:
    """Of more than `TOKENS` rows [m, d] per sample, a draw of that many."""
    most = TOKENS * n_samples
    return rows if len(rows) <= most else rows[torch.randperm(len(rows), generator=draw)[:most].to(rows.device)]


def effective_weight(layer: nn.Module, values: Mapping[str, Tensor] | None = None) -> Tensor:
    """The matrix that a linear layer multiplies inputs (with a constant) by, float64 [d_in + 1, d_out].

    Found by what the layer does to the unit vectors, in float64 and evaluation mode: what an adapter consists of makes
    no difference.

    Args:
        layer: a linear layer, adapted or not; it is not changed.
        values: other values of some of its parameters, by their names in the layer.

    Raises:
        ModelError: the layer is not linear in its input.

    >>> effective_weight(nn.Linear(3, 2)).shape
    torch.Size([4, 2])
    """
    double = copy.deepcopy(layer).double().cpu().eval()
    width = _width(layer)
    chosen = {name: value.detach().to("cpu", torch.float64) for name, value in (values or {}).items()}
    probes = torch.cat([torch.zeros(1, width), torch.eye(width), torch.ones(1, width)]).double()
    with torch.no_grad():
        out = torch.func.functional_call(double, chosen, (probes,))
    constant, weight = out[0], out[1:-1] - out[0]
    if float((weight.sum(dim=0) + constant - out[-1]).norm()) > SAME * max(float(out.norm()), 1e-300):
        raise ModelError(f"a {type(layer).__name__} layer of width {width} is not linear in its input")
    return torch.cat([weight, constant[None]])


@dataclass(frozen=True)
class LayerForecast:
    r"""Change of each adapted layer's outputs on old data: a proxy for the drift of the model's outputs.

    For a layer with inputs a (with a constant) and effective weight W before and W + Δ after, per token

    .. math:: e = E\|\Delta^\top a\|^2, \qquad \rho = \sqrt{e / E\|W^\top a\|^2}.

    What later layers make of it is not in there, and neither are layers that are not linear.

    Attributes:
        layers: their names.
        energy: e, float64 [L].
        relative: ρ, float64 [L].
        left_out: parameters that move and are in no linear layer.
    """

    layers: tuple[str, ...]
    energy: Tensor
    relative: Tensor
    left_out: tuple[str, ...] = ()

    @property
    def total(self) -> float:
        """Sum of the energies over the layers."""
        return float(self.energy.sum())

    def to_dict(self) -> dict[str, Any]:
        """In plain values, the layers by descending relative change."""
        rows = zip(self.layers, self.energy.tolist(), self.relative.tolist())
        return {
            "total": self.total,
            "left_out": list(self.left_out),
            "layers": [
                {"layer": name, "energy": energy, "relative": relative}
                for name, energy, relative in sorted(rows, key=lambda row: -row[2])
            ],
        }


def forecast_layers(
    moments: Sequence[TaskMoments],
    model: nn.Module,
    after: Mapping[str, Tensor],
    before: Mapping[str, Tensor] | None = None,
) -> LayerForecast:
    """What a displacement of adapters does to their layers' outputs on old tasks.

    The second moment of a layer's inputs is the input factor of K-FAC (Martens and Grosse, "Optimizing neural networks
    with Kronecker-factored approximate curvature", ICML 2015); the factor of the output gradients is left out here.

    Args:
        moments: of the old tasks, made with the same adapters.
        model: the module whose layers were recorded, e.g. ``method.backbone``.
        after: values of parameters by their names in ``model``; those not named do not move.
        before: values of parameters before; None = those the model has.

    Raises:
        DataError: no moments of layers, or of other layers. ModelError: a name without a parameter.
    """
    layers = adapted_layers(model)
    known = dict(model.named_parameters())
    for name in {*after, *(before or {})}:
        if name not in known:
            raise ModelError(f"{type(model).__name__} has no parameter '{name}'.{nearest(name, known)}")
    if not layers or not moments or any(set(task.layers) != set(layers) for task in moments):
        stored = sorted({name for task in moments for name in task.layers})
        raise DataError(
            f"the moments are of {len(stored)} layers {stored[:2]}, the model adapts {len(layers)} "
            f"{sorted(layers)[:2]}; expected the same ones, at least one"
        )
    energy, relative = [], []
    for name, layer in layers.items():
        old = effective_weight(layer, _inside(name, before or {}))
        change = effective_weight(layer, {**_inside(name, before or {}), **_inside(name, after)}) - old
        tokens = max(sum(task.layers[name].n for task in moments), 1)
        moved, size = (
            sum(float(task.layers[name].energy(matrix).sum()) for task in moments) / tokens for matrix in (change, old)
        )
        energy.append(moved)
        relative.append((moved / size) ** 0.5 if size > 0 else 0.0)
    left_out = tuple(name for name in after if not any(name.startswith(f"{layer}.") for layer in layers))
    return LayerForecast(tuple(layers), torch.tensor(energy).double(), torch.tensor(relative).double(), left_out)


def _inside(layer: str, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    prefix = f"{layer}." if layer else ""
    return {name.removeprefix(prefix): value for name, value in values.items() if name.startswith(prefix)}

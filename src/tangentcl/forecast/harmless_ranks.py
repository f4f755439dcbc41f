"""Which ranks of LoRA can go without a change of old outputs, or of new ones, said from stored moments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from tangentcl.errors import ConfigError
from tangentcl.forecast.layer_moments import adapted_layers, effective_weight
from tangentcl.forecast.lora_factors import LoraFactors, input_moment, lora_factors
from tangentcl.forecast.lora_ranks import balanced, by_energy, cut, write
from tangentcl.forecast.moments import TaskMoments


@dataclass(frozen=True)
class Rank:
    """One direction of one layer's adapter.

    Attributes:
        layer: its name. direction: 0 is the strongest over all tasks.
        old: relative change of the layer's outputs, root mean square, on the old task that this direction matters
            most to, were it dropped; new: on the new task. NaN where there is no such task.
        harmless_old, harmless_new: whether dropping it *and all that matter less* stays within the tolerance on every
            old task, and on the new one.
    """

    layer: str
    direction: int
    old: float
    new: float
    harmless_old: bool
    harmless_new: bool

    @property
    def harmless(self) -> bool:
        """For old tasks and the new one."""
        return self.harmless_old and self.harmless_new


@dataclass(frozen=True)
class HarmlessRanks:
    """Ranks and what dropping them does, see `harmless_ranks`.

    Attributes:
        ranks: of all layers.
        tolerance: on the relative change of each layer's outputs.
        values: parameters without the harmless ranks, by their names in the model.
    """

    ranks: tuple[Rank, ...]
    tolerance: float
    values: Mapping[str, Tensor] = field(repr=False)

    @property
    def dropped(self) -> int:
        """How many are harmless."""
        return sum(rank.harmless for rank in self.ranks)

    def apply(self, model: nn.Module) -> None:
        """Drop the harmless ranks: columns of B become zero, the adapter keeps its rank in peft's config."""
        write(model, self.values)

    def table(self) -> str:
        """A line for each layer: ranks, those harmless for old tasks, for the new one, and for both."""
        lines = [f"{'layer':<40} {'ranks':>5} {'old':>5} {'new':>5} {'both':>5}"]
        for layer in dict.fromkeys(rank.layer for rank in self.ranks):
            own = [rank for rank in self.ranks if rank.layer == layer]
            counts = [sum(getattr(r, name) for r in own) for name in ("harmless_old", "harmless_new", "harmless")]
            said = layer.rpartition("base_model.model.")[2][-40:]  # without what peft puts before
            lines.append(f"{said:<40} {len(own):>5} " + " ".join(f"{count:>5}" for count in counts))
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """In plain values."""
        rows = [{**vars(rank), "harmless": rank.harmless} for rank in self.ranks]
        return {"tolerance": self.tolerance, "dropped": self.dropped, "ranks": rows}


def harmless_ranks(
    model: nn.Module,
    old: Sequence[TaskMoments],
    new: TaskMoments | None = None,
    *,
    tolerance: float = 0.01,
    after: Mapping[str, Tensor] | None = None,
) -> HarmlessRanks:
    r"""Which ranks of LoRA can be dropped, by the predicted change of every layer's outputs; nothing is changed.

    Each layer's :math:`\Delta W = s B A` is written in orthonormal columns :math:`b_j`, those of `by_energy` under the
    moments of all given tasks. Dropping a set J then changes the outputs on the tokens of task k by

    .. math:: \rho_k^2 = \frac{\sum_{j \in J} s^2\, a_j^\top M_k a_j}{E_k\|W^\top a\|^2}, \qquad M_k = E_k[a a^\top],

    with W the whole effective weight: what `tangentcl.forecast.forecast_layers` says of the pruned parameters.
    Directions go from the one that matters least to any task upward while :math:`\rho` of every task stays
    within the tolerance. A proxy for the model's outputs: later layers may enlarge the change.

    Args:
        model: e.g. ``method.backbone``.
        old: moments of old tasks, made with the same adapters. new: of the task that was just learned.
        tolerance: the largest :math:`\rho` of a layer.
        after: values of parameters in place of the model's, e.g. those a forecast predicts
            (`tangentcl.Prepared.parameters_after`), to decide before training.

    Raises:
        ConfigError: a negative tolerance. DataError, ModelError: see `tangentcl.prune_ranks`.
    """
    if not 0 <= tolerance < float("inf"):
        raise ConfigError(f"the tolerance is a relative change of outputs, 0 or more, got {tolerance!r}")
    given = [*old, *([] if new is None else [new])]
    layers = adapted_layers(model)
    ranks: list[Rank] = []
    values: dict[str, Tensor] = {}
    for factors in lora_factors(model, after):
        found = by_energy(factors, input_moment(factors.layer, given))[0]
        shares = _shares(found, layers[factors.layer], given, after)  # [tasks, r]
        order = shares.max(dim=0).values.argsort(stable=True)
        within = torch.zeros_like(shares, dtype=torch.bool)
        within[:, order] = shares[:, order].cumsum(dim=1) <= tolerance**2
        of_old, of_new = within[: len(old)].all(dim=0), within[len(old) :].all(dim=0)
        for j in range(shares.shape[1]):
            worst = (_most(shares[: len(old), j]), _most(shares[len(old) :, j]))
            ranks.append(Rank(factors.layer, j, *worst, bool(of_old[j]), bool(of_new[j])))
        kept = balanced(cut(found, ~(of_old & of_new), factors.down))
        values |= dict(zip(kept.names, (kept.up, kept.down)))
    return HarmlessRanks(tuple(ranks), tolerance, values)


def _most(shares: Tensor) -> float:
    return float(shares.max().sqrt()) if len(shares) else float("nan")


def _shares(
    found: LoraFactors, layer: nn.Module, tasks: Sequence[TaskMoments], after: Mapping[str, Tensor] | None
) -> Tensor:
    """Energy of every direction on every task, relative to the whole layer's outputs there, float64 [tasks, r]."""
    prefix = f"{found.layer}." if found.layer else ""
    own = {name.removeprefix(prefix): v for name, v in (after or {}).items() if name.startswith(prefix)}
    weight = effective_weight(layer, own)
    rows = []
    for task in tasks:
        sketch = task.layers[found.layer]
        whole = float(sketch.energy(weight).sum()) / max(sketch.n, 1)
        moment = input_moment(found.layer, [task])
        part = (found.up.norm(dim=0) * found.scale).square() * ((found.down @ moment) * found.down).sum(dim=1)
        rows.append(part.clamp(min=0) / whole if whole > 0 else torch.zeros_like(part))
    return torch.stack(rows)

"""A penalty on what the change of each trained layer does to its outputs on old inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tangentcl.errors import ConfigError, DataError, ModelError, nearest
from tangentcl.forecast.layer_moments import adapted_layers, few_tokens
from tangentcl.forecast.moments import TaskMoments
from tangentcl.linalg import Sketch, with_constant
from tangentcl.nn.heads import at_least_float32
from tangentcl.nn.layer_inputs import layer_calls, mask_of, token_rows
from tangentcl.protect.moment_store import MomentStore
from tangentcl.protect.weight_changes import Values, WeightChanges, grouped

Outputs = Callable[[nn.Module, Any], Tensor]
WEIGHTS = ("gradients", "equal")


class LayerPenalty(nn.Module):
    r"""Energy of a model's output drift on old samples, layer by layer, from second moments alone.

    For the head, whose change :math:`\Delta` moves outputs by :math:`\Delta^\top h`, the energy per sample is exact:
    :math:`E\|\Delta^\top h\|^2 = \mathrm{tr}(\Delta^\top M \Delta)`. For a layer below, with inputs a_t and gradients
    g_t of the outputs at its own outputs, the drift is :math:`\sum_t g_t^\top \Delta^\top a_t` to first order, and with
    independent factors and tokens

    .. math:: E\,\Big(\sum_t g_t^\top \Delta^\top a_t\Big)^2 \approx T\, \mathrm{tr}(\Delta^\top M \Delta\, G),

    M and G the means over tokens of :math:`a a^\top` and :math:`g g^\top`, T tokens per sample: the Gauss-Newton
    matrix of K-FAC (Martens and Grosse, "Optimizing neural networks with Kronecker-factored approximate curvature",
    ICML 2015) for squared error. G comes from gradients along random signs over outputs, whose second moment is the sum
    over outputs. With ``weights="equal"`` G and T are left out: :math:`E\|\Delta^\top a\|^2` per token.

    Parameters that train outside linear layers (norms, embeddings) are held by :math:`\|\Delta\|^2`; of a norm that is
    the change of its outputs up to means, since its inputs have unit variance.

    Args:
        model: what requires grad is what is protected.
        head: name of the layer that makes the outputs, ``None`` where none trains.
        k: directions kept of each second moment.
        body: factor on everything but the head.
        weights: ``"gradients"`` or ``"equal"``.
    """

    samples: Tensor  # how many were observed, and their tokens
    tokens: Tensor

    def __init__(
        self, model: nn.Module, *, head: str | None = None, k: int = 32, body: float = 1.0, weights: str = "gradients"
    ) -> None:
        super().__init__()
        if k < 1:
            raise ConfigError(f"k is a number of directions to keep, at least 1, got {k}")
        if weights not in WEIGHTS:
            raise ConfigError(
                f"weights must be one of {', '.join(WEIGHTS)}, got {weights!r}.{nearest(weights, WEIGHTS)}"
            )
        layers = adapted_layers(model)
        if head is not None and head not in layers:
            raise ModelError(f"the head '{head}' is no linear layer that trains.{nearest(head, layers)}")
        self.head, self.k, self.body, self.weights = head, k, body, weights
        body_layers = {name: layer for name, layer in layers.items() if name != head}
        own = grouped({head: layers[head]}) if head is not None else []
        self.groups = nn.ModuleList([*own, *grouped(body_layers)])
        self.inputs = nn.ModuleList(MomentStore(len(g.layers), g.d_in + 1, k) for g in self._groups)
        self.gradients = nn.ModuleList(
            MomentStore(len(g.layers), g.d_out, k) if self._weighs(g) else nn.Identity() for g in self._groups
        )
        covered = {name for group in self._groups for name in group.names}
        self.rest = tuple(n for n, p in model.named_parameters() if p.requires_grad and n not in covered)
        self.register_buffer("samples", torch.zeros((), dtype=torch.float64))
        self.register_buffer("tokens", torch.zeros((), dtype=torch.float64))

    def hold(self, values: Values) -> None:
        """The model is to stay where it is with these values. Called whenever shapes change."""
        for group in self._groups:
            group.hold(values)
        for i, name in enumerate(self.rest):
            self.register_buffer(f"rest{i}", values[name].detach().clone())

    def energy(self, values: Values) -> Tensor:
        """Energy of the drift per old sample since `hold`, differentiable in the values."""
        total = torch.zeros((), device=self.samples.device)
        per_sample = (self.body * self.tokens / self.samples.clamp(min=1)).float()
        for group, inputs, gradients in self._parts():
            moment = inputs.mean()
            if gradients is None:
                factor = 1.0 if group.layers == (self.head,) else self.body
                total = total + factor * group.energies(values, moment).sum()
            else:
                total = total + per_sample * group.energies(values, moment, gradients.mean()).sum()
        known = self.body * (self.samples > 0).float()  # before the first task there is nothing to keep
        for i, name in enumerate(self.rest):
            total = total + known * at_least_float32(values[name] - self.get_buffer(f"rest{i}")).square().sum()
        return total

    def observe(self, model: nn.Module, batches: Iterable[Any], outputs: Outputs) -> None:
        """Add samples to the second moments: one forward pass each, and a backward pass for gradients.

        Args:
            model: in the state to be kept; its modes are restored.
            batches: tensors or dicts of tensors on the model's device.
            outputs: ``outputs(model, batch) -> [B, C]``.

        Raises:
            DataError: no batch.
        """
        collected = [
            (inputs.sketches(), [None] * len(group.layers) if gradients is None else gradients.sketches())
            for group, inputs, gradients in self._parts()
        ]
        places: dict[str, tuple[Sketch, Sketch | None]] = {
            name: (own, pulled)
            for group, sketches in zip(self._groups, collected)
            for name, own, pulled in zip(group.layers, *sketches)
        }
        modes = {module: module.training for module in model.modules()}
        model.eval()
        try:
            n = self._pass(model, batches, outputs, places)
        finally:
            for module, mode in modes.items():
                module.training = mode
        if not n:
            raise DataError("there is no old sample to observe")
        for (_, inputs, gradients), (own, pulled) in zip(self._parts(), collected):
            inputs.put(own)
            if gradients is not None:
                gradients.put([sketch for sketch in pulled if sketch is not None])

    def take(self, moments: Sequence[TaskMoments], prefix: str) -> None:
        """Second moments that were stored, with the layers' names behind ``prefix``; the features are the head's."""
        for task in moments:
            for group, inputs, _ in self._parts():
                own = [
                    task.features if name == self.head else task.layers[name.removeprefix(prefix)]
                    for name in group.layers
                ]
                if any(sketch.d != inputs.rows.shape[2] for sketch in own):
                    raise DataError(f"the moments of '{group.layers[0]}' are of another width than its inputs")
                inputs.merge(own)
            self.samples += task.n
            self.tokens += max((sketch.n for sketch in task.layers.values()), default=task.n)

    def choose(self, values: Values, rank: int) -> None:
        """Keep of each layer the directions that a displacement to these values moves outputs along most."""
        for group, inputs, _ in self._parts():
            inputs.choose(group.change(values), rank)

    def choose_for_head(self, change: Tensor, rank: int) -> None:
        """The same for a change of the head [d_in + 1, C]; other layers keep their largest."""
        for group, inputs, _ in self._parts():
            is_head = group.layers == (self.head,)
            inputs.choose(change[None].to(inputs.rows) if is_head else None, rank)

    def _pass(
        self,
        model: nn.Module,
        batches: Iterable[Any],
        outputs: Outputs,
        places: dict[str, tuple[Sketch, Sketch | None]],
    ) -> int:
        """Fill the sketches; the number of samples."""
        modules = dict(model.named_modules())
        layers = {name: modules[name] for name in places}
        draw = torch.Generator().manual_seed(0)
        mask: list[Tensor] = []
        called: list[tuple[str, Tensor]] = []

        def keep(name: str, x: Tensor, output: Tensor) -> None:
            rows = few_tokens(token_rows(x.detach().float(), mask), len(x), draw)
            places[name][0].update(with_constant(rows.cpu(), 1.0))
            if places[name][1] is not None:
                called.append((name, output))

        n = 0
        weighs = any(gradient is not None for _, gradient in places.values())
        with layer_calls(layers, keep), torch.set_grad_enabled(weighs):
            for x in batches:
                called.clear()
                mask[:] = mask_of(x)
                f = outputs(model, x)
                n += len(f)
                self.tokens += float(mask[0].sum()) if mask else self._count(called, f)
                if called:
                    signs = (torch.randint(0, 2, f.shape, generator=draw) * 2 - 1).to(f)
                    pulled = torch.autograd.grad(
                        (f * signs).sum(), [y for _, y in called], materialize_grads=True, allow_unused=True
                    )
                    for (name, _), g in zip(called, pulled):
                        sketch = places[name][1]
                        assert sketch is not None
                        sketch.update(few_tokens(token_rows(g.float(), mask), len(f), draw).cpu())
        self.samples += n
        return n

    @staticmethod
    def _count(called: list[tuple[str, Tensor]], f: Tensor) -> float:
        """Tokens of a batch without a mask: those of the first layer that was called."""
        return float(called[0][1].numel() / called[0][1].shape[-1]) if called else float(len(f))

    def _weighs(self, group: WeightChanges) -> bool:
        return self.weights == "gradients" and group.layers != (self.head,)

    @property
    def _groups(self) -> list[WeightChanges]:
        return list(self.groups)  # type: ignore[arg-type]

    def _parts(self) -> list[tuple[WeightChanges, MomentStore, MomentStore | None]]:
        stores = [store if isinstance(store, MomentStore) else None for store in self.gradients]
        return list(zip(self._groups, self.inputs, stores))  # type: ignore[arg-type]

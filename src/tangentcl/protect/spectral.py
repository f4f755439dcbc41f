"""The spectral regulariser: a penalty on drift in function space, from what is kept of old tasks' second moments."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tangentcl.errors import ConfigError, DataError, ModelError, RecordError, nearest
from tangentcl.forecast.forecast import Forecast
from tangentcl.forecast.head import linear_head
from tangentcl.forecast.inputs import Inputs
from tangentcl.forecast.layer_moments import adapted_layers
from tangentcl.forecast.moment_forecast import MomentForecast
from tangentcl.forecast.moments import TaskMoments
from tangentcl.kernels.batch import tensors, with_tensors
from tangentcl.kernels.network import Network, Outputs
from tangentcl.linalg.sketch_file import read_tensors, write_tensors
from tangentcl.protect.jacobian_penalty import JacobianPenalty
from tangentcl.protect.layer_penalty import LayerPenalty
from tangentcl.protect.weight_changes import Values

FORMS = ("layers", "jacobian")
BATCH = 64  # samples per pass over old data
CHOSEN_FROM = 8  # times the rank: directions of each layer among which a forecast chooses
FORMAT = 1  # of the file
SETTINGS = ("head", "k", "form", "body", "weights", "strength")
NOT_TOUCHED = "it names no old samples: make it with forecast_forgetting or forecast_from_moments"


class SpectralRegularizer(nn.Module):
    r"""Half the energy of the drift of a model's outputs on old samples, per sample, as a function of its parameters:

    .. math:: \Omega(\theta) = \tfrac12\, E_{old} \|f_\theta(x) - f_{\theta_0}(x)\|^2 .

    Of old samples only second moments are kept, low rank plus diagonal: k eigen-directions of each trained layer's
    inputs and the exact diagonal of the rest, merged over tasks, of one size whatever their number. For a linear head
    on a frozen backbone :math:`\Omega` is exact but for the sketch; for LoRA, adapters and full fine-tuning it is the
    layer-wise approximation of `LayerPenalty` (``form="layers"``) or the head's with a first-order sketch of Jacobians
    for everything below (``form="jacobian"``, `JacobianPenalty`).

    Use it in any loop: ``loss = task_loss + guard.strength * guard(model)``. Its gradient is zero at the start of a
    task, and it does not look at the batch.

    Args:
        model: what requires grad is protected. It is not kept.
        outputs: ``outputs(model, batch) -> [B, C]``; None calls ``model(batch)``.
        head: name of the linear layer that makes the outputs, None where none trains.
        k: directions kept of every second moment.
        form: ``"layers"`` or ``"jacobian"``.
        body: factor on everything but the head.
        weights: of layers below the head, see `LayerPenalty`.
        strength: what the loop multiplies with; kept here so that it is stored and shown.

    >>> _ = torch.manual_seed(0)
    >>> head = nn.Linear(4, 3)
    >>> guard = SpectralRegularizer(head, head="", k=5)
    >>> old = torch.randn(20, 4)
    >>> guard.observe(head, old)
    >>> before = head(old)
    >>> _ = nn.init.zeros_(head.weight)
    >>> true = 0.5 * (head(old) - before).square().sum(dim=1).mean()
    >>> bool(torch.isclose(guard(head), true))
    True
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        outputs: Outputs | None = None,
        head: str | None = None,
        k: int = 32,
        form: str = "layers",
        body: float = 1.0,
        weights: str = "gradients",
        strength: float = 1.0,
    ) -> None:
        super().__init__()
        if form not in FORMS:
            raise ConfigError(f"form must be one of {', '.join(FORMS)}, got {form!r}.{nearest(form, FORMS)}")
        checked_strength(body, "body")
        self.outputs: Outputs = outputs or _called
        self.head, self.k, self.form, self.weights = head, k, form, weights
        self.strength = checked_strength(strength)
        self._held: dict[str, tuple[int, ...]] = {}  # shapes of what is held, by name
        names = {name for name, p in model.named_parameters() if p.requires_grad}
        if not names:
            raise ModelError("nothing of the model trains: no parameter requires grad, so there is nothing to protect")
        self.body = body
        of_head = {name for name in names if head is not None and name.startswith(f"{head}." if head else "")}
        below = sorted(names - of_head)
        self.layers = LayerPenalty(model, head=head, k=k, body=body if form == "layers" else 0.0, weights=weights)
        self.jacobian = JacobianPenalty(model, below, k=k) if form == "jacobian" and below else None
        self.hold(model)

    @classmethod
    def of_old(
        cls, model: nn.Module, old: Any, *, outputs: Outputs | None = None, **settings: Any
    ) -> SpectralRegularizer:
        """From old samples, which are read once and not kept.

        Args:
            model: in the state to be kept.
            old: `Samples`, a batch (a tensor, or a dict or tuple of tensors), or a pair (batch, labels).
            outputs: ``outputs(model, batch) -> [B, C]``; None calls ``model(batch)``.
            settings: ``k``, ``form``, ``body``, ``weights`` and ``strength`` of the class.

        Raises:
            DataError: no old sample. ModelError: nothing trains, or a model that is random or mixes samples.
        """
        inputs = Inputs.of(old, "old")
        guard = cls(model, outputs=outputs, head=_head_of(model, inputs, outputs), **settings)
        guard.observe(model, old)
        return guard

    @classmethod
    def from_forecast(
        cls, model: nn.Module, forecast: Forecast | MomentForecast, rank: int = 16, **settings: Any
    ) -> SpectralRegularizer:
        r"""Aimed at the modes that a forecast says will carry the forgetting.

        Of each layer's eigen-directions :math:`v_j` of old inputs (eigenvalue :math:`\lambda_j`), the ``rank`` with
        the largest predicted drift :math:`\lambda_j \|\Delta^\top v_j\|^2` are kept; the rest goes into the diagonal.
        For the next task that is the better choice, for many tasks to come the largest eigenvalues are
        (`of_old` and ``method = "spectral"``).

        Args:
            model: the one that was forecast, in the same state.
            forecast: of `forecast_forgetting`, whose old samples are read once more; or of `forecast_from_moments`,
                which needs no old data.
            rank: directions kept of each layer.
            settings: as for `of_old`; a forecast from moments has no gradients to weigh layers with.

        Raises:
            DataError: a forecast that names no old samples, or moments of other layers.
        """
        if rank < 1:
            raise ConfigError(f"rank is a number of directions to keep, at least 1, got {rank}")
        if isinstance(forecast, MomentForecast):
            return cls._aimed_by_moments(model, forecast, rank, settings)
        if forecast.origin is None:
            raise DataError(f"this forecast cannot aim a regulariser; {NOT_TOUCHED}")
        origin = forecast.origin
        guard = cls(model, outputs=origin.outputs, head=_trained(model, origin.head), k=CHOSEN_FROM * rank, **settings)
        guard._add(model, _OldBatches(origin.old, model))
        guard.layers.choose(_on_device(origin.parameters, model), rank)
        guard.k = rank
        return guard

    @classmethod
    def from_moments(
        cls,
        model: nn.Module,
        moments: Sequence[TaskMoments],
        *,
        outputs: Outputs | None = None,
        head: str | None = None,
        k: int = 32,
        **settings: Any,
    ) -> SpectralRegularizer:
        """From what a run stored at the ends of its tasks (`load_moments`): no old data.

        Args:
            model: with the layers that the moments are of.
            moments: of the old tasks.
            head: name of the linear layer whose inputs the features are; None finds it, where one trains.
            k, settings: of the class. Layers count equally: stored moments have no gradients.

        Raises:
            DataError: moments of other layers or another width.
        """
        if settings.setdefault("weights", "equal") != "equal":
            raise ConfigError("stored moments hold no gradients: weights must be 'equal'")
        layers = adapted_layers(model)
        prefix = _prefix(layers, moments)
        outside = [name for name in layers if name not in {prefix + inner for inner in moments[0].layers}]
        if head is None and len(outside) == 1:
            (head,) = outside
        unknown = [name for name in outside if name != head]
        if unknown:
            raise DataError(
                f"the moments know nothing of the layers {unknown[:3]}, which train. Pass head=, or freeze them"
            )
        guard = cls(model, outputs=outputs, head=head, k=k, **settings)
        guard.layers.take(moments, prefix)
        return guard

    @classmethod
    def _aimed_by_moments(
        cls, model: nn.Module, forecast: MomentForecast, rank: int, settings: dict[str, Any]
    ) -> SpectralRegularizer:
        guard = cls.from_moments(model, forecast.moments, k=CHOSEN_FROM * rank, **settings)
        guard.layers.choose_for_head(forecast.change - (0 if forecast.shift is None else forecast.shift), rank)
        guard.k = rank
        return guard

    def forward(self, model: nn.Module) -> Tensor:
        r""":math:`\Omega`, a scalar; see the class. Multiply it with ``strength``.

        Raises:
            ModelError: other parameters train than those that are held.
        """
        values = trained_values(model)
        self._check(values)
        return self.of(values)

    def check(self, model: nn.Module) -> None:
        """Whether the guard is of what trains in a model.

        Raises:
            ModelError: another parameter, or one of another shape; it is named.
        """
        self._check(trained_values(model))

    def save(self, path: str | Path) -> None:
        """Write settings, second moments and the parameters that are held to a safetensors file, whole or not at all.

        Raises:
            RecordError: the file cannot be written.
        """
        header = {
            "guard": FORMAT,
            "settings": {name: getattr(self, name) for name in SETTINGS},
            "parameters": {name: list(shape) for name, shape in self._held.items()},
        }
        content = {key: value.detach().cpu().clone() for key, value in self.state_dict().items()}
        try:
            write_tensors(Path(path), header, content)
        except OSError as error:
            raise RecordError(f"the guard cannot be written to {path}: {error}") from error

    @classmethod
    def load(cls, path: str | Path, model: nn.Module, *, outputs: Outputs | None = None) -> SpectralRegularizer:
        """What `save` wrote: it holds the model where it was held then.

        Args:
            model: with the same parameters that train; their values may be others. Add rows to a head afterwards,
                and call `hold`.
            outputs: as for the class, for samples that are still to be observed.

        Raises:
            DataError: a file that is missing, damaged or of another kind. ModelError: a model with other parameters.
        """
        header, content = read_tensors(Path(path))
        settings, shapes = header.get("settings"), header.get("parameters")
        if header.get("guard") != FORMAT or not isinstance(settings, dict) or not isinstance(shapes, dict):
            raise DataError(f"{path} holds no guard of format {FORMAT}; SpectralRegularizer.save writes one")
        try:
            guard = cls(model, outputs=outputs, **settings)
            guard._held = {name: tuple(shape) for name, shape in shapes.items()}
            guard.check(model)
        except ModelError as error:
            raise ModelError(f"the guard in {path} is not of this model: {error}") from error
        guard._restore(content, str(path))
        return guard

    def _restore(self, content: Mapping[str, Tensor], where: str) -> None:
        here = self.state_dict()
        if odd := sorted(set(content) ^ set(here)):
            raise ModelError(f"the guard in {where} is of layers of another kind than the model's: {odd[:3]} differ")
        for key, value in content.items():
            name, _, last = key.rpartition(".")
            rows = last == "rows"  # as many as were kept
            if (value.shape[::2] if rows else value.shape) != (here[key].shape[::2] if rows else here[key].shape):
                raise ModelError(
                    f"the guard in {where} is not of this model: {key} is {list(value.shape)}, "
                    f"here {list(here[key].shape)}"
                )
            setattr(self.get_submodule(name), last, value.to(here[key]))

    def _check(self, values: Values) -> None:
        shapes = {name: tuple(value.shape) for name, value in values.items()}
        if shapes == self._held:
            return
        if new := sorted(set(shapes) - set(self._held)):
            raise ModelError(f"{new[:3]} train, and the guard was made without them. Freeze them, or make a new one")
        if gone := sorted(set(self._held) - set(shapes)):
            raise ModelError(f"the guard is of {gone[:3]}, which the model does not have or does not train")
        name = next(name for name in shapes if shapes[name] != self._held[name])
        now, then = shapes[name], self._held[name]
        grown = now[1:] == then[1:] and now[0] > then[0]
        raise ModelError(
            f"'{name}' is {list(now)}, and {list(then)} when it was held. "
            + ("Call guard.hold(model) once rows are added" if grown else "Make another guard for another shape")
        )

    def of(self, values: Values) -> Tensor:
        """The same for values of parameters by name, which need not be those of a model."""
        with torch.autocast(next(iter(values.values())).device.type, enabled=False):
            total: Tensor = self.layers.energy(values)
            if self.jacobian is not None:
                total = total + self.body * self.jacobian.energy(values)
        return total / 2

    def observe(self, model: nn.Module, old: Any) -> None:
        """Add the samples of one more task, and hold the model where it is.

        Args:
            model: in the state to be kept, with this task learned.
            old: as for `of_old`.
        """
        self._add(model, _OldBatches(Inputs.of(old, "old"), model))

    def observe_batches(self, model: nn.Module, batches: Iterable[Any]) -> None:
        """`observe` for batches on the model's device; a `Jacobian` reads them twice, so they must be repeatable."""
        self._add(model, batches)

    def hold(self, model: nn.Module) -> None:
        """Take the model's parameters as the reference: at the start of a task, with rows for its classes."""
        values = trained_values(model)
        self._held = {name: tuple(value.shape) for name, value in values.items()}
        self.to(next(iter(values.values())).device)
        self.layers.hold(values)
        if self.jacobian is not None:
            self.jacobian.hold(values)

    def _add(self, model: nn.Module, batches: Iterable[Any]) -> None:
        self.layers.observe(model, batches, self.outputs)
        if self.jacobian is not None:
            self.jacobian.observe(model, batches, self.outputs)
        self.hold(model)


def checked_strength(value: float, name: str = "strength") -> float:
    """A factor on a penalty.

    Raises:
        ConfigError: a negative or infinite one.
    """
    if not 0 <= value < float("inf"):
        raise ConfigError(f"{name} must be zero or positive, got {value!r}")
    return float(value)


def trained_values(model: nn.Module) -> dict[str, Tensor]:
    """What requires grad, by name; of the model inside where it is wrapped for several processes."""
    inner = getattr(model, "module", model) if type(model).__name__ == "DistributedDataParallel" else model
    return {name: p for name, p in inner.named_parameters() if p.requires_grad}


def _called(model: nn.Module, x: Any) -> Tensor:
    out: Tensor = model(x)
    return out


class _OldBatches:
    """Old samples in batches on the model's device, as often as they are asked for."""

    def __init__(self, inputs: Inputs, model: nn.Module) -> None:
        self.inputs, self.device = inputs, next(model.parameters()).device

    def __iter__(self) -> Iterator[Any]:
        for x, _ in self.inputs.parts(BATCH):
            yield with_tensors(x, [t.to(self.device) for t in tensors(x)])


def _head_of(model: nn.Module, inputs: Inputs, outputs: Outputs | None) -> str | None:
    """Name of the linear layer that makes the outputs, where it trains."""
    network = Network(model, outputs)
    x = inputs.take(torch.arange(min(2, len(inputs))))
    device = next(model.parameters()).device
    with network.evaluating():
        found = linear_head(network, with_tensors(x, [t.to(device) for t in tensors(x)]))
    names = [name for name, module in model.named_modules() if module is found]
    return _trained(model, names[0] if names else None)


def _trained(model: nn.Module, head: str | None) -> str | None:
    return head if head in adapted_layers(model) else None


def _on_device(values: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    device = next(model.parameters()).device
    return {**trained_values(model), **{name: value.to(device) for name, value in values.items()}}


def _prefix(layers: Mapping[str, nn.Module], moments: Sequence[TaskMoments]) -> str:
    """What stands before the stored names in the model's."""
    if not moments or any(set(task.layers) != set(moments[0].layers) for task in moments):
        raise DataError("expected the moments of at least one task, all of the same layers")
    stored = list(moments[0].layers)
    if not stored:
        return ""
    for name in layers:
        if name.endswith(stored[0]):
            prefix = name.removesuffix(stored[0])
            if all(prefix + inner in layers for inner in stored):
                return prefix
    raise DataError(f"the moments are of layers like '{stored[0]}', which the model does not train: {list(layers)[:3]}")

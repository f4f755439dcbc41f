"""Protection from forgetting inside the `Trainer` of transformers."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from tangentcl.errors import ConfigError
from tangentcl.protect.spectral import SpectralRegularizer, trained_values

SHARDED = ("FSDP", "DEEPSPEED", "MEGATRON_LM", "XLA")  # kinds of processes that do not hold every gradient whole


class ForgettingGuard(TrainerCallback):
    r"""Protects whatever a ``Trainer`` trains: ``trainer.add_callback(ForgettingGuard(guard))``.

    Before every optimiser step :math:`\lambda\,\nabla\Omega(\theta)` is added to the gradients of what trains, where
    :math:`\Omega` is ``guard(model)`` and :math:`\lambda` is ``guard.strength``. That is the gradient of
    ``loss + guard.strength * guard(model)``, once per step whatever the number of accumulated batches, with one
    difference: it is added after the Trainer has clipped, so that ``max_grad_norm`` bounds the task's gradient alone,
    and ``grad_norm`` in the logs is the task's. Without clipping the two are equal. The loss in the logs is the
    task's, and :math:`\lambda\,\Omega` before the last step stands beside it as ``drift_penalty``. Reporters that were
    added before the callback do not see that; ``trainer.state.log_history`` has it.

    The model is held where the guard was made, or where it last observed a task; training does not move that. After
    rows are added to a head, call ``guard.hold(model)`` before ``trainer.train()``. The model's checkpoints hold
    nothing of the guard: keep it with `SpectralRegularizer.save`.

    With several processes (DDP) all take the guard of the first. Gradients of 16 bit floats are unscaled by clipping,
    so ``fp16=True`` needs ``max_grad_norm > 0``; ``bf16=True`` needs nothing.

    Args:
        guard: of the model that is trained, its parameters under the same names.

    Raises:
        ConfigError: on training, with FSDP, DeepSpeed or another way of sharding parameters; with fp16 and no clipping.
        ModelError: on training, where the guard is of other parameters than those that train.

    >>> from transformers import TrainerCallback
    >>> model = nn.Linear(3, 2)
    >>> guard = SpectralRegularizer.of_old(model, torch.randn(8, 3), strength=0.3)
    >>> isinstance(ForgettingGuard(guard), TrainerCallback)
    True
    """

    def __init__(self, guard: SpectralRegularizer) -> None:
        if not isinstance(guard, SpectralRegularizer):
            raise ConfigError(
                f"expected a SpectralRegularizer, got a {type(guard).__name__}. "
                "Make one with SpectralRegularizer.of_old(model, old_samples), or load one from its file."
            )
        self.guard = guard
        self._last: Tensor | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Check that the guard is of this model, and bring it to the model's device and into every process."""
        model = kwargs["model"]
        _check_setting(args, kwargs.get("optimizer"))
        self.guard.check(model)
        self.guard.to(next(iter(trained_values(model).values())).device)
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            for buffer in self.guard.buffers():
                dist.broadcast(buffer, src=0)
        self._last = None

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Add the penalty's gradient to those of the task, which are complete and clipped by now."""
        self._last = add_gradient(self.guard, kwargs["model"])

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Put ``drift_penalty`` beside the loss of training."""
        logs = kwargs.get("logs")
        if self._last is None or logs is None or "loss" not in logs:
            return
        logs["drift_penalty"] = float(self._last)
        if state.log_history and state.log_history[-1].get("loss") == logs["loss"]:
            state.log_history[-1]["drift_penalty"] = logs["drift_penalty"]


def add_gradient(guard: SpectralRegularizer, model: nn.Module) -> Tensor:
    r"""Add the gradient of :math:`\lambda\,\Omega` to what parameters have; returns :math:`\lambda\,\Omega`."""
    values = trained_values(model)
    with torch.enable_grad():
        penalty = guard.strength * guard.of(values)
    gradients = torch.autograd.grad(penalty, list(values.values()), allow_unused=True)
    for parameter, gradient in zip(values.values(), gradients):
        if gradient is None:
            continue
        if parameter.grad is None:
            parameter.grad = gradient.clone()  # it may be a view of another parameter's
        else:
            parameter.grad.add_(gradient)
    return penalty.detach()


def _check_setting(args: TrainingArguments, optimizer: Any) -> None:
    """Refuse what would add to gradients that are scaled, or to parts of them."""
    kind = getattr(getattr(optimizer, "accelerator_state", None), "distributed_type", None)
    name = str(getattr(kind, "value", kind)).upper()
    if args.deepspeed or args.fsdp or any(name.startswith(sharded) for sharded in SHARDED):
        raise ConfigError(
            f"ForgettingGuard needs every gradient whole in every process, which FSDP, DeepSpeed and the like "
            f"(here: {name.lower()}) do not give. Train in one process or with DDP."
        )
    if args.fp16 and not (args.max_grad_norm and args.max_grad_norm > 0):
        raise ConfigError(
            "with fp16=True and no clipping gradients are still scaled when ForgettingGuard adds to them. "
            "Set max_grad_norm (1e9 clips nothing), or bf16=True."
        )

"""Devices, precision and processes: a thin layer over Hugging Face Accelerate."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from tangentcl.errors import ConfigError
from tangentcl.nn.known import KnownFeatures

_MIXED = {"fp32": "no", "bf16": "bf16", "fp16": "fp16"}


class Runtime:
    """Where a run computes: one device per process, one or more processes.

    Several processes are those of the launcher (``torchrun --nproc-per-node 2 -m tangentcl run ...``); on a CPU they
    talk through gloo. Parameters are not wrapped: gradients of what is trained, a small part of the network in
    parameter-efficient tuning, are summed in one message per optimiser step. The set of trained parameters may
    therefore change between tasks, and a parameter may stay unused, both of which DistributedDataParallel forbids.

    Args:
        device: ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"mps"``.
        precision: ``"fp32"``, ``"bf16"`` or ``"fp16"``.

    Raises:
        ConfigError: the device is absent, or cannot compute in that precision.
    """

    def __init__(self, *, device: str = "auto", precision: str = "fp32") -> None:
        from accelerate import Accelerator
        from accelerate.state import AcceleratorState

        available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
        if device == "auto":
            device = next(name for name in ("cuda", "mps", "cpu") if available[name])
        if not available[device]:
            has = ", ".join(name for name, yes in available.items() if yes)
            raise ConfigError(f"plan.device is {device!r}, which this machine does not have. It has: {has}.")
        if precision == "fp16" and device != "cuda":
            raise ConfigError(f"plan.precision 'fp16' needs CUDA, the device is {device!r}. Try 'bf16' or 'fp32'.")
        AcceleratorState._reset_state()  # otherwise a second run in this process keeps the first one's precision
        self._accelerator = Accelerator(cpu=device == "cpu", mixed_precision=_MIXED[precision])
        self.precision = precision
        self.device: torch.device = self._accelerator.device
        self.rank: int = self._accelerator.process_index
        self.world: int = self._accelerator.num_processes

    @property
    def is_main(self) -> bool:
        """Whether this process writes records and shows progress."""
        return self.rank == 0

    def to_device(self, batch: Any) -> Any:
        """A tensor, or a mapping or sequence of tensors, on this process's device."""
        if isinstance(batch, (Tensor, KnownFeatures)):
            return batch.to(self.device, non_blocking=True)
        if isinstance(batch, dict):
            return {key: self.to_device(value) for key, value in batch.items()}
        if isinstance(batch, (list, tuple)):
            return type(batch)(self.to_device(value) for value in batch)
        return batch

    def autocast(self) -> AbstractContextManager[Any]:
        """Mixed precision for a forward pass; nothing in fp32."""
        return self._accelerator.autocast()

    def prepare(self, optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
        """The optimiser with loss scaling where fp16 needs it."""
        return self._accelerator.prepare_optimizer(optimizer)

    def backward(self, loss: Tensor) -> None:
        """Accumulate gradients of ``loss``."""
        scaler = self._accelerator.scaler
        (loss if scaler is None else scaler.scale(loss)).backward()

    def clip(self, parameters: Iterable[nn.Parameter], optimizer: torch.optim.Optimizer, norm: float) -> None:
        """Scale the gradients to a Euclidean norm of at most ``norm``."""
        self._accelerator.unscale_gradients(optimizer)
        torch.nn.utils.clip_grad_norm_(parameters, norm)

    @property
    def scaler_state(self) -> dict[str, Any]:
        """State of the fp16 loss scaler, empty without one."""
        return {} if self._accelerator.scaler is None else self._accelerator.scaler.state_dict()

    @scaler_state.setter
    def scaler_state(self, state: dict[str, Any]) -> None:
        if self._accelerator.scaler is not None:
            self._accelerator.scaler.load_state_dict(state)

    def sum(self, tensor: Tensor) -> Tensor:
        """Sum over processes, in place; every process gets the result."""
        if self.world > 1:
            torch.distributed.all_reduce(tensor)
        return tensor

    def sum_gradients(self, parameters: list[nn.Parameter], terms: Tensor) -> None:
        """Sum gradients and loss terms over processes in one message.

        A parameter that no process used keeps ``grad is None``, as in a single process.

        Args:
            parameters: what is trained, in the same order everywhere.
            terms: this process's weighted loss terms, ``[k]``; replaced by their sum.
        """
        if self.world == 1:
            return
        used = torch.tensor([p.grad is not None for p in parameters], dtype=torch.float32, device=self.device)
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        flat = torch.cat([*(g.reshape(-1).float() for g in grads), used, terms.float()])
        torch.distributed.all_reduce(flat)
        sizes = [p.numel() for p in parameters]
        *pieces, used, summed = flat.split([*sizes, len(parameters), len(terms)])
        for parameter, piece, count in zip(parameters, pieces, used.tolist(), strict=True):
            parameter.grad = piece.view_as(parameter).to(parameter.dtype) if count else None
        terms.copy_(summed)

    def agree(self, message: str | None) -> str | None:
        """The first process's word on a question all must answer alike, e.g. whether to skip a run."""
        if self.world == 1:
            return message
        box = [message]
        torch.distributed.broadcast_object_list(box, src=0)
        return box[0]


@contextmanager
def process_group() -> Iterator[None]:
    """Leave the process group in order: without it gloo aborts some runs after their work is done."""
    try:
        yield
    finally:
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def launched_rank() -> int:
    """Rank that the launcher gave this process, 0 without a launcher; known before a process group exists."""
    return int(os.environ.get("RANK", "0"))

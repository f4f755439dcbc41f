"""Several processes on one computation: who takes what, sums and stretches brought together."""

from __future__ import annotations

from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")


def rank_and_world() -> tuple[int, int]:
    """This process's number and how many there are; (0, 1) where ``torch.distributed`` is not initialised."""
    if not (dist.is_available() and dist.is_initialized()):
        return 0, 1
    return dist.get_rank(), dist.get_world_size()


def is_first() -> bool:
    """Whether this process is the one that writes."""
    return rank_and_world()[0] == 0


def agreed(value: T) -> T:
    """The first process's value, in every process.

    >>> agreed([3, 1])
    [3, 1]
    """
    if rank_and_world()[1] == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def own_stretch(n: int) -> tuple[int, int]:
    """Start and stop of this process's part of n samples; the parts follow each other in the order of the processes."""
    rank, world = rank_and_world()
    return n * rank // world, n * (rank + 1) // world


def summed(values: Tensor) -> Tensor:
    """The sum over processes, on the CPU; every process gets it.

    >>> summed(torch.ones(2))
    tensor([1., 1.])
    """
    if rank_and_world()[1] == 1:
        return values.cpu()
    shared = _on_wire(values)
    dist.all_reduce(shared)
    return shared.cpu()


def joined(values: Tensor) -> Tensor:
    """The rows of all processes in their order, on the CPU; every process gets them. Row counts may differ.

    >>> joined(torch.arange(3))
    tensor([0, 1, 2])
    """
    world = rank_and_world()[1]
    if world == 1:
        return values.cpu()
    sizes = [torch.zeros_like(_on_wire(torch.tensor([0]))) for _ in range(world)]
    dist.all_gather(sizes, _on_wire(torch.tensor([len(values)])))
    longest = max(int(size) for size in sizes)
    padded = _on_wire(values.new_zeros(longest, *values.shape[1:]))
    padded[: len(values)] = values.to(padded.device)
    parts = [torch.empty_like(padded) for _ in range(world)]
    dist.all_gather(parts, padded)
    return torch.cat([part[: int(size)] for part, size in zip(parts, sizes)]).cpu()


def _on_wire(values: Tensor) -> Tensor:
    """A copy on the device that the back end sends from."""
    device = torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else torch.device("cpu")
    return values.detach().to(device, copy=True).contiguous()

"""How much memory training takes."""

from __future__ import annotations

import sys

import torch


def reset_peak_memory(device: torch.device) -> None:
    """Start counting anew; only a CUDA device can."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory_bytes(device: torch.device) -> int | None:
    """Largest memory so far in bytes: allocated on a CUDA device since the last reset, else resident in this process.

    The resident peak of a process never falls, so on a CPU it covers everything the process did before. ``None`` where
    the platform does not tell.

    >>> peak_memory_bytes(torch.device("cpu")) > 10_000_000
    True
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024

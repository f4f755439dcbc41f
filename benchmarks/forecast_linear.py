"""Time and memory of an exact forecast for a linear head, and of the dense computation it replaces.

    python -m benchmarks.forecast_linear [--n-old 50000 --n-new 10000 --width 768 --outputs 1000]

Closed form: 200 steps of full-batch gradient descent on squared error. Recursion: 200 steps of AdamW on cross-entropy
in batches of 32. Random float32 features; CPU seconds of this process with one thread, and by how much the peak memory
of the process rose. The dense computation builds the kernels of all outputs from per-sample Jacobians, as one would for
any network, and decomposes them; it is run at a size where it fits, beside the forecast of the same drift.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn

from tangentcl.forecast import AdamW, Dynamics, Forecast, GradientDescent, forecast_linear

STEPS, RATE = 200, 0.5
Result = TypeVar("Result")


def peak_megabytes() -> float:
    """Largest memory this process has held so far."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def measured(work: Callable[[], Result]) -> tuple[Result, float, float]:
    """What ``work`` returns, its CPU seconds, and by how many megabytes it raised the peak."""
    before, start = peak_megabytes(), time.process_time()
    result = work()
    return result, time.process_time() - start, peak_megabytes() - before


def problem(n_old: int, n_new: int, d: int, n_outputs: int) -> tuple[Tensor, nn.Linear, Tensor, Tensor]:
    """Random old features, head, new features and labels."""
    g = torch.Generator().manual_seed(0)
    old, new = (torch.randn(n, d, generator=g) / d**0.5 for n in (n_old, n_new))
    head = nn.Linear(d, n_outputs)
    nn.init.normal_(head.weight, generator=g)
    return old, head, new, torch.randint(n_outputs, (n_new,), generator=g)


def dense_drift(old: Tensor, head: nn.Linear, new: Tensor, labels: Tensor) -> Tensor:
    """The closed form with kernels [n C, n C] from per-sample Jacobians of the head, [n1, C]."""
    parameters = {name: p.detach().double() for name, p in head.named_parameters()}

    def jacobian(x: Tensor) -> Tensor:
        def outputs(values: dict[str, Tensor], sample: Tensor) -> Tensor:
            return torch.func.functional_call(head, values, (sample[None],))[0]

        blocks = torch.func.vmap(torch.func.jacrev(outputs), (None, 0))(parameters, x.double())
        return torch.cat([block.flatten(2) for block in blocks.values()], dim=2).flatten(0, 1)  # [n C, P]

    J_old, J_new = jacobian(old), jacobian(new)
    residual = nn.functional.linear(new.double(), **parameters) - nn.functional.one_hot(labels, head.out_features)
    s, U = torch.linalg.eigh(J_new @ J_new.T)
    h = s.clamp(min=1e-12) / len(new)
    beta = (1 - (1 - RATE * h) ** STEPS) / h
    dual = -U @ (beta * (U.T @ residual.flatten())) / len(new)
    return ((J_old @ J_new.T) @ dual).view(len(old), -1)


def main() -> int:
    """Print time and memory at the size asked for, then the ratio to the dense computation at a small one."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    for name, default in (("n-old", 50_000), ("n-new", 10_000), ("width", 768), ("outputs", 1_000)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    torch.set_num_threads(1)

    closed = GradientDescent(lr=RATE, steps=STEPS, loss="squared_error")
    forecast_linear(*problem(9, 9, 3, 2), closed)  # the first call loads code
    size = (options.n_old, options.n_new, options.width, options.outputs)
    data = problem(*size)
    rows = 2 * 4 * options.n_old * options.outputs / 1e6
    print(heading(*size))
    print(
        f"  outputs and drift themselves take {rows:.0f} MB, dense kernels would take {dense_terabytes(*size):.3g} TB"
    )
    batches = torch.randint(options.n_new, (STEPS, 32), generator=torch.Generator().manual_seed(1)).tolist()
    recipes: dict[str, Dynamics] = {"closed form": closed, "AdamW": AdamW(lr=1e-3, batches=batches)}
    for name, dynamics in recipes.items():
        found, seconds, memory = measured(lambda dynamics=dynamics: forecast_linear(*data, dynamics))  # type: ignore[misc]
        print(f"  {name:12s}  {seconds:8.3f} s  {memory:8.1f} MB")
        if name == "closed form":
            report_spectrum(found)

    small = (100, 60, 48, 10)
    data = problem(*small)
    fast, seconds, _ = measured(lambda: forecast_linear(*data, closed))
    dense, naive, memory = measured(lambda: dense_drift(*data))
    error = float((fast.drift - dense).norm() / dense.norm())
    print(heading(*small))
    print(f"  dense kernels {naive:8.3f} s  {memory:8.1f} MB")
    print(f"  forecast      {seconds:8.4f} s  {naive / seconds:8.0f} times faster, relative difference {error:.1e}")
    return 0


def heading(n_old: int, n_new: int, d: int, n_outputs: int) -> str:
    """The size of a problem in words."""
    return f"n_old = {n_old:,}, n_new = {n_new:,}, d = {d:,}, C = {n_outputs:,}"


def dense_terabytes(n_old: int, n_new: int, d: int, n_outputs: int) -> float:
    """Size of the float64 kernels among new and between old and new outputs."""
    return 8e-12 * n_outputs**2 * n_new * (n_new + n_old)


def report_spectrum(forecast: Forecast) -> None:
    """Time and memory of the old kernel's eigenspaces."""
    found, seconds, memory = measured(lambda: forecast.vulnerability)
    print(f"  eigenspaces   {seconds:8.3f} s  {memory:8.1f} MB  ({len(found.values)} of the old kernel)")


if __name__ == "__main__":
    raise SystemExit(main())

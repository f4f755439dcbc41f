"""How time and memory of a forecast grow with old samples, width, outputs and parameters.

    python -m benchmarks.forecast_scale [--quick]

Linear head: `forecast_streamed` (old and new features come in blocks; eigenspaces included) beside `forecast_linear` on
the same features in memory (eigenspaces included), and beside kernels of all outputs from per-sample Jacobians where
these fit. 200 steps of full-batch gradient descent on squared error, 10,000 new samples, float32 features. More than a
linear head: the tangent kernel K(X, X) of a network with P parameters at n = 64, C = 10, by `EmpiricalNTK` and by
``vmap(jacrev)``.

Each row is a process of its own with one thread. Seconds are of CPU, without imports; the memory is by how much the
process's peak rose, data included, and its whole peak. A slope is that of log seconds (or memory) over the log of what
grows, fitted over the rows of a curve.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.forecast_linear import RATE, STEPS, dense_drift, peak_megabytes, problem
from tangentcl.forecast import GradientDescent, forecast_linear
from tangentcl.forecast.feature_blocks import Block, FeatureBlocks
from tangentcl.forecast.streamed import forecast_streamed
from tangentcl.kernels import EmpiricalNTK

ROWS = 4096
RECIPE = GradientDescent(lr=RATE, steps=STEPS, loss="squared_error")


@dataclass(frozen=True)
class Point:
    """One measurement: ``kind`` names the computation, the rest is its size (``width`` is d, or of hidden layers)."""

    kind: str
    n_old: int
    n_new: int
    width: int
    outputs: int


FULL = Point("streamed", 50_000, 10_000, 768, 1_000)
MIDDLE = Point("streamed", 20_000, 10_000, 384, 300)
SMALL = Point("streamed", 100, 60, 48, 10)
NETWORK = Point("ntk", 64, 0, 64, 10)


class Sliding(FeatureBlocks):
    """Random features of any number of samples from a pool of two blocks: block i starts at row i."""

    def __init__(self, n: int, d: int, outputs: int, seed: int) -> None:
        g = torch.Generator().manual_seed(seed)
        self.n = n
        self.features = torch.randn(2 * ROWS, d, generator=g) / d**0.5
        self.labels = torch.randint(outputs, (2 * ROWS,), generator=g)

    def __len__(self) -> int:
        return self.n

    def stretch(self, start: int, stop: int) -> Iterator[Block]:
        for i, first in enumerate(range(start, stop, ROWS)):
            rows = slice(i % ROWS, i % ROWS + min(ROWS, stop - first))
            yield self.features[rows], self.labels[rows]

    def whole(self) -> Block:
        """All of it in memory."""
        features, labels = zip(*self.stretch(0, self.n))
        return torch.cat(features), torch.cat(labels)


def linear(point: Point) -> None:
    """A forecast for a linear head with its eigenspaces, streamed or in memory."""
    old, new = (Sliding(n, point.width, point.outputs, seed) for seed, n in enumerate((point.n_old, point.n_new)))
    head = nn.Linear(point.width, point.outputs)
    if point.kind == "streamed":
        streamed = forecast_streamed(old, head, new, RECIPE)
        streamed.accuracy(), streamed.vulnerable_rank()
        return
    (z_old, labels), (z_new, targets) = old.whole(), new.whole()
    found = forecast_linear(z_old, head, z_new, targets, RECIPE, labels_old=labels)
    found.accuracy(), found.margins(), found.vulnerable_rank()


def dense(point: Point) -> None:
    """The same drift by kernels of all outputs, from per-sample Jacobians of the head."""
    dense_drift(*problem(point.n_old, point.n_new, point.width, point.outputs))


def network(width: int, outputs: int) -> nn.Sequential:
    """Two hidden layers."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, outputs))


def tangent(point: Point) -> None:
    """K(X, X) of a network, by the library or by per-sample Jacobians."""
    model, x = network(point.width, point.outputs), torch.randn(point.n_old, 64)
    if point.kind == "ntk":
        EmpiricalNTK(model)(x).to_dense(torch.float32)
        return
    values = {name: p.detach() for name, p in model.named_parameters()}

    def f(weights: dict[str, Tensor], sample: Tensor) -> Tensor:
        return torch.func.functional_call(model, weights, (sample[None],))[0]

    blocks = torch.func.vmap(torch.func.jacrev(f), (None, 0))(values, x)
    J = torch.cat([block.flatten(2) for block in blocks.values()], dim=2).flatten(0, 1)
    _ = J @ J.T


def measured(point: Point) -> dict[str, float]:
    """CPU seconds and megabytes of a point in this process, after a tiny call that loads code."""
    torch.set_num_threads(1)
    work = tangent if point.kind in ("ntk", "vmap(jacrev)") else dense if point.kind == "dense" else linear
    if point.kind != "dense":
        work(replace(point, n_old=9, n_new=9, width=3, outputs=2))
    before, start = peak_megabytes(), time.process_time()
    work(point)
    seconds = time.process_time() - start
    return {"seconds": seconds, "megabytes": peak_megabytes() - before, "peak": peak_megabytes()}


def in_its_own_process(point: Point) -> dict[str, float]:
    """The same, in a new process."""
    command = [sys.executable, "-m", "benchmarks.forecast_scale", "--point", json.dumps(asdict(point))]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{point} failed:\n{done.stderr[-2000:]}")
    found: dict[str, float] = json.loads(done.stdout)
    return found


def slope(x: Sequence[float], y: Sequence[float]) -> float:
    """Of log y over log x, by least squares.

    >>> round(slope([1, 2, 4], [3, 12, 48]), 6)
    2.0
    """
    return float(np.polyfit(np.log(x), np.log(np.maximum(y, 1e-9)), 1)[0])


def curve(title: str, kinds: Sequence[str], base: Point, grows: str, sizes: Sequence[int]) -> None:
    """Measure and print one curve for each kind of computation, and its slopes."""
    fixed = {"n_old": base.n_old, "n_new": base.n_new, "width": base.width, "outputs": base.outputs}
    fixed.pop("width" if grows == "P" else grows)
    print(f"\n{title}: " + ", ".join(f"{name} = {value:,}" for name, value in fixed.items()))
    print(f"  {'':16s} {grows:>9s} {'seconds':>9s} {'MB more':>9s} {'MB peak':>9s}")
    for kind in kinds:
        found = []
        for size in sizes:
            point = replace(base, kind=kind, **{grows if grows != "P" else "width": size})
            shown = size if grows != "P" else sum(p.numel() for p in network(size, base.outputs).parameters())
            found.append({"size": float(shown), **in_its_own_process(point)})
            row = found[-1]
            print(
                f"  {kind:16s} {shown:9,d} {row['seconds']:9.3f} {row['megabytes']:9.0f} {row['peak']:9.0f}", flush=True
            )
        if len(sizes) > 1:
            x = [row["size"] for row in found]
            slopes = [slope(x, [max(row[key], 1e-6) for row in found]) for key in ("seconds", "megabytes")]
            print(f"  {'slope':16s} {'':9s} {slopes[0]:9.2f} {slopes[1]:9.2f}")


def main() -> int:
    """Print every curve."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a tenth of the sizes")
    parser.add_argument("--point", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.point:
        print(json.dumps(measured(Point(**json.loads(options.point)))))
        return 0
    q = 10 if options.quick else 1

    def sizes(*values: int) -> list[int]:
        return [max(math.ceil(value / q), 8) for value in values]

    both = ("streamed", "in memory")
    full = replace(FULL, n_old=FULL.n_old // q, n_new=FULL.n_new // q, width=FULL.width // q)
    middle = replace(MIDDLE, n_old=MIDDLE.n_old // q, n_new=MIDDLE.n_new // q)
    curve("old samples", both, full, "n_old", sizes(12_500, 25_000, 50_000, 100_000))
    curve("outputs", both, middle, "outputs", sizes(100, 300, 1_000, 3_000))
    curve("features", both, middle, "width", sizes(192, 384, 768, 1_536))
    curve("kernels of all outputs", ("streamed", "dense"), SMALL, "n_old", [100])
    curve("tangent kernel", ("ntk", "vmap(jacrev)"), NETWORK, "P", [64, 128, 256, 512])
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

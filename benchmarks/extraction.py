"""Features of frozen backbones by every engine and route, against a plain loop of torch in the same process.

    python -m benchmarks.extraction [--samples 1024] [--batch-size 64] [--rounds 5] [--cases images texts]

The plain loop takes the samples in order and computes in float32 as torch does by default. The others take texts from
short to long, as the feature store does. All batches are made beforehand: reading, transforms and tokens do not count.
Every candidate computes all samples once in each round, in turn; the fewest CPU seconds of this process, with one
thread, count. Errors are those of a sample's features, relative, against float64. Start is tracing, compiling and the
check against torch, once for a run; it is not part of the speed.

Images are digits under the bundled backbone. Texts are CLINC150 under all-MiniLM-L6-v2; they need ``TANGENTCL_DATA``
and ``TANGENTCL_MODELS`` and are left out where these are not set.
"""

from __future__ import annotations

import argparse
import copy
import os
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tangentcl.data import Samples, load
from tangentcl.errors import MissingExtra
from tangentcl.nn import Backbone, backbone
from tangentcl.nn.engine import build_engine, check_engine, relative_errors
from tangentcl.nn.feature_store import PROBED
from tangentcl.nn.matmul_route import cpu_seconds, fastest_route, matmul_route, product_cost

ENGINES = (("onnxruntime", "fp32"), ("openvino", "fp32"), ("openvino", "bf16"))


@dataclass
class Candidate:
    """One way to features [n, d] of all samples in order, and what starting it took."""

    name: str
    features: Callable[[], Tensor]
    start: float = 0.0
    seconds: float = float("inf")


def batches_of(samples: Samples, order: np.ndarray, batch_size: int) -> list[Any]:
    """The inputs in an order, as batches."""
    return [x for x, _ in samples.subset(order).batches(batch_size)]


@torch.no_grad()
def looped(compute: Callable[[Any], Tensor], batches: list[Any], order: np.ndarray, context: Any) -> Tensor:
    """Features of all batches, put back in the order of the samples."""
    with context():
        found = torch.cat([compute(x).float() for x in batches])
    return found[torch.from_numpy(np.argsort(order))]


def exact(network: Backbone, batches: list[Any], order: np.ndarray) -> Tensor:
    """Features in float64."""
    model = copy.deepcopy(network.model).double()

    def compute(x: Any) -> Tensor:
        return network.features(model, x.double() if isinstance(x, Tensor) else x)

    with torch.no_grad():
        found = torch.cat([compute(x) for x in batches])
    return found[torch.from_numpy(np.argsort(order))]


def candidates(network: Backbone, samples: Samples, batch_size: int) -> list[Candidate]:
    """The plain loop first."""
    plain, order = np.arange(len(samples)), samples.short_first()
    run = partial(looped, batches=batches_of(samples, order, batch_size), order=order)
    bf16 = partial(torch.autocast, "cpu", torch.bfloat16)
    found = [
        Candidate("plain loop", partial(looped, network, batches_of(samples, plain, batch_size), plain, nullcontext)),
        Candidate("torch fp32", partial(run, network, context=nullcontext)),
        Candidate("torch fp32, oneDNN route", partial(run, network, context=partial(matmul_route, "onednn"))),
        Candidate("torch bf16 autocast", partial(run, network, context=bf16)),
    ]
    for name, precision in ENGINES:
        try:
            check_engine(name)
        except MissingExtra as error:
            print(f"  {name} {precision} left out: {error}")
            continue
        start = time.process_time()
        engine = build_engine(name, network, precision, samples)
        seconds = time.process_time() - start
        found.append(Candidate(f"{name} {precision}", partial(run, engine, context=nullcontext), seconds))
    return found


def measure(title: str, network: Backbone, samples: Samples, batch_size: int, rounds: int) -> None:
    """Print speed and errors of every candidate, and which route the store takes."""
    print(f"{title}: {len(samples)} samples, batches of {batch_size}")
    order = samples.short_first()
    batches = batches_of(samples, order, batch_size)
    truth = exact(network, batches, order)
    ways = candidates(network, samples, batch_size)
    errors = [relative_errors(way.features().double(), truth) for way in ways]  # also warms up
    for _ in range(rounds):
        for way in ways:
            way.seconds = min(way.seconds, cpu_seconds(way.features))
    for way, error in zip(ways, errors):
        ratio, rate = ways[0].seconds / way.seconds, len(samples) / way.seconds
        print(
            f"  {way.name:26s} {rate:8.1f} /s  {ratio:5.2f} times  error max {error.max():.1e} mean {error.mean():.1e}"
            f"  start {way.start:.1f} s"
        )
    middle = order[max(0, (len(order) - PROBED) // 2) :][:PROBED]
    (batch,) = batches_of(samples, middle, PROBED)
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        route = fastest_route(Path(folder), work=lambda: network.features(network.model, batch))
    print(f"  the store takes the route '{route}'")


def main(arguments: list[str] | None = None) -> int:
    """Measure the cases."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--samples", type=int, default=1024)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cases", nargs="+", choices=("images", "texts"), default=["images", "texts"])
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    for route in ("default", "onednn"):
        cost = product_cost(route)
        print(f"product, {route}: {1e3 * cost.seconds:.1f} ms, relative error {cost.error:.1e}")
    models = os.environ.get("TANGENTCL_MODELS")
    for case in options.cases:
        if case == "texts" and not (models and os.environ.get("TANGENTCL_DATA")):
            print("texts: left out, TANGENTCL_DATA or TANGENTCL_MODELS is not set")
            continue
        name, data = ("bundled", "digits") if case == "images" else (f"{models}/all-MiniLM-L6-v2", "clinc150")
        network, table = backbone(name), load(data).train
        chosen = np.random.RandomState(0).permutation(len(table))[: options.samples]
        samples = Samples(table, transform=network.eval_transform).subset(chosen)
        measure(f"{case}, {network.card.name} on {data}", network, samples, options.batch_size, options.rounds)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

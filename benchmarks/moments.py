"""How well moments of old features forecast the drift of old outputs.

    python -m benchmarks.moments --backbone $TANGENTCL_MODELS/all-MiniLM-L6-v2 [--source clinc150 --cache features.pt]

One task per domain. A head learns one domain (five epochs of AdamW, 1e-2), gets new rows, and learns another one by
each recipe below (three epochs, batches of 32, cross-entropy over all outputs): every ordered pair of domains. Printed
for each kind of sketch, over all pairs and recipes: the relative error of the summed squared drift of the old training
samples, the bounds relative to the truth, the size of the file, and the time to make it; then the error of the
estimated accuracy, in points, against that of the old training samples and of held-out ones.

    python -m benchmarks.moments --lora [--every-recipe]

The same question where LoRA of rank 8 and a head train: three pairs of domains as in `benchmarks.forecast_quality`,
225 sentences each, 72 steps of AdamW and of SGD with momentum; one rate for each, or three. Every recipe is forecast
without old data and then really trained. Printed per run: rms drift of the old training samples, real, forecast, and by
the head alone; the relative change of the layers' outputs; accuracy, real and estimated; the gap on the new samples.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

import tangentcl
from benchmarks.forecast_quality import fit, outputs, prepared_method, spearman
from benchmarks.forecast_quality import recipes as adapter_plans
from tangentcl.forecast import SGD, AdamW, Dynamics, linear_problem, prepare_forecast
from tangentcl.forecast.from_moments import prepared_from_moments
from tangentcl.forecast.moment_forecast import moment_forecast
from tangentcl.forecast.moments import TaskMoments
from tangentcl.linalg import with_constant
from tangentcl.nn import extract_features
from tangentcl.training.moments import collect_moments
from tangentcl.training.recipe import recipe

KEPT = [("exact", 0), *itertools.product(("low_rank_diagonal", "frequent_directions"), (8, 16, 32, 64, 128))]
PAIRS = (("banking", "credit_cards"), ("home", "auto_and_commute"), ("utility", "work"))
MIDDLE = {("adamw", 3e-4), ("sgd", 3e-3)}
Split = tuple[Tensor, Tensor]  # features [n, d], labels from 0


@dataclass
class Pair:
    """One old domain, one new one, one recipe: heads as float64 [d + 1, C]."""

    old: int
    recipe: str
    head: Tensor
    change: Tensor


def features(source: str, backbone: str, cache: Path | None) -> list[tuple[Split, Split]]:
    """Training and test features of every domain, with labels from 0 in each."""
    if cache is not None and cache.exists():
        found: list[tuple[Split, Split]] = torch.load(cache)
        return found
    stream = tangentcl.class_incremental(tangentcl.load(source), groups=True)
    network = tangentcl.backbone(backbone, pooling="mean")
    stream = stream.with_transforms(network.eval_transform, network.eval_transform)
    found = []
    for task in stream:
        train, test = (extract_features(network, samples) for samples in (task.train, task.test))
        found.append(((train[0], train[1] - min(task.classes)), (test[0], test[1] - min(task.classes))))
    if cache is not None:
        torch.save(found, cache)
    return found


def batches(n: int, epochs: int) -> list[list[int]]:
    """Batches of 32 in random order."""
    g = torch.Generator().manual_seed(0)
    return [part.tolist() for _ in range(epochs) for part in torch.randperm(n, generator=g).split(32)]


def learned(domains: list[tuple[Split, Split]]) -> list[Pair]:
    """Every ordered pair of domains under every recipe."""
    found = []
    for old, ((x, y), _) in enumerate(domains):
        d, c = x.shape[1], int(y.max()) + 1
        g = torch.Generator().manual_seed(old)
        first = linear_problem(x, 0.02 * torch.randn(c, d, generator=g), torch.zeros(c), y)
        start = first.weight + AdamW(lr=1e-2, batches=batches(len(x), 5)).displacement(first).weight
        for new, ((x2, y2), _) in enumerate(domains):
            if new == old:
                continue
            rows = 0.02 * torch.randn(int(y2.max()) + 1, d, generator=g)
            weight = torch.cat([start[:-1].T, rows])
            bias = torch.cat([start[-1], torch.zeros(len(rows))])
            problem = linear_problem(x2, weight, bias, y2 + c)
            for name, dynamics in recipes(len(x2)).items():
                found.append(Pair(old, name, problem.weight, dynamics.displacement(problem).weight))
    return found


def recipes(n: int) -> dict[str, Dynamics]:
    """The recipes by name."""
    order = batches(n, 3)
    return {
        "SGD 0.1": SGD(lr=0.1, batches=order),
        "SGD 1.0": SGD(lr=1.0, batches=order),
        "AdamW 1e-3": AdamW(lr=1e-3, batches=order),
        "AdamW 1e-2": AdamW(lr=1e-2, batches=order),
    }


def right(split: Split, head: Tensor) -> float:
    """Share of samples that a head has right."""
    return float(((with_constant(split[0], 1.0) @ head).argmax(dim=1) == split[1]).double().mean())


def report(domains: list[tuple[Split, Split]], pairs: list[Pair]) -> None:
    """Errors by kind and size of what is kept."""
    truth = [(with_constant(domains[p.old][0][0], 1.0) @ p.change).square().sum().item() for p in pairs]
    after = [[right(split, p.head + p.change) for split in domains[p.old]] for p in pairs]
    print(f"{len(pairs)} forecasts; accuracy after, on training samples: {spread([a for a, _ in after])}")
    print("kept                     k    kB    s   energy error mean / max %   low / true   high / true", end="")
    print("   accuracy error mean / max   on held-out samples")
    for kind, k in KEPT:
        began = time.process_time()
        moments = [made(split, kind, k) for split, _ in domains]
        seconds = (time.process_time() - began) / len(moments)
        size = sum(t.numel() * t.element_size() for t in moments[0].tensors().values()) / 1e3
        found = [moment_forecast([moments[p.old]], p.change, p.head, seen=p.head.shape[1]) for p in pairs]
        energy = [100 * abs(float(f.energy.sum()) / true - 1) for f, true in zip(found, truth)]
        low, high = ([float(getattr(f, e).sum()) / t for f, t in zip(found, truth)] for e in ("low", "high"))
        accuracy = [f.accuracy()[1] for f in found]
        errors = [[100 * abs(mine - pair[i]) for mine, pair in zip(accuracy, after)] for i in (0, 1)]
        print(
            f"{kind:20s}  {k or '-':>4}  {size:4.0f}  {seconds:.2f}  {mean(energy):9.2g} / {max(energy):<9.2g}", end=""
        )
        print(f"          {mean(low):.3f}        {mean(high):.3f}", end="")
        print(f"             {mean(errors[0]):.2f} / {max(errors[0]):.2f}         {mean(errors[1]):.2f}")


def made(split: Split, kind: str, k: int) -> TaskMoments:
    """Moments of the training samples of one domain."""
    moments = TaskMoments.empty(split[0].shape[1], sketch=kind, k=k)
    moments.add(*split)
    moments.tensors()  # compresses what waits
    return moments


@dataclass
class LoraRun:
    """One pair, one recipe: root mean square drifts, layers' energy, accuracies of the old training samples."""

    real: float
    forecast: float
    head: float
    layers: float
    accuracy: float
    estimate: float


def lora_runs(pair: tuple[str, str], every: bool) -> list[LoraRun]:
    """Forecast and really train the recipes of one pair, and print a line for each."""
    method, stream = prepared_method(pair, "lora")
    old, task = stream[0].train_eval, stream[1]
    before, labels = outputs(method, old), torch.from_numpy(old.labels)
    moments = [collect_moments(method.backbone, stream[0])]
    began = time.process_time()
    prepared = prepare_forecast(method, None, task, modes=0)
    prepared.parameters_after(SGD(lr=0.0, batches=[[0]]))  # what all recipes share is looked at
    print(f"{pair[0]} -> {pair[1]}: {time.process_time() - began:.1f} s that all recipes share")
    found = []
    for plan in adapter_plans("lora"):
        if not every and (plan.optimizer, plan.lr) not in MIDDLE:
            continue
        began = time.process_time()
        forecast = prepared_from_moments(prepared, moments, recipe(plan, len(task.train), task.index))
        seconds = time.process_time() - began
        learner = copy.deepcopy(method)
        training = fit(learner, task, plan)
        after = outputs(learner, old)
        assert forecast.layers is not None
        assert forecast.trust is not None
        run = LoraRun(
            real=float((after - before).double().square().mean().sqrt()),
            forecast=forecast.rms,
            head=forecast.head_rms,
            layers=forecast.layers.total,
            accuracy=float((after.argmax(dim=1) == labels).double().mean()),
            estimate=forecast.accuracy()[1],
        )
        print(
            f"  {plan.optimizer:5s} {plan.lr:<6g} rms {run.real:.3f} forecast {run.forecast:.3f} head {run.head:.3f}  "
            f"layers {float(forecast.layers.relative.max()):.3f}  accuracy {run.accuracy:.3f} estimate "
            f"{run.estimate:.3f}  gap {forecast.trust.gap:.2f}  {seconds:.1f} s, training {training:.1f} s",
            flush=True,
        )
        found.append(run)
    return found


def lora_report(runs: list[LoraRun]) -> None:
    """Ranks and ratios of what was forecast, over all runs; the layers' energy has a unit of its own."""
    real = torch.tensor([run.real for run in runs])
    for name, values in (("head and features", [r.forecast for r in runs]), ("head alone", [r.head for r in runs])):
        ratio = torch.tensor(values) / real
        off = float(ratio.log().abs().mean().exp())
        print(f"{name:18s} Spearman {spearman(torch.tensor(values), real):.3f}", end="")
        print(f"  forecast / real {float(ratio.min()):.2f} to {float(ratio.max()):.2f}, on average off by x {off:.2f}")
    print(f"layers' energy     Spearman {spearman(torch.tensor([run.layers for run in runs]), real):.3f}")
    errors = [100 * abs(run.estimate - run.accuracy) for run in runs]
    print(
        f"accuracy {spread([run.accuracy for run in runs])}; error mean {mean(errors):.1f} max {max(errors):.1f} points"
    )


def mean(values: list[float]) -> float:
    """Arithmetic mean."""
    return sum(values) / len(values)


def spread(values: list[float]) -> str:
    """Lowest, mean and highest."""
    return f"{min(values):.3f} to {max(values):.3f}, mean {mean(values):.3f}"


def main() -> int:
    """Learn every pair and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--backbone", help="folder of the frozen encoder")
    parser.add_argument("--source", default="clinc150")
    parser.add_argument("--cache", type=Path, help="file for the features, so that they are computed once")
    parser.add_argument("--lora", action="store_true", help="adapters train; data and encoder from the environment")
    parser.add_argument("--every-recipe", action="store_true", help="with --lora: three rates of each optimizer")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.lora:
        lora_report([run for pair in PAIRS for run in lora_runs(pair, options.every_recipe)])
        return 0
    if options.backbone is None:
        parser.error("give --backbone FOLDER or --lora")
    domains = features(options.source, options.backbone, options.cache)
    report(domains, learned(domains))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

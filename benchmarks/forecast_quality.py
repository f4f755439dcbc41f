"""Forecasts beside real training on CLINC150: how well drift and accuracy are forecast, at what cost.

    python -m benchmarks.forecast_quality --out quality.jsonl [--pairs 10] [--refine 0.1] [--forms bilinear]

Ten pairs of neighbouring domains, 15 old and 15 new intents each, 15 training sentences and 15 test sentences per
intent, all-MiniLM-L6-v2 (``TANGENTCL_MODELS``) with LoRA of rank 8 on every query and value, and a linear head. The old
domain is learned first; then every recipe (SGD with momentum and AdamW, three learning rates, 72 steps of 32) is
forecast and really trained from there. The same recipes for the head alone. One JSON line per run is appended to
``--out``; runs that are there already are not repeated. Then the table is printed.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import tangentcl
from tangentcl import Finetune, TrainingPlan
from tangentcl.data import Samples, Task
from tangentcl.forecast import Forecast, Prepared, prepare_forecast
from tangentcl.nn import backbone
from tangentcl.training import Runtime, TaskFit
from tangentcl.training.recipe import recipe

RATES = {"adamw": (1e-4, 3e-4, 1e-3), "sgd": (1e-3, 3e-3, 1e-2)}
HEAD_RATES = {"adamw": (1e-3, 3e-3, 1e-2), "sgd": (1e-2, 3e-2, 1e-1)}
BINS = (0.0, 0.3, 0.6, 0.9, float("inf"))
# cosine, R^2, Spearman, absolute error of the old accuracy: the reference for the linearised network, by size of drift
REFERENCE = (
    (0.998, 1.00, 1.00, 0.000),
    (0.956, 0.87, 0.92, 0.004),
    (0.85, 0.25, 0.66, 0.022),
    (0.82, 0.41, 0.61, 0.041),
)


def fit(method: Finetune, task: Task, plan: TrainingPlan) -> float:
    """Train on a task; CPU seconds."""
    began = time.process_time()
    TaskFit(method, task, task.train, plan, Runtime(device="cpu"), lambda *_: None).run()
    method.eval()
    return time.process_time() - began


@torch.no_grad()
def outputs(method: Finetune, samples: Samples) -> Tensor:
    """Logits in evaluation mode, [n, C]."""
    order = torch.from_numpy(samples.short_first())
    found = torch.cat([method.predict(x) for x, _ in samples.subset(order.numpy()).batches(64)])
    return found[order.argsort()]


def spearman(first: Tensor, second: Tensor) -> float:
    """Rank correlation of two vectors without ties."""
    ranks = torch.stack([v.argsort().argsort().double() for v in (first, second)])
    return float(torch.corrcoef(ranks)[0, 1])


def compared(forecast: Forecast, real: Tensor) -> dict[str, float]:
    """Forecast against truth, drift [n, C]."""
    predicted, real = forecast.drift.double(), real.double()
    labels = forecast.labels
    assert labels is not None
    now, after = forecast.accuracy()
    truth = float(((forecast.outputs + real).argmax(dim=1) == labels).double().mean())
    return {
        "rms": float(real.square().mean().sqrt()),
        "cosine": float((predicted * real).sum() / (predicted.norm() * real.norm())),
        "r2": 1 - float((predicted - real).square().sum() / real.square().sum()),
        "spearman": spearman(predicted.norm(dim=1), real.norm(dim=1)),
        "now": now,
        "predicted": after,
        "real": truth,
    }


def prepared_method(pair: tuple[str, str], tune: str) -> tuple[Finetune, Any]:
    """A learner that knows the old domain and has grown its head for the new one; the stream of both."""
    source = tangentcl.load("clinc150")
    stream = tangentcl.class_incremental(source, groups=list(pair), train_per_class=15, test_per_class=15)
    encoder = backbone(os.environ["TANGENTCL_MODELS"] + "/all-MiniLM-L6-v2", pooling="mean")
    stream = stream.with_transforms(encoder.eval_transform, encoder.eval_transform)
    torch.manual_seed(0)
    method = Finetune(encoder, tune=tune, rank=8)  # type: ignore[arg-type]
    method.begin_task(stream[0])
    fit(method, stream[0], TrainingPlan(epochs=6, lr=1e-3, head_lr=1e-2, device="cpu"))
    torch.manual_seed(1)
    method.begin_task(stream[1])
    return method.eval(), stream


def recipes(tune: str) -> Iterator[TrainingPlan]:
    """Three learning rates each of SGD with momentum and AdamW, 72 steps with a cosine schedule."""
    for optimizer, rates in (RATES if tune == "lora" else HEAD_RATES).items():
        for lr in rates:
            yield TrainingPlan(epochs=9, batch_size=32, optimizer=optimizer, lr=lr, device="cpu")


def run(
    pair: tuple[str, str],
    tune: str,
    forms: list[tuple[str, float]],
    write: Callable[[dict[str, Any]], None],
    done: set[tuple[Any, ...]],
) -> None:
    """Every recipe on one pair of domains: forecast, train, compare."""
    wanted = [
        (plan, form, refine)
        for plan in recipes(tune)
        for form, refine in forms
        if not refine or plan.lr == max(RATES[plan.optimizer])
        if (*pair, tune, plan.optimizer, plan.lr, form, refine) not in done
    ]
    if not wanted:
        return
    method, stream = prepared_method(pair, tune)
    old, task = stream[0].test, stream[1]
    truth: dict[TrainingPlan, tuple[Tensor, float]] = {}
    before = outputs(method, old)
    looked: dict[str, tuple[Prepared, float]] = {}
    for plan, form, refine in wanted:
        if form not in looked:
            began = time.process_time()
            prepared = prepare_forecast(method, old, task, form=form if tune == "lora" else "exact", modes=0)  # type: ignore[arg-type]
            looked[form] = prepared.look(), time.process_time() - began
        prepared, shared_seconds = looked[form]
        began = time.process_time()
        forecast = prepared.forecast(recipe(plan, len(task.train), task.index), refine=refine)
        forecast_seconds = time.process_time() - began
        if plan not in truth:
            learner = copy.deepcopy(method)
            seconds = fit(learner, task, plan)
            truth[plan] = outputs(learner, old) - before, seconds
        real, seconds = truth[plan]
        trust = {} if forecast.trust is None else forecast.trust.to_dict()
        write(
            {
                "old": pair[0],
                "new": pair[1],
                "tune": tune,
                "optimizer": plan.optimizer,
                "lr": plan.lr,
                "form": form,
                "refine": refine,
                **compared(forecast, real),
                "gap": trust.get("gap"),
                "level": trust.get("level"),
                "pilot_cosine": trust.get("pilot_cosine"),
                "kernel_drift": trust.get("kernel_drift"),
                "linearisation_error": trust.get("linearisation_error"),
                "shared_seconds": shared_seconds,
                "forecast_seconds": forecast_seconds,
                "training_seconds": seconds,
            }
        )


def table(rows: list[dict[str, Any]]) -> str:
    """Medians by size of the real drift, one block per form, in Markdown."""
    lines = []
    for kind in dict.fromkeys((row["tune"], row["form"], row["refine"]) for row in rows):
        chosen = [row for row in rows if (row["tune"], row["form"], row["refine"]) == kind]
        lines += [
            f"\n{kind[0]}, {kind[1]}, refine {kind[2]:g}: {len(chosen)} runs\n",
            "| rms drift | n | cosine | R^2 | Spearman | error of old accuracy | gap | cost: alone / one more recipe |",
            "| --- | --- | --- | --- | --- | --- | --- | --- |",
        ]
        for i, (low, high) in enumerate(itertools.pairwise(BINS)):
            inside = [row for row in chosen if low <= row["rms"] < high]
            if not inside:
                continue

            def median(name: Callable[[dict[str, Any]], float], inside: list[dict[str, Any]] = inside) -> float:
                return float(torch.tensor([name(row) for row in inside]).double().median())

            reference = REFERENCE[i] if kind[0] == "lora" else (1, 1, 1, 0)
            values = [
                median(lambda r: r["cosine"]),
                median(lambda r: r["r2"]),
                median(lambda r: r["spearman"]),
                sum(abs(r["predicted"] - r["real"]) for r in inside) / len(inside),
            ]
            cells = [f"{v:.3f} ({ref:g})" for v, ref in zip(values, reference)]
            gap = "" if inside[0]["gap"] is None else f"{median(lambda r: r['gap']):.2f}"
            cost = median(lambda r: r["forecast_seconds"] / r["training_seconds"])
            alone = median(lambda r: (r["shared_seconds"] + r["forecast_seconds"]) / r["training_seconds"])
            lines.append(
                f"| {low:g} to {high:g} | {len(inside)} | {' | '.join(cells)} | {gap} | {alone:.2f} / {cost:.2f} |"
            )
    return "\n".join(lines)


def listing(rows: list[dict[str, Any]]) -> str:
    """Every run, in Markdown."""
    lines = [
        "| old -> new | trains | optimizer | lr | form | refine | rms | cosine | R^2 | Spearman | old accuracy now | "
        "predicted | real | gap | trust | cost |",
        "| --- " * 16 + "|",
    ]
    for r in rows:
        gap = "" if r["gap"] is None else f"{r['gap']:.2f}"
        lines.append(
            f"| {r['old']} -> {r['new']} | {r['tune']} | {r['optimizer']} | {r['lr']:g} | {r['form']} | "
            f"{r['refine']:g} | "
            f"{r['rms']:.2f} | {r['cosine']:.3f} | {r['r2']:.3f} | {r['spearman']:.3f} | {r['now']:.3f} | "
            f"{r['predicted']:.3f} | {r['real']:.3f} | {gap} | {r['level'] or 'exact'} | "
            f"{(r['shared_seconds'] + r['forecast_seconds']) / r['training_seconds']:.2f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("quality.jsonl"))
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--first", type=int, default=0, help="first pair")
    parser.add_argument("--tune", nargs="+", default=["lora", "head"])
    parser.add_argument("--forms", nargs="+", default=["bilinear"], choices=("bilinear", "ntk"))
    parser.add_argument("--refine", nargs="+", type=float, default=[0.0])
    parser.add_argument("--all", action="store_true", help="print every run")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = [json.loads(line) for line in options.out.read_text().splitlines()] if options.out.exists() else []
    done = {(r["old"], r["new"], r["tune"], r["optimizer"], r["lr"], r["form"], r["refine"]) for r in rows}
    stream = tangentcl.class_incremental(tangentcl.load("clinc150"), groups=True)
    names = [task.name for task in stream]

    def write(row: dict[str, Any]) -> None:
        rows.append(row)
        with options.out.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(json.dumps({k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()}), flush=True)

    for i in range(options.first, options.first + options.pairs):
        pair = names[i % len(names)], names[(i + 1) % len(names)]
        for tune in options.tune:
            forms = [(form, refine) for form in options.forms for refine in options.refine]
            run(pair, tune, forms if tune == "lora" else [("exact", 0.0)], write, done)
    print(table(rows))
    if options.all:
        print(listing(rows))


if __name__ == "__main__":
    main()

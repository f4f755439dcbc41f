"""Heads over frozen features on the streams of an experiment file: accuracy, spread, seconds and bytes of each.

    python -m benchmarks.head_table experiments/heads/clinc150.toml [--set plan.precision=bf16] [--seed 0 1 2 3 4]

The backbone passes over each sample once. Each method of the file then learns the stream of every seed from those
features, through the same code as a run, so that its seconds are those of the head alone. Methods that adapt the
backbone are refused. Regret is to the same method with ``joint = true``, where the file has it; *least* is the lowest
last accuracy of any seed.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from tangentcl.data import Samples, Task, TaskStream
from tangentcl.data.table import Table
from tangentcl.data.transforms import ArrayTransform
from tangentcl.experiments import load_experiment
from tangentcl.experiments.build import build_backbone, build_method, build_plan, build_source, build_stream, transforms
from tangentcl.nn import Backbone, extract_features
from tangentcl.nn.backbone import from_module
from tangentcl.training import Runtime, TrainingPlan, run_stream


class Features:
    """Features of samples by their name, computed once."""

    def __init__(self, backbone: Backbone, plan: TrainingPlan) -> None:
        self.backbone, self.runtime = backbone, Runtime(device=plan.device, precision=plan.precision)
        self.known: dict[str, np.ndarray] = {}
        self.transform = ArrayTransform()

    def of(self, parts: Sequence[Samples]) -> None:
        """Compute those that are not there yet."""
        for samples in parts:
            missing = np.flatnonzero([name not in self.known for name in samples.ids])
            if len(missing):
                with self.runtime.autocast():
                    found, _ = extract_features(self.backbone, samples.subset(missing))
                self.known.update(zip(samples.ids[missing].tolist(), found.numpy()))

    def samples(self, samples: Samples) -> Samples:
        """The same samples as arrays."""
        rows = np.stack([self.known[name] for name in samples.ids.tolist()])
        return Samples(Table(rows, samples.labels, samples.ids), transform=self.transform)

    def stream(self, stream: TaskStream) -> TaskStream:
        """The same stream over features."""
        self.of([part for task in stream for part in (task.train_eval, task.test)])

        def task(task: Task) -> Task:
            train = self.samples(task.train_eval)
            return dataclasses.replace(task, train=train, train_eval=train, test=self.samples(task.test))

        return dataclasses.replace(stream, tasks=tuple(task(t) for t in stream))


def learned(keywords: dict[str, Any], stream: TaskStream, width: int, plan: TrainingPlan) -> dict[str, Any]:
    """Numbers of one run over features."""
    seconds, state = 0.0, 0.0

    def emit(event: str, fields: dict[str, Any]) -> None:
        nonlocal seconds, state
        if event == "task_trained":
            seconds, state = seconds + fields["seconds"], fields["state_bytes"]

    card = {"name": "features", "modality": "array"}
    sample = torch.zeros(1, width)
    identity = from_module(nn.Identity(), None, width, sample=sample, **card)  # type: ignore[arg-type]
    plan = dataclasses.replace(plan, precision="fp32")
    method = build_method(keywords, identity, plan.seed)
    trains = any(p.requires_grad for p in method.parameters())
    if trains or getattr(method, "first_session", "off") != "off":
        raise SystemExit(f"{keywords['name']} trains by gradient; this table is of heads over frozen features.")
    summary = run_stream(method, stream, plan, emit=emit).summary()
    return {**summary, "seconds": seconds, "state": state}


def written(values: Sequence[float | None], scale: float = 100, digits: int = 2) -> str:
    """Mean and sample deviation."""
    known = [scale * v for v in values if v is not None]
    if not known:
        return "–"
    spread = f" ± {statistics.stdev(known):.{digits}f}" if len(known) > 1 else ""
    return f"{statistics.fmean(known):.{digits}f}{spread}"


def regrets(keywords: dict[str, Any], found: dict[str, list[dict[str, Any]]], own: str) -> list[float | None]:
    """A_T of the joint run less the own one, seed by seed."""
    wanted = repr(sorted({**keywords, "joint": True}.items()))
    return [
        j["last_accuracy"] - o["last_accuracy"]
        for j, o in zip(found.get(wanted, []), found[own])
        if not keywords.get("joint")
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure the methods of a file and print one line each."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("file")
    parser.add_argument("--set", nargs="+", default=[], help="changes to the file, as of tangentcl run")
    parser.add_argument("--seed", nargs="+", type=int, help="seeds in place of the file's")
    options = parser.parse_args(arguments)
    experiment = load_experiment(options.file, settings=options.set)
    seeds = options.seed or list(experiment.seeds)
    source, backbone = build_source(experiment.source), build_backbone(experiment.backbone)
    train, evaluation = transforms(backbone, experiment.transform)
    plans = {seed: build_plan(experiment.plan, seed) for seed in seeds}
    features = Features(backbone, plans[seeds[0]])
    streams = {}
    for seed in seeds:
        stream = build_stream(source, experiment.stream, seed).with_transforms(train, evaluation)
        streams[seed] = features.stream(stream)
        print(f"seed {seed}: {len(features.known):,} features", flush=True)
    found: dict[str, list[dict[str, Any]]] = {}
    lines = []
    for entry in experiment.methods:
        keywords = {"name": entry.name, **entry.keywords}
        key = repr(sorted(keywords.items()))
        runs = [learned(keywords, streams[seed], backbone.width, plans[seed]) for seed in seeds]
        found[key] = runs
        lines.append((entry.label, keywords, key, runs))
        print(f"{entry.label}: {written([r['last_accuracy'] for r in runs])}", flush=True)
    print("\n| label | Ā | A_T | least | FFM | regret | PD | harmonic | seconds | state |")
    print("| --- " * 10 + "|")
    for label, keywords, key, runs in lines:

        def column(name: str, scale: float = 100, digits: int = 2, runs: Any = runs) -> str:
            return written([r.get(name) for r in runs], scale, digits)

        least = f"{100 * min(r['last_accuracy'] for r in runs):.2f}"
        cells = [column("average_accuracy"), column("last_accuracy"), least, column("ffm")]
        cells += [written(regrets(keywords, found, key)), column("performance_drop"), column("harmonic_accuracy")]
        cells += [column("seconds", 1, 1), f"{runs[0]['state'] / 1e6:,.1f} MB"]
        print(f"| {label} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()

"""Made-up records that look like real ones: learning curves, forgetting, several seeds, one joint reference."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tangentcl.records import RecordWriter

# method: accuracy when learned, what each later task takes away, loss terms, seconds, parameters, stored samples
METHODS = {
    "finetune": (0.97, 0.16, ("cross_entropy",), 31.0, 147_456, 0),
    "ncm": (0.93, 0.012, (), 2.5, 0, 0),
    "replay": (0.96, 0.05, ("cross_entropy", "distillation"), 54.0, 147_456, 500),
    "joint": (0.965, 0.0, ("cross_entropy",), 78.0, 147_456, 12_000),
}


def accuracies(method: str, n_tasks: int, per_task: int, per_class: int, seed: int, names=None) -> dict:
    """Counts per class from a decaying accuracy; the matrix follows from the counts, so both agree."""
    rng = np.random.default_rng([seed, n_tasks, len(method)])
    start, decay, *_ = METHODS[method]
    n_classes = n_tasks * per_task
    correct = np.full((n_tasks, n_classes), np.nan)
    hard = rng.beta(8, 1.2, n_classes)
    for t in range(n_tasks):
        for c in range((t + 1) * per_task):
            p = start * hard[c] ** 0.3 * np.exp(-decay * (t - c // per_task) * (1.5 - hard[c]))
            correct[t, c] = rng.binomial(per_class, min(p, 1))
    if method == "joint":
        correct[:-1] = np.nan
    matrix = correct.reshape(n_tasks, n_tasks, per_task).sum(axis=2) / (per_task * per_class)
    names = names or [f"class {c}" for c in range(n_classes)]
    tasks = [list(range(k * per_task, (k + 1) * per_task)) for k in range(n_tasks)]
    return {
        "scenario": "class",
        "task_names": [f"{names[t[0]]} to {names[t[-1]]}" for t in tasks],
        "class_names": names,
        "task_classes": tasks,
        "n_test": [per_task * per_class] * n_tasks,
        "matrix": matrix,
        "class_correct": correct,
        "class_total": [per_class] * n_classes,
    }


def environment(stream: str, seed: int) -> dict:
    return {
        "tangentcl": "0.1.0",
        "python": "3.11.7",
        "torch": "2.13.0",
        "packages": {"numpy": "2.4.6", "transformers": "5.1.0", "peft": "0.19.0", "accelerate": "1.12.0"},
        "platform": "Linux x86_64",
        "device": "cpu",
        "precision": "float32",
        "processes": 1,
        "threads": 1,
        "git_revision": "0123456789abcdef",
        "git_dirty": False,
        "backbone": {"name": "bundled", "sha256": "ab" * 32, "pooling": "mean", "n_parameters": 2_700_000},
        "stream": {"name": stream, "fingerprint": f"sha256:{stream}", "class_order": [3, 1, 4, 1, 5, seed]},
        "protocol": {
            "checkpoint": "bundled (abababab)",
            "split": "the source's own test split",
            "class_order": [3, 1, 4, 1, 5, 9, 2, 6, 5, 3],
            "averaging": "sample mean over seen classes",
            "normalisation": "mean 0.5, std 0.5",
            "batch": 32,
            "selection": "last step, nothing selected",
        },
    }


def write_run(
    folder: Path,
    method: str,
    seed: int,
    *,
    n_tasks=5,
    per_task=2,
    per_class=36,
    label=None,
    stream="digits",
    experiment=None,
    names=None,
    log_every=20,
    steps=200,
) -> Path:
    """One finished run in ``folder/experiment/label/seed-s``."""
    _, _, terms, seconds, parameters, stored = METHODS[method]
    label, experiment = label or method, experiment or stream
    config = {
        "name": experiment,
        "seed": seed,
        "label": label,
        "stream": {"name": stream, "n_tasks": n_tasks, "order_seed": seed},
        "backbone": {"name": "bundled"},
        "plan": {"epochs": 5, "batch_size": 32, "lr": 0.01},
        "method": {"name": method},
    }
    rng = np.random.default_rng(seed)
    place = folder / "runs" / experiment.replace("/", "_") / method / f"seed-{seed}"
    with RecordWriter(place, config, environment(stream, seed)) as record:
        record.event("run_started")
        for t in [n_tasks - 1] if method == "joint" else range(n_tasks):
            record.event("task_started", {"task": t, "name": f"task {t}", "n_train": 300, "n_classes": per_task})
            for step in range(log_every, steps + 1, log_every) if terms else ():
                decay = np.exp(-4 * step / steps)
                values = {
                    n: (2.3 * decay + 0.02) * (0.3 if i else 1) * rng.uniform(0.8, 1.2) for i, n in enumerate(terms)
                }
                if t == 0:
                    values.pop("distillation", None)
                record.event("step", {"task": t, "epoch": step // 50, "step": step, "terms": values, "lr": 0.01,
                                      "samples_per_s": 900.0})  # fmt: skip
            record.event("task_trained", {
                "task": t, "steps": steps, "seconds": seconds * rng.uniform(0.9, 1.1) / n_tasks,
                "trainable_parameters": parameters, "stored_samples": stored,
                "peak_memory_bytes": 300 * 2**20 + 2000 * parameters * (t + 1) // 8,
            })  # fmt: skip
            record.event("evaluated", {"task": t, "seconds": 0.9, "accuracy": [None] * n_tasks})
        record.accuracy(**accuracies(method, n_tasks, per_task, per_class, seed, names))
        record.event("run_finished", {"seconds": seconds + n_tasks})
    return place


@pytest.fixture(scope="session")
def write():
    return write_run


@pytest.fixture(scope="session")
def digits(tmp_path_factory) -> list[Path]:
    """4 methods x 3 seeds x 5 tasks."""
    folder = tmp_path_factory.mktemp("digits")
    return [write_run(folder, method, seed) for method in METHODS for seed in (0, 1, 2)]


@pytest.fixture(scope="session")
def intents(tmp_path_factory) -> list[Path]:
    """2 methods x 2 seeds x 15 tasks x 10 classes, with names as long as real ones."""
    folder = tmp_path_factory.mktemp("intents")
    words = ("transfer", "credit limit", "international visa", "change accent", "what are your hobbies", "maybe")
    names = [f"{words[c % len(words)]} {c}" for c in range(150)]
    return [
        write_run(folder, m, s, n_tasks=15, per_task=10, per_class=30, stream="clinc150", names=names, label=label)
        for m, label in (
            ("finetune", "sequential LoRA, all logits, rank 8"),
            ("ncm", "nearest class mean"),
            ("joint", "joint"),
        )
        for s in (0, 1)
    ]

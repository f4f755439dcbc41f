"""The loop's own time as a share of a training step, and the loop against a bare one, on a real text encoder.

    python -m benchmarks.loop [--steps 60] [--batch-size 32]

A step is: samples read, tokenised and padded, moved to the device; forward; backward; optimiser; schedule, checks and
events. "Own" is everything but forward, backward and optimiser. Times are CPU seconds of this process with one thread,
so that other work on the machine does not count. The bare loop does the same arithmetic on ready batches.

Needs ``TANGENTCL_DATA`` (clinc150) and ``TANGENTCL_MODELS`` (all-MiniLM-L6-v2).
"""

from __future__ import annotations

import argparse
import os
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tangentcl.data import Task, class_incremental, load
from tangentcl.errors import ConfigError
from tangentcl.methods import Finetune
from tangentcl.nn import backbone
from tangentcl.training import Runtime, TaskFit, TrainingPlan
from tangentcl.training.stream import ignore, with_backbone_transforms

TARGET = 0.03


def timed(function: Callable[..., Any], seconds: dict[str, float], name: str) -> Callable[..., Any]:
    """``function`` with its CPU seconds added to ``seconds[name]``."""

    def call(*arguments: Any, **keywords: Any) -> Any:
        start = time.process_time()
        try:
            return function(*arguments, **keywords)
        finally:
            seconds[name] += time.process_time() - start

    return call


def prepared(models: Path) -> tuple[Finetune, Task]:
    """A LoRA model on the first of 15 tasks of CLINC150."""
    torch.manual_seed(0)
    method = Finetune(backbone(str(models / "all-MiniLM-L6-v2")), rank=8)
    task = with_backbone_transforms(class_incremental(load("clinc150"), n_tasks=15), method)[0]
    method.begin_task(task)
    return method, task


def measure_loop(models: Path, plan: TrainingPlan, steps: int) -> dict[str, float]:
    """CPU seconds of ``steps`` steps of the library's loop, in parts; the first 10 steps do not count."""
    method, task = prepared(models)
    runtime = Runtime(device="cpu")
    fit = TaskFit(method, task, task.train, plan, runtime, ignore)
    fit.run(stop_at=10)
    seconds: dict[str, float] = defaultdict(float)
    method.training_loss = timed(method.training_loss, seconds, "forward")  # type: ignore[method-assign]
    runtime.backward = timed(runtime.backward, seconds, "backward")  # type: ignore[method-assign]
    fit.optimizer.step = timed(fit.optimizer.step, seconds, "optimiser")  # type: ignore[method-assign]
    start = time.process_time()
    fit.run(stop_at=10 + steps)
    seconds["step"] = time.process_time() - start
    seconds["own"] = seconds["step"] - seconds["forward"] - seconds["backward"] - seconds["optimiser"]
    return seconds


def measure_bare(models: Path, plan: TrainingPlan, steps: int) -> float:
    """CPU seconds of the same steps written out by hand on batches made beforehand."""
    method, task = prepared(models)
    order = TaskFit(method, task, task.train, plan, Runtime(device="cpu"), ignore).order
    batches = []
    for step in range(10 + steps):
        epoch, position = divmod(step, order.steps_per_epoch)
        (batch,) = order.window(order.permutation(epoch), position)
        batches.append(task.train.collate([task.train.item(i, None) for i in batch]))
    optimizer = plan.make_optimizer([p for p in method.parameters() if p.requires_grad])
    method.train()
    start = 0.0
    for step, (x, y) in enumerate(batches):
        if step == 10:
            start = time.process_time()
        optimizer.zero_grad()
        method.training_loss(x, y)["cross_entropy"].backward()
        optimizer.step()
    return time.process_time() - start


def main() -> int:
    """Print the shares and the ratio; exit code 1 when the loop's own share is not below the target."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--batch-size", type=int, default=32)
    options = parser.parse_args()
    models = os.environ.get("TANGENTCL_MODELS")
    if not models or not os.environ.get("TANGENTCL_DATA"):
        raise ConfigError("benchmarks.loop needs TANGENTCL_DATA (clinc150) and TANGENTCL_MODELS (all-MiniLM-L6-v2)")
    torch.set_num_threads(1)
    plan = TrainingPlan(epochs=10, batch_size=options.batch_size, device="cpu")
    found = measure_loop(Path(models), plan, options.steps)
    bare = measure_bare(Path(models), plan, options.steps)
    print(f"{options.steps} steps of {options.batch_size} sentences, LoRA rank 8, one thread, CPU seconds")
    for name in ("forward", "backward", "optimiser", "own", "step"):
        print(f"  {name:10s} {found[name]:8.3f} s  {100 * found[name] / found['step']:6.2f} % of the step")
    print(f"  bare loop  {bare:8.3f} s  library / bare = {found['step'] / bare:.3f}")
    share = found["own"] / found["step"]
    print(f"own time {100 * share:.2f} % of the step, target below {100 * TARGET:.0f} %")
    return 0 if share < TARGET else 1


if __name__ == "__main__":
    raise SystemExit(main())

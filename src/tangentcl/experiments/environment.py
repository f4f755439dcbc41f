"""What a run was made with: versions, revision, device, seeds, and the eight fields that make figures comparable."""

from __future__ import annotations

import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

import tangentcl
from tangentcl.data import TaskStream
from tangentcl.nn import Backbone
from tangentcl.training import Runtime, TrainingPlan

PACKAGES = ("torch", "numpy", "transformers", "peft", "accelerate", "safetensors", "pillow", "datasets", "timm")


def environment(
    backbone: Backbone, stream: TaskStream, plan: TrainingPlan, runtime: Runtime, seeds: tuple[int, ...]
) -> dict[str, Any]:
    """Contents of ``environment.json``."""
    revision, dirty = source_revision()
    return {
        "tangentcl": tangentcl.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "packages": {name: version for name in PACKAGES if (version := _version(name))},
        "platform": f"{platform.system()} {platform.machine()}",
        "device": device_name(runtime.device),
        "precision": runtime.precision,
        "processes": runtime.world,
        "threads": torch.get_num_threads(),
        "git_revision": revision,
        "git_dirty": dirty,
        "backbone": backbone.card.describe(),
        "stream": stream.describe(),
        "protocol": protocol(backbone, stream, plan, runtime, seeds),
    }


def protocol(
    backbone: Backbone, stream: TaskStream, plan: TrainingPlan, runtime: Runtime, seeds: tuple[int, ...]
) -> dict[str, Any]:
    """The eight fields without which two accuracy figures cannot be compared."""
    card = backbone.card
    transform = stream[0].test.transform
    sizes = ", ".join(f"{len(task.train)}/{len(task.test)}" for task in list(stream)[:3])
    more = ", ..." if len(stream) > 3 else ""
    order = "as in the source" if stream.order_seed is None else f"RandomState({stream.order_seed})"
    return {
        "checkpoint": f"{card.source} revision {card.revision or 'none'} sha256 {card.sha256[:12]}",
        "split": f"train/test per task {sizes}{more}; validation "
        + ("kept apart" if stream[0].validation is not None else "none"),
        "class_order": order,
        "averaging": "sample-mean and task-mean, each named",
        "normalisation": _normalisation(transform.describe() if transform is not None else {}),
        "batch": f"{plan.batch_size} x accumulate {plan.accumulate} over {runtime.world} process(es)",
        "selection": "last step of training; nothing selected on test data",
        "seeds": list(seeds),
    }


def source_revision() -> tuple[str | None, bool | None]:
    """Commit of the checkout this package runs from and whether it was changed; ``(None, None)`` outside a checkout."""
    folder = Path(__file__).resolve().parent
    try:
        inside = _git(folder, "ls-files", "--error-unmatch", Path(__file__).name)
        if inside is None:
            return None, None
        return _git(folder, "rev-parse", "HEAD"), bool(_git(folder, "status", "--porcelain", "--", str(folder.parent)))
    except OSError:  # no git on this machine
        return None, None


def device_name(device: torch.device) -> str:
    """``"cpu"``, or the name of the accelerator."""
    return f"{device} ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else str(device)


def _git(folder: Path, *arguments: str) -> str | None:
    done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=20)
    return done.stdout.strip() if done.returncode == 0 else None


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _normalisation(described: dict[str, Any]) -> str:
    if "mean" in described:
        return f"mean {described['mean']} std {described['std']}"
    return "none (text)" if "max_length" in described else "none"

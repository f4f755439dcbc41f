"""What the spectral regulariser costs: a training step with it against one without.

    python -m benchmarks.guard [--steps 40] [--batch-size 32] [--case NAME ...]

A step is forward, backward and optimiser on a ready batch. Steps with and without take turns in one process and on one
model, so that whatever else the machine does meets both. Times are CPU seconds of this process with one thread; the
ratio is that of medians. The aim is 1.05 at most. The head is on features of a frozen backbone, which are computed in
each step: what a user waits for.

Needs ``TANGENTCL_MODELS`` (all-MiniLM-L6-v2) for the case "LoRA, MiniLM".
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tangentcl.nn import add_lora, backbone
from tangentcl.protect.spectral import SpectralRegularizer

AIM = 1.05
N_CLASSES, WORDS = 10, "the cat sat on a mat and would like to know where its dog has gone today"


class Classifier(nn.Module):
    """A backbone with a linear head."""

    def __init__(self, body: nn.Module, width: int) -> None:
        super().__init__()
        self.body, self.head = body, nn.Linear(width, N_CLASSES)

    def forward(self, x: Any) -> Tensor:
        out: Tensor = self.head(self.body(x))
        return out


def _images(n: int) -> Any:
    return backbone("bundled").eval_transform, np.random.default_rng(0).integers(0, 255, (n, 32, 32, 3), dtype=np.uint8)


def images(n: int) -> tuple[Any, Tensor]:
    """Random images as the bundled backbone reads them."""
    transform, drawn = _images(n)
    return transform.collate([transform(image, None) for image in drawn]), torch.arange(n) % N_CLASSES


def texts(body: Any, n: int) -> tuple[Any, Tensor]:
    """Sentences of 4 to 17 words."""
    words, transform = WORDS.split(), body.eval_transform
    drawn = [" ".join(words[i % 5 : 9 + i % 9]) for i in range(n)]
    return transform.collate(drawn), torch.arange(n) % N_CLASSES


def vision(tune: str, n: int) -> tuple[nn.Module, Any, Tensor]:
    """The bundled Vision Transformer."""
    body = backbone("bundled")
    if tune == "lora":
        add_lora(body, rank=8)
    elif tune == "full":
        body.requires_grad_(True)
    return Classifier(body, body.width), *images(n)


def sentences(n: int) -> tuple[nn.Module, Any, Tensor]:
    """MiniLM with LoRA."""
    body = backbone(os.path.join(os.environ["TANGENTCL_MODELS"], "all-MiniLM-L6-v2"))
    add_lora(body, rank=8)
    return Classifier(body, body.width), *texts(body, n)


CASES: dict[str, Callable[[int], tuple[nn.Module, Any, Tensor]]] = {
    "linear head, bundled ViT": lambda n: vision("head", n),
    "LoRA, bundled ViT": lambda n: vision("lora", n),
    "full, bundled ViT": lambda n: vision("full", n),
    "LoRA, MiniLM": sentences,
}


def measure(case: str, batch_size: int, steps: int, **settings: Any) -> tuple[float, float]:
    """Median CPU seconds of a step without and with the guard."""
    torch.manual_seed(0)
    model, x, y = CASES[case](batch_size)
    guard = SpectralRegularizer.of_old(model, x, **settings)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    model.train()

    def step(guarded: bool) -> float:
        start = time.process_time()
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        if guarded:
            loss = loss + guard.strength * guard(model)
        loss.backward()
        optimizer.step()
        return time.process_time() - start

    for guarded in (False, True, False, True):
        step(guarded)
    found: dict[bool, list[float]] = {False: [], True: []}
    for i in range(steps):
        for guarded in (i % 2 == 0, i % 2 == 1):
            found[guarded].append(step(guarded))
    return statistics.median(found[False]), statistics.median(found[True])


def main() -> int:
    """Print the table; exit code 1 when a ratio is above the aim."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=40, help="of each kind (default 40)")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--k", type=int, default=32, help="directions kept of each second moment (default 32)")
    parser.add_argument("--form", default="layers", choices=("layers", "jacobian"))
    parser.add_argument("--case", action="append", choices=sorted(CASES), help="default: all that can run here")
    options = parser.parse_args()
    torch.set_num_threads(1)
    cases = options.case or [c for c in CASES if c != "LoRA, MiniLM" or os.environ.get("TANGENTCL_MODELS")]
    print("| case | without, ms | with, ms | ratio |\n| --- | ---: | ---: | ---: |")
    worst = 0.0
    for case in cases:
        without, guarded = measure(case, options.batch_size, options.steps, form=options.form, k=options.k)
        worst = max(worst, guarded / without)
        print(f"| {case} | {1e3 * without:.1f} | {1e3 * guarded:.1f} | {guarded / without:.3f} |", flush=True)
    print(f"\nbatches of {options.batch_size}, form {options.form}, k = {options.k}, one thread; aim: at most {AIM}")
    return 0 if worst <= AIM else 1


if __name__ == "__main__":
    raise SystemExit(main())

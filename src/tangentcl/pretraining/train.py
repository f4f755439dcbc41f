"""The pre-training loop: classify drawings with a cosine classifier, Muon for matrices, checkpoints, export."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save as save_safetensors
from torch import Tensor, nn

from tangentcl.errors import ConfigError, ModelError
from tangentcl.nn.vit import SmallViT
from tangentcl.pretraining.augment import view_colour, view_ink
from tangentcl.pretraining.pool import Pool, PoolSpec

MEAN, STD = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the result; the length is in steps, or in minutes of training time."""

    seed: int = 0
    steps: int | None = None
    minutes: float | None = None
    batch: int = 192
    shares: tuple[float, float, float] = (0.36, 0.22, 0.42)  # strokes, glyphs, coloured pictures
    muon_lr: float = 0.02
    adamw_lr: float = 0.003
    weight_decay: float = 0.01
    scale: float = 20.0
    keep_tokens: float = 1.0
    ema: float = 0.996
    bf16: bool = True
    architecture: dict[str, Any] = field(default_factory=dict)
    pool: PoolSpec = field(default_factory=PoolSpec)


def learning_rate(progress: float) -> float:
    """Trapezoid in [0, 1]: up during the first 2 %, constant until 55 %, then linearly to zero.

    >>> [round(learning_rate(p), 2) for p in (0.01, 0.3, 0.775, 1.0)]
    [0.5, 1.0, 0.5, 0.0]
    """
    return max(0.0, min(progress / 0.02, 1.0, (1.0 - progress) / 0.45))


class CosineClassifier(nn.Module):
    """Logits scale * cos(z, w_c), where z is the feature standardised over the batch: [B, d] -> [B, C].

    Without the standardisation all features share one large direction and the first hundreds of steps go into it.
    """

    def __init__(self, width: int, n_classes: int, scale: float, seed: int) -> None:
        super().__init__()
        g = torch.Generator().manual_seed(seed)
        self.weight = nn.Parameter(0.05 * torch.randn(n_classes, width, generator=g))  # small: AdamW turns it quickly
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        """Features [B, d] -> logits [B, C]."""
        z = (x - x.mean(0)) / (x.std(0, correction=0) + 1e-3)
        return self.scale * F.normalize(z, dim=-1) @ F.normalize(self.weight, dim=-1).T


def draw_batch(pool: Pool, recipe: Recipe, step: int) -> tuple[Tensor, Tensor]:
    """Batch number ``step``: normalised images [B, 3, 32, 32] and classes [B]; depends on seed and step only."""
    g = torch.Generator().manual_seed(recipe.seed * 1_000_003 + step)
    n_strokes, n_glyphs = (round(s * recipe.batch) for s in recipe.shares[:2])
    n_colour = recipe.batch - n_strokes - n_glyphs
    at = torch.randint(pool.n_strokes, (n_strokes,), generator=g)
    if len(pool.ink) > pool.n_strokes:
        at = torch.cat([at, torch.randint(pool.n_strokes, len(pool.ink), (n_glyphs,), generator=g)])
    of = torch.randint(len(pool.colour), (n_colour,), generator=g)
    colour = view_colour(torch.from_numpy(pool.colour[of.numpy()]), g)
    ink = view_ink(torch.from_numpy(pool.ink[at.numpy()]), colour, g)
    labels = torch.from_numpy(np.concatenate([pool.ink_labels[at.numpy()], pool.colour_labels[of.numpy()]]))
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (MEAN, STD))
    return (torch.cat([ink, colour]) - mean) / std, labels


class Trainer:
    """Model, classifier, averaged weights and optimisers of one run; ``run`` continues from wherever it stands."""

    def __init__(self, recipe: Recipe, pool: Pool) -> None:
        if (recipe.steps is None) == (recipe.minutes is None):
            raise ConfigError(f"Give either steps or minutes, got steps={recipe.steps}, minutes={recipe.minutes}.")
        if not hasattr(torch.optim, "Muon"):
            raise ConfigError(f"Pre-training expects torch 2.9 or newer (torch.optim.Muon), got {torch.__version__}.")
        self.recipe, self.pool = recipe, pool
        self.model = SmallViT(**recipe.architecture, seed=recipe.seed)
        self.head = CosineClassifier(self.model.width, pool.n_classes, recipe.scale, recipe.seed)
        self.average = {k: v.detach().clone() for k, v in self.model.state_dict().items()}
        matrices = [p for p in self.model.blocks.parameters() if p.ndim == 2]
        others = [p for n, p in self.model.named_parameters() if p.ndim != 2 or "blocks" not in n]
        self.muon = torch.optim.Muon(matrices, lr=recipe.muon_lr, weight_decay=recipe.weight_decay)
        groups: list[dict[str, Any]] = [{"params": others}, {"params": self.head.parameters()}]
        self.adamw = torch.optim.AdamW(groups, lr=recipe.adamw_lr, weight_decay=recipe.weight_decay)
        self.step, self.seconds = 0, 0.0

    @property
    def progress(self) -> float:
        """Share of the run that is done, in [0, 1]."""
        if self.recipe.steps is not None:
            return self.step / self.recipe.steps
        return self.seconds / (60.0 * (self.recipe.minutes or 1.0))

    def loss(self, x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Cross-entropy through CLS and through the mean token (half each), and the accuracy of the second."""
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.recipe.bf16):
            tokens = self.model.embed(x)
            if self.recipe.keep_tokens < 1.0:
                g = torch.Generator().manual_seed(self.recipe.seed * 1_000_003 + self.step)
                n = tokens.shape[1] - 1
                kept = 1 + torch.randperm(n, generator=g)[: round(n * self.recipe.keep_tokens)]
                tokens = tokens[:, torch.cat([torch.zeros(1, dtype=torch.long), kept])]
            tokens = self.model.encode(tokens)
        first, mean = self.head(tokens[:, 0].float()), self.head(tokens[:, 1:].float().mean(1))
        loss = 0.5 * (F.cross_entropy(first, labels) + F.cross_entropy(mean, labels))
        return loss, (mean.argmax(1) == labels).float().mean()

    def train_step(self) -> tuple[float, float]:
        """One update; the loss and the accuracy on its batch."""
        start = time.perf_counter()
        factor = learning_rate(max(self.progress, 1e-4))
        for optimiser, lr in ((self.muon, self.recipe.muon_lr), (self.adamw, self.recipe.adamw_lr)):
            for group in optimiser.param_groups:
                group["lr"] = lr * factor
        x, labels = draw_batch(self.pool, self.recipe, self.step)
        loss, accuracy = self.loss(x, labels)
        loss.backward()
        for optimiser in (self.muon, self.adamw):
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        self.step += 1
        decay = min(self.recipe.ema, 1 - 1 / (1 + self.step / 3))
        for name, value in self.model.state_dict().items():
            self.average[name].lerp_(value, 1 - decay)
        self.seconds += time.perf_counter() - start
        return float(loss.detach()), float(accuracy)

    def run(self, folder: Path, say: Callable[[str], None], save_minutes: float = 4.0, every: int = 50) -> None:
        """Train to the end of the recipe, with a checkpoint every few minutes of training."""
        saved, terms = self.seconds, []
        while self.progress < 1.0:
            terms.append(self.train_step())
            if self.step % every == 0:
                loss, accuracy = (sum(t) / len(terms) for t in zip(*terms))
                rate = self.step * self.recipe.batch / self.seconds
                done = f"step {self.step} done {self.progress:.3f}"
                say(f"{done} loss {loss:.3f} accuracy {accuracy:.3f} images/s {rate:.0f}")
                terms = []
            if self.seconds - saved > 60 * save_minutes:
                self.save(folder)
                saved = self.seconds
        self.save(folder)

    def save(self, folder: Path) -> None:
        """Write the whole state to ``folder``/checkpoint.pt in one atomic move, then export the averaged weights."""
        folder.mkdir(parents=True, exist_ok=True)
        state = {
            "model": self.model.state_dict(), "head": self.head.state_dict(), "average": self.average,
            "muon": self.muon.state_dict(), "adamw": self.adamw.state_dict(),
            "step": self.step, "seconds": self.seconds, "recipe": asdict(self.recipe),
        }  # fmt: skip
        torch.save(state, folder / "checkpoint.part")
        os.replace(folder / "checkpoint.part", folder / "checkpoint.pt")
        export(self, folder)

    def resume(self, folder: Path) -> None:
        """Continue from ``folder``/checkpoint.pt.

        Raises:
            ModelError: no checkpoint there, or one of another recipe (the length may differ).
        """
        path = folder / "checkpoint.pt"
        if not path.is_file():
            raise ModelError(f"Expected a checkpoint at {path}, found none. Try without --resume.")
        state = torch.load(path, weights_only=True)
        mine = asdict(self.recipe)
        differ = [k for k, v in state["recipe"].items() if k not in ("steps", "minutes") and v != mine[k]]
        if differ:
            raise ModelError(f"The checkpoint {path} has another recipe, different in {', '.join(differ)}. Try --out.")
        self.model.load_state_dict(state["model"])
        self.head.load_state_dict(state["head"])
        self.muon.load_state_dict(state["muon"])
        self.adamw.load_state_dict(state["adamw"])
        self.average = state["average"]
        self.step, self.seconds = state["step"], state["seconds"]


def export(trainer: Trainer, folder: Path) -> dict[str, Any]:
    """Write bundled.safetensors (averaged weights, fp16) and card.json; the card's accuracies come from evaluate."""
    content = save_safetensors({k: v.half().contiguous() for k, v in trainer.average.items()})
    recipe = asdict(trainer.recipe)
    del recipe["architecture"]
    card = {
        "name": "bundled",
        "architecture": trainer.model.architecture,
        "n_parameters": sum(p.numel() for p in trainer.model.parameters()),
        "mean": MEAN,
        "std": STD,
        "pooling": "mean",
        "sha256": hashlib.sha256(content).hexdigest(),
        "seed": recipe["seed"],
        "steps": trainer.step,
        "images_seen": trainer.step * trainer.recipe.batch,
        "minutes": round(trainer.seconds / 60, 1),
        "n_classes": trainer.pool.n_classes,
        "recipe": recipe,
        "torch": torch.__version__,
        "accuracy": {},
    }
    for name, data in (("bundled.safetensors", content), ("card.json", (json.dumps(card, indent=1) + "\n").encode())):
        (folder / f"{name}.part").write_bytes(data)
        os.replace(folder / f"{name}.part", folder / name)
    return card

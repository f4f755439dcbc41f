"""``python -m tangentcl.pretraining --out DIR --minutes N``: pre-train the bundled backbone on a CPU."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import torch

from tangentcl.errors import TangentclError
from tangentcl.pretraining.pool import kept_pool
from tangentcl.pretraining.train import Recipe, Trainer


def parser() -> argparse.ArgumentParser:
    """The options, each with the default that made the bundled weights."""
    p = argparse.ArgumentParser(prog="python -m tangentcl.pretraining", description=__doc__)
    p.add_argument("--out", type=Path, required=True, help="folder for the pool, checkpoint, weights and card")
    length = p.add_mutually_exclusive_group(required=True)
    length.add_argument("--minutes", type=float, help="minutes of training; the result depends on the machine's speed")
    length.add_argument("--steps", type=int, help="updates; equal results on equal machines")
    p.add_argument("--resume", action="store_true", help="continue from the checkpoint in --out")
    p.add_argument("--pool", type=Path, help="folder of the drawn pictures (default: OUT/pool)")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--batch", type=int, default=Recipe.batch)
    p.add_argument("--patch", type=int, default=8, help="pixels per token along one axis")
    p.add_argument("--keep-tokens", type=float, default=1.0, help="share of patch tokens seen in a training step")
    p.add_argument("--muon-lr", type=float, default=Recipe.muon_lr)
    p.add_argument("--threads", type=int, default=1)
    p.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes that draw the pool")
    p.add_argument("--fp32", action="store_true", help="no bfloat16 autocast")
    return p


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; 0, or 2 after a refusal."""
    a = parser().parse_args(arguments)
    torch.set_num_threads(a.threads)
    recipe = Recipe(
        seed=a.seed, steps=a.steps, minutes=a.minutes, batch=a.batch, keep_tokens=a.keep_tokens, muon_lr=a.muon_lr,
        bf16=not a.fp32, architecture={"patch": a.patch},
    )  # fmt: skip
    try:
        trainer = Trainer(recipe, kept_pool(recipe.pool, a.pool or a.out / "pool", a.workers))
        if a.resume:
            trainer.resume(a.out)
        trainer.run(a.out, lambda line: print(line, flush=True))
    except TangentclError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""The pre-training loop: resumable, deterministic given the number of steps, and it learns."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from tangentcl.errors import ConfigError, ModelError
from tangentcl.nn.vit import load_bundled
from tangentcl.pretraining.augment import view_colour, view_ink
from tangentcl.pretraining.pool import Pool, PoolSpec, draw_pool
from tangentcl.pretraining.train import Recipe, Trainer, draw_batch

pytestmark = pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch.optim.Muon came with torch 2.9")

TINY = Recipe(
    steps=2,
    batch=16,
    architecture={"width": 24, "depth": 1, "heads": 3, "stem": [8, 8]},
    pool=PoolSpec(glyph_classes=0, stroke_classes=3, stroke_drawings=4, colour_classes={"noise": 2}, colour_drawings=4),
)


@pytest.fixture(scope="module")
def pool() -> Pool:
    return draw_pool(TINY.pool)


def state(trainer: Trainer) -> list[torch.Tensor]:
    return [*trainer.model.parameters(), *trainer.head.parameters(), *trainer.average.values()]


def test_resuming_after_one_step_equals_two_steps_in_a_row(pool: Pool, tmp_path) -> None:
    whole = Trainer(TINY, pool)
    whole.run(tmp_path / "whole", print)
    half = Trainer(TINY, pool)
    half.train_step()
    half.save(tmp_path / "half")
    resumed = Trainer(TINY, pool)
    resumed.resume(tmp_path / "half")
    resumed.run(tmp_path / "half", print)
    assert resumed.step == whole.step == 2
    assert all(torch.equal(a, b) for a, b in zip(state(whole), state(resumed)))
    names = ("bundled.safetensors", "card.json")
    written = [[json.loads((tmp_path / d / n).read_text()) if n == "card.json" else (tmp_path / d / n).read_bytes()
                for n in names] for d in ("whole", "half")]  # fmt: skip
    assert written[0][0] == written[1][0]
    assert written[0][1]["sha256"] == written[1][1]["sha256"]


def test_exported_weights_are_the_averaged_ones(pool: Pool, tmp_path) -> None:
    trainer = Trainer(TINY, pool)
    trainer.run(tmp_path, print)
    read = load_bundled(tmp_path).state_dict()
    assert all(torch.equal(read[n], v.half().float()) for n, v in trainer.average.items())
    assert not (tmp_path / "checkpoint.part").exists()


def test_a_checkpoint_of_another_recipe_is_refused(pool: Pool, tmp_path) -> None:
    Trainer(TINY, pool).save(tmp_path)
    with pytest.raises(ModelError, match="seed"):
        Trainer(replace(TINY, seed=1), pool).resume(tmp_path)
    with pytest.raises(ModelError, match="found none"):
        Trainer(TINY, pool).resume(tmp_path / "elsewhere")


@pytest.mark.parametrize("length", [{"steps": None}, {"minutes": 1.0}])
def test_the_length_is_given_once(pool: Pool, length: dict) -> None:
    with pytest.raises(ConfigError, match="either steps or minutes"):
        Trainer(replace(TINY, **length), pool)


def test_batches_depend_on_seed_and_step_only(pool: Pool) -> None:
    torch.manual_seed(0)
    a, labels = draw_batch(pool, TINY, 7)
    torch.manual_seed(1)
    b, _ = draw_batch(pool, TINY, 7)
    c, _ = draw_batch(pool, TINY, 8)
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    assert a.shape[1:] == (3, 32, 32)
    assert len(labels) == len(a)
    assert a.abs().max() <= 1


def test_views_are_images(pool: Pool) -> None:
    g = torch.Generator().manual_seed(0)
    colour = view_colour(torch.from_numpy(pool.colour), g)
    ink = view_ink(torch.from_numpy(pool.ink), colour, g)
    for x in (colour, ink):
        assert x.shape[1:] == (3, 32, 32)
        assert x.isfinite().all()
        assert x.min() >= 0
        assert x.max() <= 1


def test_loss_falls(pool: Pool) -> None:
    trainer = Trainer(replace(TINY, steps=40, bf16=False), pool)
    losses = [trainer.train_step()[0] for _ in range(40)]
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])

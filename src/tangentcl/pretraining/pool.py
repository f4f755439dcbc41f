"""The pool of drawn pictures that pre-training samples from, made once and kept as two arrays."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from tangentcl.pretraining import glyphs, strokes, textures


@dataclass(frozen=True)
class PoolSpec:
    """What is drawn: classes per family and drawings per class."""

    seed: int = 0
    glyph_classes: int = 900
    glyph_drawings: int = 56
    stroke_classes: int = 800
    stroke_drawings: int = 140
    colour_classes: dict[str, int] = field(
        default_factory=lambda: {"fractal": 90, "contour": 110, "pattern": 110, "noise": 80, "leaves": 80, "thing": 160}
    )
    colour_drawings: int = 80


@dataclass(frozen=True)
class Pool:
    """Drawings and their classes: labels of ink come first, first strokes and then glyphs, then the colour families.

    Attributes:
        ink: uint8 [n, 40, 40], 255 where the pen was.
        ink_labels: int64 [n].
        n_strokes: the first drawings of ``ink`` that are stroke characters.
        colour: uint8 [m, 40, 40, 3].
        colour_labels: int64 [m].
        n_classes: number of classes of both kinds together.
    """

    ink: np.ndarray
    ink_labels: np.ndarray
    n_strokes: int
    colour: np.ndarray
    colour_labels: np.ndarray
    n_classes: int


def _map(workers: int, draw: Callable[[int], np.ndarray], n: int) -> list[np.ndarray]:
    if workers == 1:
        return [draw(i) for i in range(n)]
    with ProcessPoolExecutor(workers, mp_context=get_context("fork")) as executor:
        return list(executor.map(draw, range(n), chunksize=8))


def _stroke(made: list[strokes.Character], n: int, seed: int, i: int) -> np.ndarray:
    return strokes.render(made[i], n, (seed, 4, i))


def _glyph(made: tuple[str, ...], n: int, seed: int, i: int) -> np.ndarray:
    return glyphs.render(made[i], n, (seed, 5, ord(made[i])))


def _colour(made: list[tuple[str, int]], n: int, seed: int, i: int) -> np.ndarray:
    return textures.render(*made[i], n, seed)


def draw_pool(spec: PoolSpec, workers: int = 1) -> Pool:
    """Draw every picture of ``spec``; the number of processes changes the time, not the result.

    >>> spec = PoolSpec(glyph_classes=0, stroke_classes=2, stroke_drawings=3, colour_classes={"noise": 1})
    >>> draw_pool(spec).ink.shape
    (6, 40, 40)
    """
    characters = strokes.characters(spec.stroke_classes, spec.seed)
    every = glyphs.glyph_classes() if spec.glyph_classes else ()
    spread = np.linspace(0, len(every), min(spec.glyph_classes, len(every)), endpoint=False).astype(int)
    letters = tuple(every[i] for i in spread)  # from all scripts
    pictures = [(family, i) for family, count in spec.colour_classes.items() for i in range(count)]
    drawn = _map(workers, partial(_stroke, characters, spec.stroke_drawings, spec.seed), len(characters))
    printed = _map(workers, partial(_glyph, letters, spec.glyph_drawings, spec.seed), len(letters))
    painted = _map(workers, partial(_colour, pictures, spec.colour_drawings, spec.seed), len(pictures))
    n_ink = len(characters) + len(letters)
    per_class = [len(d) for d in drawn + printed]
    return Pool(
        ink=np.concatenate(drawn + printed),
        ink_labels=np.repeat(np.arange(n_ink), per_class),
        n_strokes=sum(len(d) for d in drawn),
        colour=np.concatenate(painted),
        colour_labels=np.repeat(n_ink + np.arange(len(pictures)), spec.colour_drawings),
        n_classes=n_ink + len(pictures),
    )


def kept_pool(spec: PoolSpec, folder: Path, workers: int = 1) -> Pool:
    """The pool of ``spec`` from ``folder`` where it is already there, else drawn and saved there."""
    label, arrays = folder / "pool.json", ("ink", "ink_labels", "colour", "colour_labels")
    if label.is_file():
        known = json.loads(label.read_text(encoding="utf-8"))
        if known["spec"] == asdict(spec):
            loaded = {name: np.load(folder / f"{name}.npy", allow_pickle=False) for name in arrays}
            return Pool(**loaded, n_strokes=known["n_strokes"], n_classes=known["n_classes"])
    pool = draw_pool(spec, workers)
    folder.mkdir(parents=True, exist_ok=True)
    label.unlink(missing_ok=True)
    for name in arrays:
        np.save(folder / f"{name}.npy", getattr(pool, name))
    known = {"spec": asdict(spec), "n_strokes": pool.n_strokes, "n_classes": pool.n_classes}
    label.write_text(json.dumps(known), encoding="utf-8")
    return pool
